"""From class activation maps to pseudo masks: dense CRF, random walk, thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_core.refine.random_walk import boundary_affinity

__all__ = ["boundary_affinity"]


def __getattr__(name: str) -> Any:
    """Load `boundary_affinity` when asked for: worker processes import this package and must not load torch."""
    if name == "boundary_affinity":
        from wsss_core.refine.random_walk import boundary_affinity

        return boundary_affinity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
