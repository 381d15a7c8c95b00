"""A package for one file.

The reason: worker processes import the main module of whoever starts them unless it is a package's `__main__`: as a plain file the
benchmark would have every worker import torch, which the workers of a stage do not.
"""
