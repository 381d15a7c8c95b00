"""BiFPN: sizes, the weighted mean, the graph of its edges, parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.errors import UserError
from wsss_core.nn.bifpn import BiFPN, BiFPNDecoder, WeightedMean

CHANNELS, STRIDES = [4, 6, 8, 10, 12], [2, 4, 8, 16, 32]
Size = tuple[int, int]


def halves(size: Size, times: int) -> list[Size]:
    sizes = [size]
    for _ in range(times):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def levels(channels: list[int], sizes: list[Size]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, count, *size) for count, size in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(
    ("sizes", "coarser"),
    [
        (halves((32, 24), 3), [(2, 2), (1, 1)]),
        (halves((37, 21), 3), [(3, 2), (2, 1)]),  # odd: 37, 19, 10, 5
        ([(37, 21), (19, 11), (19, 11), (19, 11)], [(10, 6), (5, 3)]),  # dilated to stride 8
        ([(36, 20), (17, 9), (8, 4), (3, 2)], [(2, 1), (1, 1)]),  # rounded down, as no known backbone does
    ],
)
def test_levels_of_any_size(sizes: list[Size], coarser: list[Size], layers: int) -> None:
    outputs = BiFPN(CHANNELS[1:], 8, layers)(levels(CHANNELS[1:], sizes))
    assert [output.shape for output in outputs] == [(2, 8, *size) for size in [*sizes, *coarser]]


@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_the_decoder_classifies_the_level_of_stride_4(size: Size) -> None:
    decoder = BiFPNDecoder(CHANNELS, STRIDES, num_classes=5, width=8, layers=2).eval()
    given = levels(CHANNELS, halves(size, 5)[1:])
    features = decoder.features(given)
    assert features.shape == (2, 8, *given[1].shape[-2:])
    assert decoder(given).shape == (2, 5, *given[1].shape[-2:])
    torch.testing.assert_close(decoder(given), decoder.classify(features))
    given[0].fill_(float("nan"))  # finer levels are not used
    assert torch.isfinite(decoder(given)).all()


def test_a_level_of_stride_4_is_needed() -> None:
    with pytest.raises(UserError, match=r"bifpn needs a level of stride 4; the backbone has \[16, 16\]"):
        BiFPNDecoder([8, 8], [16, 16], num_classes=5, width=8, layers=1)


def test_weighted_mean_by_hand() -> None:
    fuse = WeightedMean(3)
    one, two, three = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    assert fuse([one, two, three]).item() == pytest.approx(6 / 3.0001)
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor([0.5, -2.0, 1.5]))  # the negative one counts as 0
    assert fuse([one, two, three]).item() == pytest.approx(5 / 2.0001)
    with torch.no_grad():
        fuse.weights.fill_(-1)
    assert fuse([one, two, three]).item() == 0


class Probe(nn.Module):
    """Stands for the convolution of a node: doubles."""

    def forward(self, maps: Tensor) -> Tensor:
        return 2 * maps


def with_plain_nodes(layers: int) -> BiFPN:
    """A BiFPN of two given levels and width 1 whose laterals are identities and whose nodes double what they fused, with known weights."""
    pyramid = BiFPN([1, 1], 1, layers)
    pyramid.laterals = nn.ModuleList(nn.Identity() for _ in pyramid.laterals)
    weight = 0
    for layer in pyramid.layers:
        for node in [*layer.down, *layer.up]:
            node.convolve = Probe()
            with torch.no_grad():
                for index in range(len(node.fuse.weights)):
                    weight += 1
                    node.fuse.weights[index] = weight
    return pyramid


def fused(weights: list[float], values: list[Tensor]) -> Tensor:
    return 2 * sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) + 1e-4)  # type: ignore[return-value]


def test_one_layer_by_hand() -> None:
    def up(maps: Tensor, factor: int = 2) -> Tensor:
        return maps.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)

    def down(maps: Tensor) -> Tensor:
        return functional.max_pool2d(maps, 3, stride=2, padding=1)

    p2, p3 = levels([1, 1], [(16, 16), (8, 8)])
    p4 = down(p3)  # the lateral of the last level and the pooling of its result
    p5 = down(p4)
    t4 = fused([5, 6], [p4, up(p5)])
    t3 = fused([3, 4], [p3, up(t4)])
    o2 = fused([1, 2], [p2, up(t3)])
    o3 = fused([7, 8, 9], [p3, t3, down(o2)])
    o4 = fused([10, 11, 12], [p4, t4, down(o3)])
    o5 = fused([13, 14], [p5, down(o4)])
    for ours, expected in zip(with_plain_nodes(1)([p2, p3]), [o2, o3, o4, o5], strict=True):
        torch.testing.assert_close(ours, expected)


def test_levels_of_one_size_are_fused_as_they_are() -> None:
    p2, p3 = levels([1, 1], [(8, 6), (8, 6)])
    outputs = with_plain_nodes(1)([p2, p3])
    p4 = functional.max_pool2d(p3, 3, stride=2, padding=1)
    t4 = fused([5, 6], [p4, functional.interpolate(functional.max_pool2d(p4, 3, stride=2, padding=1), size=(4, 3), mode="nearest")])
    t3 = fused([3, 4], [p3, functional.interpolate(t4, size=(8, 6), mode="nearest")])
    o2 = fused([1, 2], [p2, t3])
    torch.testing.assert_close(outputs[0], o2)
    torch.testing.assert_close(outputs[1], fused([7, 8, 9], [p3, t3, o2]))


def test_a_node_is_batch_norm_of_a_separable_convolution_of_silu() -> None:
    torch.manual_seed(0)
    node = BiFPN([3, 3], 4, 1).layers[0].down[0]
    fine, coarse = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    mean = (fine + coarse) / 2.0001
    depth, point = (module.weight for module in node.convolve if isinstance(module, nn.Conv2d))
    assert depth.shape == (4, 1, 3, 3) and point.shape == (4, 4, 1, 1)
    mixed = functional.conv2d(functional.conv2d(mean * mean.sigmoid(), depth, padding=1, groups=4), point)
    expected = (mixed - mixed.mean(dim=(0, 2, 3), keepdim=True)) / (mixed.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(node(fine, coarse), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_only_what_the_finest_level_needs_is_made_and_its_result_is_the_same(layers: int) -> None:
    whole, part = BiFPN(CHANNELS[1:], 8, layers).eval(), BiFPN(CHANNELS[1:], 8, layers, finest_only=True).eval()
    part.load_state_dict(whole.state_dict(), strict=False)
    assert set(part.state_dict()) < set(whole.state_dict())
    given = levels(CHANNELS[1:], halves((32, 24), 3))
    outputs = part(given)
    assert len(outputs) == 1
    torch.testing.assert_close(outputs[0], whole(given)[0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_parameter_learns(layers: int) -> None:
    torch.manual_seed(1)
    decoder = BiFPNDecoder(CHANNELS, STRIDES, num_classes=5, width=8, layers=layers)
    (decoder(levels(CHANNELS, halves((128, 128), 5)[1:])) ** 3).mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []
    whole = BiFPN(CHANNELS[1:], 8, layers)
    sum((output**3).mean() for output in whole(levels(CHANNELS[1:], halves((64, 64), 3)))).backward()  # type: ignore[union-attr]
    assert [name for name, p in whole.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("width", [8, 20])
def test_number_of_parameters(layers: int, width: int) -> None:
    counts, norm, given = CHANNELS[1:], 2 * width, 6  # levels P2 to P7
    laterals = sum((count + 2) * width for count in [*counts, counts[-1]])
    node = 9 * width + width**2 + norm
    down, up = (given - 1) * (node + 2), (given - 2) * (node + 3) + node + 2

    def parameters(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert parameters(BiFPN(counts, width, layers)) == laterals + layers * (down + up)
    decoder = BiFPNDecoder(CHANNELS, STRIDES, num_classes=5, width=width, layers=layers)
    assert parameters(decoder) == laterals + layers * (down + up) - up + (width + 1) * 5


def test_it_can_be_traced() -> None:
    decoder = BiFPNDecoder(CHANNELS, STRIDES, num_classes=5, width=8, layers=2).eval()
    given = levels(CHANNELS, halves((64, 48), 5)[1:])
    traced = torch.jit.trace(decoder, (given,), check_trace=False)
    torch.testing.assert_close(traced(given), decoder(given))
