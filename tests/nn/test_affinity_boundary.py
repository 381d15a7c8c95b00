"""AffinityNet and the boundary network: grids for any size, frozen backbones, the mean shift, every layer learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Affinity, Boundary
from wsss_core.errors import UserError
from wsss_core.nn.affinity import AffinityNet
from wsss_core.nn.backbones import Features
from wsss_core.nn.boundary import BoundaryNet, MeanShift

SIZES = [(64, 64), (1, 1), (7, 9), (65, 47), (203, 131), (30, 600)]


def affinity_net(**changes: Any) -> AffinityNet:
    torch.manual_seed(0)
    return AffinityNet(Affinity.model_validate({"backbone": "test_resnet", "weights": "none", **changes}))


def boundary_net(**changes: Any) -> BoundaryNet:
    torch.manual_seed(0)
    return BoundaryNet(Boundary.model_validate({"backbone": "test_resnet", "weights": "none", **changes}))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_affinity_net_has_a_cell_for_every_8_pixels(size: tuple[int, int], output_stride: int) -> None:
    net = affinity_net(output_stride=output_stride).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, *size)).shape == (2, 448, -(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize("size", SIZES)
def test_boundary_net_has_a_cell_for_every_4_pixels(size: tuple[int, int]) -> None:
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    with torch.no_grad():
        logits, displacement = boundary_net().eval()(torch.zeros(2, 3, *size))
    assert displacement is not None
    assert logits.shape == (2, 1, height, width)
    assert displacement.shape == (2, 2, height, width)


@pytest.mark.parametrize("make", [affinity_net, boundary_net])
def test_nothing_is_cropped(make: Any) -> None:
    """The last pixels of an image larger than 512 decide the last cells, and these alone among the corners."""
    net = make().eval()
    images = torch.rand(1, 3, 30, 601, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., -6:, -6:] = 1 - changed[..., -6:, -6:]
    with torch.no_grad():
        before, after = (out[0] if isinstance(out := net(x), tuple) else out for x in (images, changed))
    difference = (before - after).abs().amax(dim=(0, 1))
    assert difference[-1, -1] > 1e-4
    assert difference[-1, -1] > 100 * difference[:, 0].max()


@pytest.mark.parametrize("make", [affinity_net, boundary_net])
def test_an_image_has_the_same_result_alone_and_in_a_batch(make: Any) -> None:
    net = make().eval()
    images = torch.rand(3, 3, 37, 50)
    with torch.no_grad():
        together = net(images)
        alone = [net(image[None]) for image in images]
    if isinstance(together, Tensor):
        together, alone = (together,), [(each,) for each in alone]
    for part, singles in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(part, torch.cat(singles), rtol=1e-4, atol=1e-5)


def test_affinity_net_sees_the_three_deepest_levels() -> None:
    """PSA, Fig. 4, written out."""
    net = affinity_net(output_stride=16).eval()
    images = torch.rand(1, 3, 70, 41)
    with torch.no_grad():
        _, levels = net.features(images)
        parts = []
        for level, layer, width in zip(levels[-3:], net.reduce, (64, 128, 256), strict=True):
            reduced = functional.elu(functional.conv2d(level, layer.weight))
            assert reduced.shape[1] == width
            parts.append(functional.interpolate(reduced, size=(9, 6), mode="bilinear", align_corners=False))
        expected = functional.elu(functional.conv2d(torch.cat(parts, dim=1), net.mix.weight))
        torch.testing.assert_close(net(images), expected)


def test_affinity_net_needs_three_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Features.__init__

    def with_two_levels(self: Features, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.channels = self.channels[-2:]

    monkeypatch.setattr(Features, "__init__", with_two_levels)
    with pytest.raises(UserError, match="AffinityNet needs 3 feature levels, test_resnet has 2"):
        affinity_net()


def test_a_transformer_has_levels_of_one_stride() -> None:
    images = torch.zeros(1, 3, 50, 70)
    with torch.no_grad():
        assert affinity_net(backbone="test_vit", output_stride=16).eval()(images).shape == (1, 448, 7, 9)
        logits, displacement = boundary_net(backbone="test_vit", output_stride=16).eval()(images)
    assert displacement is not None
    assert (logits.shape, displacement.shape) == ((1, 1, 13, 18), (1, 2, 13, 18))


def test_the_displacement_head_can_be_left_out() -> None:
    net = boundary_net(displacement=False)
    logits, displacement = net(torch.rand(2, 3, 33, 33))
    assert logits.shape == (2, 1, 9, 9) and displacement is None
    assert not [name for name in net.state_dict() if name.startswith("displacement")]


@pytest.mark.parametrize("make", [affinity_net, boundary_net])
@pytest.mark.parametrize("frozen", [True, False])
def test_every_layer_learns_but_a_frozen_backbone(make: Any, frozen: bool) -> None:
    net = make(freeze_backbone=frozen).train()
    out = net(torch.randn(2, 3, 64, 64))
    sum(part.square().mean() for part in (out if isinstance(out, tuple) else (out,))).backward()

    def learns(p: nn.Parameter) -> bool:
        return p.grad is not None and bool(p.grad.abs().sum() > 0)

    head = [name for name, p in net.named_parameters() if not name.startswith("features.") and not learns(p)]
    backbone = [p.grad is not None for p in net.features.parameters()]  # timm's residual branches start at 0, with gradients of 0
    assert head == []
    assert not any(backbone) if frozen else all(backbone)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_keeps_its_statistics_in_training(frozen: bool) -> None:
    net = affinity_net(freeze_backbone=frozen)
    before = {name: value.clone() for name, value in net.features.state_dict().items()}
    for mode in (True, False, True):  # as the loop does before every epoch
        net.train(mode)
    net(torch.randn(2, 3, 64, 64))
    same = all(torch.equal(value, before[name]) for name, value in net.features.state_dict().items())
    assert same is frozen
    assert net.features.net.training is not frozen
    assert net.training and net.reduce.training
    assert all(p.requires_grad is not frozen for p in net.features.parameters())


def test_the_mean_is_subtracted_in_evaluation_alone() -> None:
    shift = MeanShift(2)
    shift.mean.copy_(torch.tensor([1.5, -2.0]))
    values = torch.randn(3, 2, 4, 5)
    assert torch.equal(shift.train()(values), values)
    shifted = shift.eval()(values)
    torch.testing.assert_close(shifted[:, 0], values[:, 0] - 1.5)
    torch.testing.assert_close(shifted[:, 1], values[:, 1] + 2)
    assert "displacement.mean_shift.mean" in boundary_net().state_dict()
