"""The UNet decoder: a skip at every level of the backbone (Ronneberger et al. 2015)."""

from __future__ import annotations

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder, UnetDecoderBlock
from torch import Tensor, nn


class UNet(nn.Module):
    """Upsampling and two convolutions per level (the decoder of segmentation-models-pytorch).

    Parameters
    ----------
    channels, strides
        Of the backbone's levels, from fine to coarse.
    width
        Channels at the coarsest decoder level; halved at each finer one, at least 16.
    upsampling
        `nearest`, `bilinear` or `transposed`: a transposed convolution, learned, whose kernel is as wide as its stride. Between levels of
        the same stride (a dilated backbone) nothing is upsampled.
    """

    def __init__(self, channels: list[int], strides: list[int], num_classes: int, width: int, upsampling: str = "nearest") -> None:
        super().__init__()
        widths = [max(16, width >> level) for level in range(len(channels))]
        mode = "nearest" if upsampling == "transposed" else upsampling
        # Its list of levels begins with the image itself, which serves as no skip.
        self.decoder = UnetDecoder((3, *channels), widths, n_blocks=len(channels), interpolation_mode=mode)
        if upsampling == "transposed":
            inputs, skips = [channels[-1], *widths[:-1]], [*channels[-2::-1], 0]
            factors = [coarse // fine for coarse, fine in zip(strides[::-1], [*strides[-2::-1], 1], strict=True)]
            self.decoder.blocks = nn.ModuleList(map(_Transposed, inputs, skips, widths, factors))
        self.classify = nn.Conv2d(widths[-1], num_classes, 3, padding=1)

    def forward(self, levels: list[Tensor], images: Tensor) -> Tensor:
        """Return logits [N, C, H, W] at the images' own size."""
        return self.classify(self.decoder([images, *levels]))


class _Transposed(UnetDecoderBlock):
    """A block that learns its upsampling by `factor`."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, factor: int) -> None:
        super().__init__(in_channels, skip_channels, out_channels)
        self.enlarge: nn.Module = nn.Identity()
        if factor > 1:
            self.enlarge = nn.ConvTranspose2d(in_channels, in_channels, factor, stride=factor)

    def forward(self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None) -> Tensor:
        # A level of odd size was rounded up when it was halved: what is too much at the far end falls off.
        enlarged = self.enlarge(feature_map)[..., :target_height, :target_width]
        return super().forward(enlarged, target_height, target_width, skip_connection)
