"""The random walk: against squaring the dense transition matrix (PSA, IRN), and against applying a sparse one step by step."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from benchmarks.pairs import flat_pairs, offsets
from wsss_core.refine.random_walk import walk_affinity

RADIUS, BETA, STEPS, CLASSES = 5, 8, 256, 4
STRIDE_8, STRIDE_4, TINY = (47, 63), (94, 125), (18, 30)
_TOLERANCE_SPARSE, _TOLERANCE_DENSE = 1e-5, 1e-4  # a step more or less changes scores by 6e-4


def pair_list(affinity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends and the affinity of every pair, each pair in both directions, and every cell with itself (affinity 1)."""
    size = (affinity.shape[1], affinity.shape[2])
    own = torch.arange(size[0] * size[1])
    rows, columns, values = [own], [own], [torch.ones(len(own))]
    for channel, (dy, dx) in zip(affinity, offsets(RADIUS), strict=True):
        start, end = flat_pairs(size, dy, dx)
        rows += [start, end]
        columns += [end, start]
        values += [channel.reshape(-1)[start]] * 2
    return torch.cat(rows), torch.cat(columns), torch.cat(values)


def dense_transitions(affinity: Tensor) -> Tensor:
    """The N x N transition matrix: affinities to the power beta, columns that sum to 1."""
    rows, columns, values = pair_list(affinity)
    matrix = torch.zeros(affinity[0].numel(), affinity[0].numel())
    matrix[rows, columns] = values
    matrix = matrix**BETA
    return matrix / matrix.sum(dim=0, keepdim=True)


def dense_walk(scores: Tensor, affinity: Tensor) -> Tensor:
    """The published walk: the dense matrix is squared until it makes all steps at once."""
    matrix = dense_transitions(affinity)
    for _ in range(int(math.log2(STEPS))):
        matrix = matrix @ matrix
    return (scores.flatten(1) @ matrix).reshape(scores.shape)


def sparse_transitions(affinity: Tensor, dtype: Any) -> scipy.sparse.csr_array:
    """The transposed transition matrix in compressed rows: it is applied to columns."""
    rows, columns, values = (part.numpy() for part in pair_list(affinity))
    size = affinity[0].numel()
    matrix = scipy.sparse.coo_array((values.astype(dtype) ** BETA, (columns, rows)), shape=(size, size)).tocsr()
    total = np.asarray(matrix.sum(axis=1), dtype)
    matrix.data /= np.repeat(total, np.diff(matrix.indptr))
    return matrix


def apply_stepwise(matrix: Any, scores: Tensor) -> Tensor:
    """One application of a sparse matrix, SciPy's or PyTorch's, per step."""
    state: Any = scores.flatten(1).T.contiguous()
    if isinstance(matrix, scipy.sparse.csr_array):
        state = state.numpy().astype(matrix.dtype)
    for _ in range(STEPS):
        state = matrix @ state
    return torch.as_tensor(state).T.reshape(scores.shape)


def exact_walk(scores: Tensor, affinity: Tensor) -> Tensor:
    return apply_stepwise(sparse_transitions(affinity, np.float64), scores)


def greatest_difference(expected: Tensor, ours: Tensor) -> float:
    return float((expected - ours).abs().max())


def made(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    scores = inputs.cams(CLASSES, size, seed=1)
    return torch.from_numpy(scores), torch.from_numpy(inputs.pair_affinities(offsets(RADIUS), size, seed=2))


def against_dense(size: tuple[int, int], setup: Setup, extrapolate: bool = False) -> Forms:
    scores, affinity = made(TINY if setup.tiny else size)
    ours = partial(walk_affinity, scores, affinity, radius=RADIUS, beta=BETA, steps=STEPS)
    if not extrapolate or setup.full or setup.tiny:
        return Forms({"dense": partial(dense_walk, scores, affinity)}, ours, greatest_difference, _TOLERANCE_DENSE)
    matrix = dense_transitions(affinity)
    return Forms(
        {"dense": lambda: matrix @ matrix},
        ours,
        greatest_difference,
        _TOLERANCE_SPARSE,
        expected=partial(exact_walk, scores, affinity),
        checked="against the sparse walk in float64",
        times=int(math.log2(STEPS)),
        note="extrapolated: 8 x one squaring",
    )


def against_sparse(setup: Setup) -> Forms:
    """The matrices of the opponents are at hand; making ours counts."""
    scores, affinity = made(TINY if setup.tiny else STRIDE_4)
    exact = exact_walk(scores, affinity)
    matrix = sparse_transitions(affinity, np.float32)
    parts = [torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        of_torch = torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False)
    return Forms(
        {"SciPy": partial(apply_stepwise, matrix, scores), "PyTorch": partial(apply_stepwise, of_torch, scores)},
        partial(walk_affinity, scores, affinity, radius=RADIUS, beta=BETA, steps=STEPS),
        lambda expected, ours: max(greatest_difference(exact, expected), greatest_difference(exact, ours)),
        _TOLERANCE_SPARSE,
    )


HOT_SPOTS = [
    HotSpot(
        "walk-stride-8",
        "random walk, 47x63, 256 steps, 4 classes",
        "dense NxN squared 8 times",
        "sparse matrix, Chebyshev series",
        target=100,
        best=277,
        agreement="greatest difference of scores in [0, 1]",
        make=partial(against_dense, STRIDE_8),
    ),
    HotSpot(
        "walk-stride-4",
        "random walk, 94x125, 256 steps, 4 classes",
        "dense NxN squared 8 times",
        "sparse matrix, Chebyshev series",
        target=2000,
        best=9360,
        agreement="greatest difference of scores in [0, 1]",
        make=partial(against_dense, STRIDE_4, extrapolate=True),
    ),
    HotSpot(
        "walk-sparse",
        "random walk, 94x125, 256 steps, 4 classes",
        "sparse matrix applied 256 times",
        "sparse matrix, Chebyshev series",
        target=2,
        best=2.6,
        agreement="greatest difference of both from float64, scores in [0, 1]",
        make=against_sparse,
    ),
]
