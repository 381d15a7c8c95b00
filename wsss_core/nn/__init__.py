"""Network parts: backbones, heads and decoders. Nothing here knows of systems or losses."""
