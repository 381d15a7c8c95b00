"""DeepLab decoders: v2 (sum of dilated convolutions), v3 (ASPP) and v3+ (ASPP and one low-level skip)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead


def atrous_rates(output_stride: int) -> tuple[int, int, int]:
    """Return ASPP's dilations: 6, 12, 18 at stride 16 and coarser, twice that at stride 8 (Chen et al. 2017, Sec. 3.3)."""
    return (12, 24, 36) if output_stride == 8 else (6, 12, 18)


class DeepLabV2(nn.Module):
    """Sum of four dilated 3x3 convolutions to the classes (Chen et al. 2016, "ASPP-L").

    Parameters
    ----------
    in_channels, num_classes
        Channels of the last feature level; C.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: tuple[int, ...] = (6, 12, 18, 24)) -> None:
        super().__init__()
        branches = [nn.Conv2d(in_channels, num_classes, 3, padding=r, dilation=r) for r in rates]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
            if branch.bias is not None:
                nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [N, C, h, w] at the stride of the last level."""
        return torch.stack([branch(levels[-1]) for branch in self.branches]).sum(dim=0)


class DeepLabV3(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (Chen et al. 2017)."""

    def __init__(self, in_channels: int, num_classes: int, output_stride: int) -> None:
        super().__init__()
        self.head = DeepLabHead(in_channels, num_classes, atrous_rates(output_stride))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [N, C, h, w] at the stride of the last level."""
        return self.head(levels[-1])


class DeepLabV3Plus(nn.Module):
    """ASPP, upsampled and joined with a low-level feature map of stride 4 (Chen et al. 2018, Fig. 2).

    Parameters
    ----------
    in_channels, low_channels
        Channels of the last level and of the level with stride 4.
    low_level
        Position of that level.
    width
        Channels of the decoder (256 in the paper; the skip is reduced to 48, here in proportion).
    separable
        The 3x3 convolutions after the join are depthwise separable ones, as the paper's own fastest and best networks have them (Sec. 3.1 and 4.3; in
        ASPP, which sees few cells, they stay full: ours). Measured with 256 channels at 224 pixels: the two together take a quarter of the time.
    """

    def __init__(
        self, in_channels: int, low_channels: int, low_level: int, num_classes: int, output_stride: int, width: int, separable: bool = False
    ) -> None:
        super().__init__()
        self.low_level = low_level
        skip = max(8, width * 48 // 256)
        self.aspp = ASPP(in_channels, atrous_rates(output_stride), width)
        self.reduce = _conv(low_channels, skip, 1)
        convolve = _separable_conv if separable else _conv
        self.fuse = nn.Sequential(convolve(width + skip, width, 3), convolve(width, width, 3), nn.Conv2d(width, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [N, C, h, w] at stride 4."""
        low = self.reduce(levels[self.low_level])
        high = functional.interpolate(self.aspp(levels[-1]), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([high, low], dim=1))


def _conv(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _separable_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, in_channels, kernel, groups=in_channels), _conv(in_channels, out_channels, 1))
