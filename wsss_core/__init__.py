"""Weakly supervised semantic segmentation from image-level labels: the commands behind the Snakemake workflow."""

__version__ = "0.1.0"
