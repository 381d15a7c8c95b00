"""IRN's losses against loops over pairs and the original authors' values, their gradients against finite differences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_core.losses.boundary import boundary_losses, boundary_losses_of_pairs, path_maximum
from wsss_core.nn.neighbours import offset_list, pair_labels, path_cells

GOLDEN = Path(__file__).parents[3] / "shared/golden"
SIZES = [(5, 8), (1, 9), (9, 1), (2, 2), (1, 1)]


def make_maps(count: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge = torch.randn(count, 1, height, width, dtype=torch.float64, generator=generator)
    displacement = 2 * torch.randn(count, 2, height, width, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 2, 255], dtype=torch.uint8)[torch.randint(6, (count, height, width), generator=generator)]
    return edge, displacement, labels


def way_cells(boundary: Tensor, radius: int) -> dict[tuple[int, int, int, int], list[Tensor]]:
    """The values of all cells on the way of each pair (n, k, y, x) inside the image."""
    count, height, width = boundary.shape
    ways = {}
    for n in range(count):
        for k, (dy, dx) in enumerate(offset_list(radius)):
            for y in range(height - dy):
                for x in range(max(0, -dx), min(width, width - dx)):
                    ways[n, k, y, x] = [boundary[n, y + cell_y, x + cell_x] for cell_y, cell_x in path_cells(dy, dx)]
    return ways


def loops(edge: Tensor, displacement: Tensor, labels: Tensor, radius: int) -> dict[str, float]:
    values: dict[str, list[float]] = {name: [] for name in ("pos bg", "pos fg", "neg", "displacement_fg", "displacement_bg")}
    for (n, k, y, x), cells in way_cells(edge[:, 0].sigmoid(), radius).items():
        dy, dx = offset_list(radius)[k]
        affinity = 1 - max(cell.item() for cell in cells)
        a, b = int(labels[n, y, x]), int(labels[n, y + dy, x + dx])
        if 255 in (a, b):
            continue
        if a != b:
            values["neg"].append(-math.log(1 + 1e-5 - affinity))
            continue
        kind, target = ("fg", (dy, dx)) if a else ("bg", (0, 0))
        values["pos " + kind].append(-math.log(affinity + 1e-5))
        difference = (displacement[n, :, y, x] - displacement[n, :, y + dy, x + dx]).tolist()
        values["displacement_" + kind] += [abs(difference[i] - target[i]) for i in range(2)]
    means = {name: sum(entries) / (len(entries) + 1e-5) for name, entries in values.items()}
    return {"pos": means.pop("pos bg") / 2 + means.pop("pos fg") / 2, **means}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [2, 5])
def test_path_maximum_agrees_with_loops(size: tuple[int, int], radius: int) -> None:
    boundary = make_maps(2, *size)[0][:, 0]
    expected = boundary.new_zeros(2, len(offset_list(radius)), *size)
    for place, cells in way_cells(boundary, radius).items():
        expected[place] = torch.stack(cells).max()
    torch.testing.assert_close(path_maximum(boundary, radius), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (5, 1), (2, 2), (1, 1)])
def test_path_maximum_has_the_gradient_of_finite_differences(size: tuple[int, int]) -> None:
    boundary = make_maps(2, *size)[0][:, 0].requires_grad_()
    assert torch.autograd.gradcheck(lambda b: path_maximum(b, 4), boundary)


def test_only_one_of_several_largest_cells_gets_the_gradient() -> None:
    boundary = torch.ones(1, 5, 6, dtype=torch.float64, requires_grad=True)
    maximum = path_maximum(boundary, 4)
    (gradient,) = torch.autograd.grad(maximum.sum(), boundary)
    assert gradient.sum().item() == maximum.sum().item()
    assert gradient[0, -1, -1].item() == 0  # the first cell of a way is its start, and no way starts in the last corner


@pytest.mark.parametrize("size", [(6, 7), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("radius", [3, 5])
def test_losses_agree_with_loops(size: tuple[int, int], radius: int) -> None:
    maps = make_maps(2, *size)
    actual = {name: loss.item() for name, loss in boundary_losses(*maps, radius).items()}
    assert actual == pytest.approx(loops(*maps, radius), abs=1e-9)


@pytest.mark.parametrize("name", ["pos", "neg", "displacement_fg", "displacement_bg"])
def test_losses_have_the_gradients_of_finite_differences(name: str) -> None:
    edge, displacement, labels = make_maps(1, 4, 5)
    inputs = edge.requires_grad_(), displacement.requires_grad_()
    assert torch.autograd.gradcheck(lambda e, d: boundary_losses(e, d, labels, 3)[name], inputs)


@pytest.mark.parametrize("size", [(1, 1), (4, 5)])
@pytest.mark.parametrize("label", [255, 0, 3])
def test_terms_without_pairs_are_zero_and_differentiable(size: tuple[int, int], label: int) -> None:
    edge, displacement, labels = make_maps(2, *size)
    losses = boundary_losses(edge.requires_grad_(), displacement.requires_grad_(), torch.full_like(labels, label), 10)
    sum(losses.values()).backward()
    without = {"neg"} if size != (1, 1) and label != 255 else set(losses)
    without |= {"displacement_bg"} if label == 3 else {"displacement_fg"}
    assert {name for name, loss in losses.items() if loss.item() == 0} == without
    for value in (edge, displacement):
        assert value.grad is not None and value.grad.isfinite().all()
        assert bool(value.grad.any()) == (len(without) < 4)


def test_a_field_that_points_at_one_cell_has_no_displacement_loss() -> None:
    """The first channel is dy, and the field leads from a cell to the centre."""
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij"))
    towards = torch.tensor([2.0, 7.0]).view(2, 1, 1) - grid
    labels = torch.ones(1, 6, 9, dtype=torch.uint8)
    assert boundary_losses(torch.zeros(1, 1, 6, 9), towards[None], labels, 4)["displacement_fg"].item() == 0
    assert boundary_losses(torch.zeros(1, 1, 6, 9), -towards[None], labels, 4)["displacement_fg"].item() > 1
    assert boundary_losses(torch.zeros(1, 1, 6, 9), towards[None].flip(1), labels, 4)["displacement_fg"].item() > 1


def test_saturated_logits_and_low_precision_have_finite_gradients() -> None:
    edge, displacement, labels = make_maps(2, 6, 7)
    edge = (1000 * edge).bfloat16().requires_grad_()
    displacement = displacement.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = boundary_losses(edge, displacement, labels, 4)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert edge.grad is not None and edge.grad.isfinite().all()
    assert displacement.grad is not None and displacement.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    edge, displacement, labels = make_maps(2, 4, 5)
    with pytest.raises(ValueError, match=r"edge logits of shape \(2, 1, 4, 5\)"):
        boundary_losses(edge.repeat(1, 2, 1, 1), displacement, labels, 3)
    with pytest.raises(ValueError, match=r"displacement of shape \(2, 2, 4, 5\)"):
        boundary_losses(edge, displacement[:, :1], labels, 3)
    with pytest.raises(ValueError, match=r"labels of shape \(2, 4, 5\)"):
        boundary_losses(edge, displacement, labels[:, 1:], 3)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original authors' vectors are not on this machine")
def test_golden_vectors() -> None:
    with np.load(GOLDEN / "irn_training_losses_r6.npz", allow_pickle=False) as golden:
        edge, displacement, labels = (torch.from_numpy(golden[name]) for name in ("edge_logits", "displacement", "labels"))
        height, width = labels.shape[-2:]
        published = torch.zeros(height, width, dtype=torch.bool)  # the cells whose neighbours all lie inside
        published[: height - 5, 5 : width - 5] = True
        pairs = {kind: mask & published for kind, mask in pair_labels(labels, 6).items()}
        for kind, mask in pairs.items():
            assert mask.sum().item() == golden[f"{kind}_pairs"]
        losses = boundary_losses_of_pairs(edge, displacement, pairs, 6)
        names = {"pos": "pos_loss", "neg": "neg_loss", "displacement_fg": "dp_fg_loss", "displacement_bg": "dp_bg_loss"}
        for name, key in names.items():
            assert losses[name].item() == pytest.approx(golden[key].item(), rel=1e-6)
