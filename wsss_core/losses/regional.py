"""Pairwise regional contrast (PRC) of MuSCLe: the best match between patches of two maps is drawn together, whatever their sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.losses.transport import sinkhorn
from wsss_core.nn.precision import at_least_float32


class Windows(NamedTuple):
    """Patches of one size on a regular grid, in cells. Positions at which they do not fit are left out."""

    height: int
    width: int
    stride_y: int
    stride_x: int


def regional_contrast(
    attended: Tensor, maps: Tensor, *, reg: float = 0.1, iterations: int = 10, generator: torch.Generator | None = None
) -> Tensor:
    """Earth mover's distance between the two patches of an image that are nearest to each other (MuSCLe, Eqs. 4 to 6).

    Parameters
    ----------
    attended
        float[N, G, h, w], M': of one crop, after the attention module. Its patches are of random size (`dynamic_windows`).
    maps
        float[N, G, h', w'], M~: of the other crop, 2x2 patches of half its size; they get no gradient.
    reg, iterations
        As for `sinkhorn` (0.1 and 10 in the published code).
    generator
        Draws the windows, once for the whole batch. None: PyTorch's own.

    Returns
    -------
    Scalar in [0, 1]: the distance of the pair with the lowest one, mean over images.

    Raises
    ------
    ValueError
        For maps of less than 2x2 cells, which have no 2x2 patches.

    Notes
    -----
    Source: Yuan et al. (MuSCLe), Section 3.2.3. A cell is its vector `with_background`; it costs 1 - cosine to move it to another; maps of
    an odd size leave out the cells between the patches. Decisions where the paper is silent (ours): all cells of a patch have the same
    mass; Eq. 6, an argmin, is the value at the minimum; and the transport plan has no gradient: of the optimum with its entropy, by the
    envelope theorem, a small change of costs changes the minimum by plan * change (of the value returned, without the entropy and after few
    iterations, that is an approximation). Of all pairs only the chosen one is computed
    again with a gradient. MuSCLe's published code does the opposite: costs have no gradient there, only the plan has.
    """
    dynamic = _patches(_unit_vectors(attended), dynamic_windows((attended.shape[2], attended.shape[3]), generator))
    static = _patches(_unit_vectors(maps.detach()), static_windows((maps.shape[2], maps.shape[3])))
    with torch.autocast(attended.device.type, enabled=False):
        with torch.no_grad():
            pairs = (1 - torch.einsum("napd,nbqd->nabpq", dynamic, static)).flatten(0, 2)
            distance, _ = _transport(pairs, reg, iterations)
            best = distance.view(len(dynamic), -1).argmin(dim=1)
        image, count = torch.arange(len(dynamic), device=best.device), static.shape[1]
        cost = 1 - dynamic[image, best // count] @ static[image, best % count].mT
        _, plan = _transport(cost.detach(), reg, iterations)
        return (plan * cost).sum(dim=(1, 2)).mean()


def with_background(maps: Tensor) -> Tensor:
    """Softmax of the foreground maps, and before them the background as 1 - their maximum (MuSCLe, Eqs. 4 and 5).

    Parameters
    ----------
    maps
        float[N, G, h, w], one per foreground class.

    Returns
    -------
    float[N, G+1, h, w] in [0, 1], background first; float32 also for lower precision.

    Notes
    -----
    The softmax of a single map is 1 everywhere, and there would be no background at all. For G = 1 the foreground is the sigmoid, which is
    the softmax over the map and a background of 0 (ours).
    """
    maps = at_least_float32(maps)
    foreground = maps.sigmoid() if maps.shape[1] == 1 else maps.softmax(dim=1)
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)


def dynamic_windows(size: tuple[int, int], generator: torch.Generator | None = None) -> Windows:
    """Draw the size of patches, from 1/3 to 1/2 of a map's, and their strides, from 1/2 to 1 of the patches' (both as published).

    Parameters
    ----------
    size
        (h, w) of the map, each at least 2.
    generator
        What draws, all whole numbers between the bounds being equally likely. None: PyTorch's own, on the CPU.

    Raises
    ------
    ValueError
        For a smaller map.
    """
    _check_size(size)
    height, width = (_draw(-(-side // 3), side // 2, generator) for side in size)
    return Windows(height, width, *(_draw(-(-side // 2), side, generator) for side in (height, width)))


def static_windows(size: tuple[int, int]) -> Windows:
    """Return the 2x2 patches of a map of size (h, w): of an odd size they leave out the middle. Raises ValueError as `dynamic_windows`."""
    _check_size(size)
    height, width = size
    return Windows(height // 2, width // 2, height - height // 2, width - width // 2)


def _transport(cost: Tensor, reg: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve `sinkhorn` of costs [B, n, m] for the same mass on all rows, and on all columns."""
    a, b = (cost.new_full((len(cost), cells), 1 / cells) for cells in cost.shape[1:])
    return sinkhorn(cost, a, b, reg=reg, iterations=iterations)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 2:
        raise ValueError(f"expected maps of at least 2x2 cells, got {size[0]}x{size[1]}")


def _draw(low: int, high: int, generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(low, high + 1, (), generator=generator, device=device))


def _unit_vectors(maps: Tensor) -> Tensor:
    return functional.normalize(with_background(maps), dim=1)


def _patches(vectors: Tensor, windows: Windows) -> Tensor:
    """Cut [N, D, h, w] into patches: [N, patches, cells, D]."""
    patches = vectors.unfold(2, windows.height, windows.stride_y).unfold(3, windows.width, windows.stride_x)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(1, 2)
