"""Figures of merit: confusion matrices, threshold curves, classification metrics, and the `evaluate` stage."""
