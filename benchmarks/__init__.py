"""Benchmarks: every hot spot of the pipeline against the form that published code gives it, as ratios (`make bench`)."""
