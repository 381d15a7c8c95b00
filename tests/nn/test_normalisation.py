"""Passes that leave no trace in the running statistics of batch normalisation."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]
from torch import Tensor, nn

from wsss_core.nn.normalisation import without_running_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), BatchNormAct2d(5), nn.BatchNorm2d(5, momentum=None))


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_batch_normalises_itself_and_leaves_no_trace() -> None:
    model, images = network(), torch.randn(4, 3, 5, 5)
    ordinary = copy.deepcopy(model)
    before, expected = buffers(model), ordinary(images)
    with without_running_statistics(model):
        output = model(images)
    assert torch.equal(output, expected) and same(buffers(model), before) and not same(buffers(ordinary), before)
    output.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(model.parameters(), ordinary.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    model(images)
    assert same(buffers(model), buffers(ordinary))  # afterwards they count again
    assert model.state_dict().keys() == ordinary.state_dict().keys()


def test_in_evaluation_and_for_a_frozen_part_nothing_changes() -> None:
    model, images = network(), torch.randn(4, 3, 5, 5)
    model(images)
    model[:2].eval()
    ordinary = copy.deepcopy(model)
    before, expected = buffers(model), ordinary(images)
    with without_running_statistics(model):
        assert torch.equal(model(images), expected)
    assert same(buffers(model), before)
    model.eval(), ordinary.eval()
    with without_running_statistics(model):
        assert torch.equal(model(images), copy.deepcopy(model)(images))


def test_a_layer_that_never_tracks_stays_so_and_errors_restore_the_others() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3), nn.SyncBatchNorm(3))
    with pytest.raises(KeyboardInterrupt), without_running_statistics(model):
        assert [layer.track_running_stats for layer in model] == [False, False, False]
        raise KeyboardInterrupt
    assert [layer.track_running_stats for layer in model] == [False, True, True]
    with without_running_statistics(model), without_running_statistics(model):
        pass
    assert [layer.track_running_stats for layer in model] == [False, True, True]
