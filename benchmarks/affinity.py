"""Pairs of neighbours: AffinityNet's loss in training, and maxima of a boundary map on the way between two cells."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from benchmarks.memory import peak_bytes
from benchmarks.pairs import inner_pairs, offsets
from wsss_core.losses.affinity import affinity_loss, pair_affinity
from wsss_core.nn.neighbours import pair_labels, path_cells
from wsss_core.refine.random_walk import boundary_affinity

RADIUS = 5
LossAndGradient = tuple[Tensor, Tensor]


def gathered_loss(features: Tensor, start: Tensor, end: Tensor, pairs: dict[str, Tensor]) -> LossAndGradient:
    """The published form (PSA): both ends of all pairs are gathered by index. `pairs`: float[N, K, P]."""
    features = features.detach().requires_grad_()
    flat = features.flatten(2)
    here = flat.index_select(2, start)[:, :, None]
    there = flat.index_select(2, end.reshape(-1)).unflatten(2, end.shape)
    affinity = torch.exp(-(there - here).abs().mean(dim=1))
    positive, negative = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    bg, fg = ((pairs[kind] * positive).sum() / (pairs[kind].sum() + 1e-5) for kind in ("bg", "fg"))
    neg = (pairs["neg"] * negative).sum() / (pairs["neg"].sum() + 1e-5)
    loss = bg / 4 + fg / 4 + neg / 2
    loss.backward()
    return loss.detach(), features.grad


def our_loss(features: Tensor, pairs: dict[str, Tensor]) -> LossAndGradient:
    features = features.detach().requires_grad_()
    loss = affinity_loss(pair_affinity(features, RADIUS), pairs)
    loss.backward()
    return loss.detach(), features.grad


def relative_difference(expected: LossAndGradient, ours: LossAndGradient) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, ours, strict=True))


def pair_loss(setup: Setup) -> Forms:
    """PSA's training: 448 channels, 448 pixels at stride 8. Pairs as published: of cells whose whole neighbourhood lies inside."""
    channels, size = (6, (11, 13)) if setup.tiny else (448, (56, 56))
    features = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(10))
    features += 2 * torch.from_numpy(inputs.smooth(channels, size, 11))
    labels = torch.from_numpy(inputs.regions(4, size, 12))[None]
    labels[labels == 3] = 255
    start, end = inner_pairs(size, RADIUS)
    inner = torch.zeros(size, dtype=torch.bool)
    inner.view(-1)[start] = True
    ours = {kind: mask & inner for kind, mask in pair_labels(labels, RADIUS).items()}
    published = {kind: mask.flatten(2)[:, :, start].float() for kind, mask in ours.items()}
    reference, own = partial(gathered_loss, features, start, end, published), partial(our_loss, features, ours)
    return Forms(
        {"gather": reference},
        own,
        relative_difference,
        tolerance=1e-4,
        memory=lambda: (peak_bytes(reference), peak_bytes(own)),
    )


def path_indices(size: tuple[int, int]) -> list[Tensor]:
    """Flat positions of the cells on the way of every pair, one tensor [k, length, P] for all ways of one length.

    The grid is padded by radius - 1 at the left, the right and the bottom; P runs over its cells before padding.
    """
    reach = RADIUS - 1
    width = size[1] + 2 * reach
    start = (torch.arange(size[0])[:, None] * width + torch.arange(size[1]) + reach).reshape(-1)
    by_length: dict[int, list[list[int]]] = {}
    for dy, dx in offsets(RADIUS):
        way = [y * width + x for y, x in path_cells(dy, dx)]
        by_length.setdefault(len(way), []).append(way)
    return [torch.tensor(ways)[:, :, None] + start for ways in by_length.values()]


def gathered_maxima(boundary: Tensor, paths: list[Tensor]) -> Tensor:
    """The published form (IRN): all cells of all ways are gathered by index and pooled; padding is boundary. Ways come length by length."""
    reach = RADIUS - 1
    flat = pad(boundary, (reach, reach, 0, reach), value=1.0).view(-1)
    gathered = [flat.index_select(0, path.view(-1)).view(path.shape) for path in paths]
    return torch.cat([1 - max_pool2d(cells, (cells.shape[1], 1)) for cells in gathered]).view(-1, *boundary.shape)


def published_order() -> list[int]:
    """Where each offset, sorted by the length of its way, stands among the offsets as they are."""
    lengths = [len(path_cells(dy, dx)) for dy, dx in offsets(RADIUS)]
    order = list(dict.fromkeys(lengths))
    return sorted(range(len(lengths)), key=lambda k: (order.index(lengths[k]), k))


def path_maximum(setup: Setup) -> Forms:
    size = (9, 12) if setup.tiny else (94, 125)
    boundary = torch.from_numpy(inputs.smooth(1, size, 13, scale=1 / 30)[0])
    paths, order = path_indices(size), published_order()
    return Forms(
        {"gather": torch.no_grad()(partial(gathered_maxima, boundary, paths))},
        partial(boundary_affinity, boundary, RADIUS),
        lambda expected, ours: float((expected - ours[order]).abs().max()),
        tolerance=0,
    )


HOT_SPOTS = [
    HotSpot(
        "pair-loss",
        "AffinityNet loss, forward + backward, 448x56x56",
        "both ends gathered by index",
        "shifted views, own backward",
        target=10,
        best=18.9,
        agreement="greatest relative difference of loss and gradient",
        make=pair_loss,
    ),
    HotSpot(
        "path-maximum",
        "IRN path maximum, inference, 94x125",
        "ways gathered by index, max-pooled",
        "maxima of shifted maps",
        target=8,
        best=16,
        agreement="greatest difference of affinities",
        make=path_maximum,
    ),
]
