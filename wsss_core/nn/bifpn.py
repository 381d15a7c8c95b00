"""BiFPN: a weighted pyramid of features that runs down and up again (EfficientDet: Tan, Pang & Le, CVPR 2020), as a segmenter's decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.errors import UserError

_EPS = 1e-4  # EfficientDet, Sec. 3.3
_EXTRA_LEVELS = 2  # P6 and P7, made from the backbone's last level


class BiFPN(nn.Module):
    """Repeated top-down and bottom-up fusion of a backbone's levels and two coarser ones.

    Parameters
    ----------
    channels
        Of the backbone's levels, from fine to coarse.
    width, layers
        Channels of all levels; how often both ways are gone.
    finest_only
        Make only what the finest output needs: the last layer ends after its way down. The result at that level is the same, and no
        parameter is left without gradient.

    Notes
    -----
    Source: EfficientDet, Sec. 3.2, 3.3 and, for the last level's offspring and the order SiLU, convolution, batch norm, its published
    code. As there: a lateral 1x1 convolution with batch norm per level, P6 a 1x1 convolution with batch norm and a 3x3 max-pooling of
    stride 2, P7 another pooling; nodes are depthwise separable 3x3 convolutions of SiLU of the weighted mean of their inputs. Its code
    gives the middle levels of the first layer a second lateral convolution for the edge from the input, the paper does not: one here.
    """

    def __init__(self, channels: list[int], width: int, layers: int, *, finest_only: bool = False) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_lateral(count, width) for count in [*channels, channels[-1]])
        levels = len(channels) + _EXTRA_LEVELS
        self.layers = nn.ModuleList(_Layer(levels, width, down_only=finest_only and layer == layers - 1) for layer in range(layers))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return [N, W, h_i, w_i] per level: those given, [N, D_i, h_i, w_i] from fine to coarse, and two more, each half as large.

        Neighbouring levels may have one size or any other; with `finest_only` the list holds but the first.
        """
        maps = [lateral(level) for lateral, level in zip(self.laterals, [*levels, levels[-1]], strict=True)]
        maps[-1] = _halve(maps[-1])
        maps.append(_halve(maps[-1]))
        for layer in self.layers:
            maps = layer(maps)
        return maps


class BiFPNDecoder(nn.Module):
    """BiFPN from stride 4 to the end, of which the finest level is classified (EfficientDet, Sec. 5.2: P2 to P7, P2 decides).

    Parameters
    ----------
    channels, strides
        Of the backbone's levels, from fine to coarse. Those finer than 4 are not used. Dilated backbones have several of one stride.
    num_classes
        C.
    width, layers
        Of the BiFPN. With one layer the finest level sees no more than the way down, that is, a weighted FPN.

    Raises
    ------
    UserError
        If there is no level of stride 4.

    Notes
    -----
    The classifier is one 1x1 convolution, as in MuSCLe's published code: its input is what BEACON contrasts. (EfficientDet has three
    layers of 256 channels there. MuSCLe's published code has another pyramid, without weights, and its finest level has stride 8.)
    """

    def __init__(self, channels: list[int], strides: list[int], num_classes: int, width: int, layers: int) -> None:
        super().__init__()
        if 4 not in strides:
            raise UserError(f"decoder: bifpn needs a level of stride 4; the backbone has {strides}")
        self.first = strides.index(4)
        self.pyramid = BiFPN(channels[self.first :], width, layers, finest_only=True)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def features(self, levels: list[Tensor]) -> Tensor:
        """Return the finest map [N, W, h, w] at stride 4; it may be negative (a batch norm comes last)."""
        return self.pyramid(levels[self.first :])[0]

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [N, C, h, w] at stride 4."""
        return self.classify(self.features(levels))


class WeightedMean(nn.Module):
    """Fast normalised fusion: sum of w_i x_i / (eps + sum of w_j), w = relu(learned weights), eps 1e-4 (EfficientDet, Sec. 3.3)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Return the weighted mean of maps of one shape."""
        weights = self.weights.relu()
        first, *others = (weights / (weights.sum() + _EPS)).unbind()
        total = first * inputs[0]
        for weight, value in zip(others, inputs[1:], strict=True):
            total = total + weight * value
        return total


class _Node(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fuse = WeightedMean(inputs)
        self.convolve = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.convolve(self.fuse(list(inputs)))


class _Layer(nn.Module):
    """Down: all levels but the coarsest, from it and the coarser one. Up: all but the finest, the middle ones also from their input."""

    def __init__(self, levels: int, width: int, down_only: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Node(2, width) for _ in range(levels - 1))
        up = () if down_only else range(1, levels)
        self.up = nn.ModuleList(_Node(3 if level < levels - 1 else 2, width) for level in up)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        on_the_way = [*inputs]
        for level in reversed(range(len(self.down))):
            coarser = functional.interpolate(on_the_way[level + 1], size=inputs[level].shape[-2:], mode="nearest")
            on_the_way[level] = self.down[level](inputs[level], coarser)
        outputs = on_the_way[:1]
        for level, node in enumerate(self.up, start=1):
            finer = _shrink(outputs[-1], inputs[level])
            middle = [on_the_way[level]] if level < len(self.up) else []
            outputs.append(node(inputs[level], *middle, finer))
        return outputs


def _lateral(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))


def _halve(maps: Tensor) -> Tensor:
    return functional.max_pool2d(maps, 3, stride=2, padding=1)


def _shrink(maps: Tensor, like: Tensor) -> Tensor:
    """Max-pool to the size of `like`: as EfficientDet where that halves the size (rounded up), otherwise over equal parts."""
    height, width = maps.shape[-2:]
    size = like.shape[-2:]
    if size == (height, width):
        return maps
    if size == (-(-height // 2), -(-width // 2)):
        return _halve(maps)
    return functional.adaptive_max_pool2d(maps, size)
