"""The UNet decoder: a skip at every level of the backbone (Ronneberger et al. 2015)."""

from __future__ import annotations

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn


class UNet(nn.Module):
    """Nearest-neighbour upsampling and two convolutions per level (the decoder of segmentation-models-pytorch).

    Parameters
    ----------
    channels
        Of the backbone's levels, from fine to coarse.
    width
        Channels at the coarsest decoder level; halved at each finer one, at least 16.
    """

    def __init__(self, channels: list[int], num_classes: int, width: int) -> None:
        super().__init__()
        widths = [max(16, width >> level) for level in range(len(channels))]
        # Its list of levels begins with the image itself, which serves as no skip.
        self.decoder = UnetDecoder(encoder_channels=(3, *channels), decoder_channels=widths, n_blocks=len(channels))
        self.classify = nn.Conv2d(widths[-1], num_classes, 3, padding=1)

    def forward(self, levels: list[Tensor], images: Tensor) -> Tensor:
        """Return logits [N, C, H, W] at the images' own size."""
        return self.classify(self.decoder([images, *levels]))
