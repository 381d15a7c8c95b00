"""System `affinity`: its loss, its affinities of any image, mirrored ones too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mirrored_pairs import greatest_gap
from score_trees import CLASSES, NETWORK
from torch import nn

from wsss_core.config import Walk
from wsss_core.nn.neighbours import offset_list
from wsss_core.systems import make_system
from wsss_core.systems.affinity import AffinitySystem
from wsss_core.systems.base import Progress
from wsss_core.systems.pairs import labels_on_grid


def made(**changes: Any) -> tuple[AffinitySystem, nn.Module]:
    torch.manual_seed(0)
    system = make_system({"system": "affinity", **NETWORK, **changes}, len(CLASSES), "test")
    assert isinstance(system, AffinitySystem)
    return system, system.build().eval()


def batch_of(size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0, 1, 2, 255])[torch.randint(4, (2, size // 8, size // 8), generator=generator)]
    target = target.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return {"image": torch.randn(2, 3, size, size, generator=generator), "target": target}


def test_the_loss_is_that_of_the_paper() -> None:
    """Background / 4 + foreground / 4 + unlike / 2, each the mean of -log over its pairs, pair by pair."""
    system, model = made()
    batch = batch_of()
    features = model(batch["image"])
    labels = labels_on_grid(batch["target"], (8, 8))
    penalties: dict[str, list[torch.Tensor]] = {"background": [], "foreground": [], "negative": []}
    for n in range(2):
        for y in range(8):
            for x in range(8):
                for dy, dx in offset_list(3):
                    if y + dy > 7 or not 0 <= x + dx <= 7:
                        continue
                    here, there = int(labels[n, y, x]), int(labels[n, y + dy, x + dx])
                    if 255 in (here, there):
                        continue
                    affinity = (-(features[n, :, y, x] - features[n, :, y + dy, x + dx]).abs().mean()).exp()
                    kind = "negative" if here != there else "foreground" if here else "background"
                    penalties[kind].append(-(1 + 1e-5 - affinity if kind == "negative" else affinity + 1e-5).log())
    expected = {kind: torch.stack(terms).mean() * (0.5 if kind == "negative" else 0.25) for kind, terms in penalties.items()}
    losses = system.losses(model, batch, Progress(0, 0, 1))
    assert set(losses) == set(expected)
    for kind, value in expected.items():
        torch.testing.assert_close(losses[kind], value, rtol=1e-4, atol=1e-6)


def test_images_without_labels_cost_nothing_and_break_nothing() -> None:
    system, model = made()
    batch = {**batch_of(), "target": torch.full((2, 64, 64), 255)}
    losses = system.losses(model.train(), batch, Progress(0, 0, 1))
    torch.stack(list(losses.values())).sum().backward()
    assert all(float(value.detach()) == 0 for value in losses.values())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_training_parts_what_the_labels_part() -> None:
    system, model = made(freeze_backbone=True)
    batch = batch_of()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    totals = []
    for _ in range(15):
        total = torch.stack(list(system.losses(model, batch, Progress(0, 0, 1)).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total))
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize("size", [(64, 64), (9, 5), (65, 47), (150, 203)])
@pytest.mark.parametrize("radius", [2, 5])
def test_affinities_lie_on_the_grid_of_any_image(size: tuple[int, int], radius: int) -> None:
    system, model = made(radius=radius)
    with torch.no_grad():
        found = system.affinities(model, torch.randn(1, 3, *size), Walk(radius=7))
    assert found.boundary is None  # and the radius is that of the training
    assert found.values.shape == (len(offset_list(radius)), -(-size[0] // 8), -(-size[1] // 8))
    assert found.values.dtype == torch.float32 and bool(((found.values >= 0) & (found.values <= 1)).all())


@pytest.mark.parametrize("size", [(64, 64), (33, 50), (41, 47)])
def test_the_mirrored_image_has_the_mirrored_affinities(size: tuple[int, int]) -> None:
    """Exactly so with `flip`; a network alone knows left from right."""
    system, model = made()
    image = torch.randn(1, 3, *size)
    gap = {}
    for flip in (True, False):
        with torch.no_grad():
            plain, mirrored = (system.affinities(model, each, Walk(flip=flip)).values for each in (image, image.flip(-1)))
        gap[flip] = greatest_gap(plain, mirrored, 3)
    assert gap[True] < 1e-5 and gap[False] > 1e-3
