"""Backbones and decoders: strides, sizes, weights, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsss_core.config import Backbone, Segmenter
from wsss_core.errors import UserError
from wsss_core.nn.backbones import Features, prefers_channels_last, statistics
from wsss_core.nn.unet import _Transposed
from wsss_core.systems.segment import SegmentationNet


def backbone(name: str = "test_resnet", **changes: object) -> Backbone:
    return Backbone.model_validate({"backbone": name, "weights": "none", **changes})


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_output_stride_is_what_was_asked_for(stride: int) -> None:
    features = Features(backbone(output_stride=stride))
    final, levels = features(torch.zeros(1, 3, 96, 80))
    assert final.shape == (1, features.out_channels, 96 // stride, -(-80 // stride))
    assert [level.shape[1] for level in levels] == features.channels
    assert [96 // level.shape[2] for level in levels] == features.strides


def test_a_transformer_gives_maps_at_its_patch_size() -> None:
    final, _ = Features(backbone("test_vit", output_stride=16))(torch.zeros(1, 3, 48, 64))
    assert final.shape[-2:] == (3, 4)


def test_a_transformer_takes_images_of_any_size() -> None:
    final, _ = Features(backbone("test_vit", output_stride=16))(torch.zeros(1, 3, 50, 64))
    assert final.shape[-2:] == (4, 4)


def test_errors_are_one_line() -> None:
    with pytest.raises(UserError, match="no network 'resnet5O'; did you mean"):
        Features(backbone("resnet5O"))
    with pytest.raises(UserError, match="has stride 16, not output_stride 8"):
        Features(backbone("test_vit", output_stride=8))
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        Features(backbone(weights="gone.pth"))


def test_weights_come_from_a_local_file(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=0)
    state = {name: torch.full_like(value, 0.25).half() if value.is_floating_point() else value for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    features = Features(backbone(weights=str(tmp_path / "w.safetensors")))
    assert all(bool((p == 0.25).all()) and p.dtype == torch.float32 for p in features.net.parameters())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit test_resnet"):
        Features(backbone(weights=str(tmp_path / "w.safetensors")))


def test_statistics_are_the_weights_own_unless_given() -> None:
    assert statistics(backbone("resnet50"))[0] == (0.485, 0.456, 0.406)
    assert statistics(backbone("resnet50", mean=(0.5, 0.5, 0.5)))[0] == (0.5, 0.5, 0.5)


def test_channels_last_is_for_convolutional_networks() -> None:
    assert prefers_channels_last(timm.create_model("test_resnet"))
    assert prefers_channels_last(timm.create_model("mobilenetv2_035"))
    assert not prefers_channels_last(timm.create_model("test_convnext"))
    assert not prefers_channels_last(timm.create_model("test_vit"))


@pytest.mark.parametrize("decoder", ["deeplabv2", "deeplabv3", "deeplabv3plus", "unet"])
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_decoders_label_images_of_any_size(decoder: str, size: tuple[int, int]) -> None:
    config = Segmenter.model_validate({"backbone": "test_resnet", "weights": "none", "decoder": decoder, "decoder_channels": 16})
    net = SegmentationNet(config, num_classes=4).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize("decoder", ["deeplabv2", "deeplabv3", "deeplabv3plus", "unet"])
def test_every_parameter_of_a_decoder_learns(decoder: str) -> None:
    torch.manual_seed(0)
    config = Segmenter.model_validate({"backbone": "test_resnet", "weights": "none", "decoder": decoder, "decoder_channels": 16})
    net = SegmentationNet(config, num_classes=4).train()
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in net.decoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_a_learned_enlargement_trims_what_is_too_much_at_the_far_end() -> None:
    block = _Transposed(2, 0, 2, 2)
    block.conv1 = block.conv2 = nn.Identity()
    features = torch.randn(1, 2, 3, 3)
    whole = block.enlarge(features)
    assert whole.shape[-2:] == (6, 6)
    assert torch.equal(block(features, 5, 6), whole[..., :5, :]) and torch.equal(block(features, 6, 6), whole)


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_batch_normalisation_keeps_its_statistics_and_learns_its_scales(freeze: bool) -> None:
    features = Features(backbone(freeze_batch_norm=freeze)).train()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    final, _ = features(torch.randn(2, 3, 64, 64))
    final.square().mean().backward()
    changed = {name for name, value in features.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == (set() if freeze else {name for name in before if "running_" in name or "num_batches" in name})
    norms = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.weight.grad is not None for norm in norms)
    assert features.training and all(norm.training is not freeze for norm in norms)
