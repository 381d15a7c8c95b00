"""The public place of `pair_labels`, which is arithmetic of neighbours and lies with it."""

from __future__ import annotations

from wsss_core.nn.neighbours import pair_labels

__all__ = ["pair_labels"]
