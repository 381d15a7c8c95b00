"""System `boundary`: its loss, the mean shift, its affinities of any image, mirrored ones too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mirrored_pairs import greatest_gap
from score_trees import CLASSES, NETWORK
from torch import nn

from wsss_core.config import Walk
from wsss_core.losses.boundary import boundary_losses
from wsss_core.nn.boundary import BoundaryNet
from wsss_core.nn.neighbours import offset_list, path_cells
from wsss_core.systems import make_system
from wsss_core.systems.base import Progress
from wsss_core.systems.boundary import BoundarySystem
from wsss_core.systems.pairs import labels_on_grid


def made(**changes: Any) -> tuple[BoundarySystem, BoundaryNet]:
    torch.manual_seed(0)
    system = make_system({"system": "boundary", **NETWORK, **changes}, len(CLASSES), "test")
    model = system.build().eval()
    assert isinstance(system, BoundarySystem) and isinstance(model, BoundaryNet)
    nn.init.normal_(model.edge.weight)  # boundaries that differ
    return system, model


def batch_of(images: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor([0, 1, 2, 255])[torch.randint(4, (images, 8, 8), generator=generator)]
    target = target.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return {"image": torch.randn(images, 3, 64, 64, generator=generator), "target": target}


@pytest.mark.parametrize("displacement", [True, False])
def test_the_loss_is_half_of_each_term(displacement: bool) -> None:
    system, model = made(displacement=displacement)
    batch = batch_of()
    logits, field = model(batch["image"])
    terms = boundary_losses(logits, field, labels_on_grid(batch["target"], (16, 16)), 3)
    losses = system.losses(model, batch, Progress(0, 0, 1))
    names = {"pos", "neg"} | ({"displacement_fg", "displacement_bg"} if displacement else set())
    assert set(losses) == set(terms) == names
    for name, value in losses.items():
        torch.testing.assert_close(value, terms[name] / 2)
        assert value > 0


def test_the_mean_shift_is_the_mean_over_all_images() -> None:
    """Over the cells with a sure label, whatever the batches. What was there before does not matter."""
    system, model = made()
    assert model.displacement is not None
    model.displacement.mean_shift.mean.copy_(torch.tensor([3.0, -7.0]))
    batches = [batch_of(3, seed=1), batch_of(1, seed=2)]
    with torch.no_grad():
        fields = [model.train()(image[None])[1] for batch in batches for image in batch["image"]]  # training: not shifted
    labels = [labels_on_grid(batch["target"], fields[0].shape[-2:]) for batch in batches]
    sure = torch.cat(labels) != 255
    assert 0 < int(sure.sum()) < sure.numel()
    expected = torch.cat(fields).double().permute(0, 2, 3, 1)[sure].mean(dim=0).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    system.after_training(model, iter(batches))
    shift = model.displacement.mean_shift.mean
    torch.testing.assert_close(shift, expected, rtol=1e-4, atol=1e-6)
    assert shift.abs().min() > 1e-4 and not shift.requires_grad
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == ["displacement.mean_shift.mean"]
    with torch.no_grad():
        shifted = torch.cat([model(batch["image"])[1] for batch in batches])
    torch.testing.assert_close(shifted.permute(0, 2, 3, 1)[sure].mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    assert model.load_state_dict(model.state_dict())  # the buffer is an ordinary tensor


def test_without_the_head_nothing_is_shifted() -> None:
    system, model = made(displacement=False)

    def batches() -> Any:
        raise AssertionError("no pass is needed")
        yield

    system.after_training(model, batches())


@pytest.mark.parametrize("size", [(64, 64), (9, 5), (65, 47), (150, 203)])
@pytest.mark.parametrize("radius", [2, 5])
def test_affinities_lie_on_the_grid_of_any_image(size: tuple[int, int], radius: int) -> None:
    system, model = made(radius=4)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    with torch.no_grad():
        found = system.affinities(model, torch.randn(1, 3, *size), Walk(radius=radius))
    assert found.boundary is not None and found.boundary.shape == grid
    assert found.values.shape == (len(offset_list(radius)), *grid)  # the radius is that of the walk
    assert bool(((found.values >= 0) & (found.values <= 1)).all())
    assert bool(((found.boundary >= 0) & (found.boundary <= 1)).all())


def test_the_greatest_boundary_on_the_way_parts_a_pair() -> None:
    system, model = made()
    image = torch.randn(1, 3, 30, 26)
    with torch.no_grad():
        found = system.affinities(model, image, Walk(radius=4, flip=False))
        boundary = model(image)[0].sigmoid()[0, 0]
    assert found.boundary is not None and torch.equal(found.boundary, boundary) and boundary.std() > 1e-3
    height, width = boundary.shape
    for k, (dy, dx) in enumerate(offset_list(4)):
        for y in range(height):
            for x in range(width):
                inside = y + dy < height and 0 <= x + dx < width
                expected = 1 - max(float(boundary[y + v, x + u]) for v, u in path_cells(dy, dx)) if inside else 0
                assert float(found.values[k, y, x]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (41, 47)])
def test_the_mirrored_image_has_the_mirrored_affinities(size: tuple[int, int]) -> None:
    """Exactly so with `flip`; a network alone knows left from right."""
    system, model = made()
    image = torch.randn(1, 3, *size)
    gap = {}
    for flip in (True, False):
        with torch.no_grad():
            plain, mirrored = (system.affinities(model, each, Walk(radius=3, flip=flip)) for each in (image, image.flip(-1)))
        assert plain.boundary is not None and mirrored.boundary is not None
        of_the_map = float((plain.boundary - mirrored.boundary.flip(-1)).abs().max())
        gap[flip] = max(of_the_map, greatest_gap(plain.values, mirrored.values, 3))
    assert gap[True] < 1e-5 and gap[False] > 1e-3
