"""From decoded images and masks to tensors: the joint augmentation of training, and the plain path of testing.

Everything random comes from torch's global generator; `wsss_core.data.dataset` seeds it for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from wsss_core.config.base import ResizeLimits, Training
from wsss_core.data.images import IGNORE

JointTransform = Callable[[np.ndarray, np.ndarray | None], tuple[Tensor, Tensor | None]]


class _Resize(v2.Transform):
    """Resize to the parameter `size`.

    Images: bilinear with antialiasing. Masks: nearest, with pixel centres aligned (torchvision's own choice for masks is
    the nearest of the old kind, which shifts them by up to half a pixel).
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image or a mask."""
        if isinstance(inpt, tv_tensors.Mask):
            mask = F.resize(inpt.as_subclass(Tensor)[None], params["size"], interpolation=v2.InterpolationMode.NEAREST_EXACT)
            return tv_tensors.wrap(mask[0], like=inpt)
        return F.resize(inpt, params["size"], interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


class ResizeTo(_Resize):
    """Resize to a height and a width in pixels, whatever the shape was."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = [height, width]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the size."""
        return {"size": self.size}


class ResizeLongerSide(_Resize):
    """Resize so that the longer side has a length in pixels drawn uniformly from [smallest, largest], both included.

    With `drawn` false only images beyond these limits are resized, to the nearer one.
    """

    def __init__(self, smallest: int, largest: int, drawn: bool = True) -> None:
        super().__init__()
        self.smallest, self.largest, self.drawn = smallest, largest, drawn

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size, or limit it."""
        height, width = v2.query_size(flat_inputs)
        if self.drawn:
            longer = int(torch.randint(self.smallest, self.largest + 1, ()))
        else:
            longer = min(max(height, width, self.smallest), self.largest)
        return {"size": _size_for(height, width, longer)}


def training_transform(training: Training, mean: Sequence[float], std: Sequence[float]) -> JointTransform:
    """Return the augmentation of a training block.

    In this order: longer side drawn from `resize` (or kept within its limits; or the image made a square of `crop_size`), horizontal flip, colour jitter, normalisation, random crop of
    `crop_size`. An image smaller than the crop lies at a random place in it; around it the image is 0 (the mean, after
    normalisation) and the mask is ignore, never background.

    Parameters
    ----------
    training
        Its `resize`, `flip`, `color_jitter` and `crop_size` are used.
    mean, std
        Per channel (R, G, B), for images in [0, 1].

    Returns
    -------
    callable
        (image uint8[H, W, 3], mask uint8[H, W] or None) -> (float32[3, S, S], int64[S, S] or None). Of several masks at once, uint8[M, H, W]:
        int64[M, S, S].
    """
    size, resize = training.crop_size, training.resize
    steps: list[v2.Transform] = []
    if isinstance(resize, ResizeLimits):
        steps.append(ResizeLongerSide(resize.at_least, resize.at_most, drawn=False))
    elif resize == "square":
        steps.append(ResizeTo(size, size))
    elif resize:
        steps.append(ResizeLongerSide(*resize))
    if training.flip > 0:
        steps.append(v2.RandomHorizontalFlip(training.flip))
    if training.color_jitter > 0:
        jitter = training.color_jitter
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    steps += [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(list(mean), list(std)),
        v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE}),
    ]
    transform = v2.Compose(steps)

    def apply(image: np.ndarray, mask: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
        if mask is None:
            return transform(tv_tensors.Image(_channels_first(image))).as_subclass(Tensor).contiguous(), None
        both = transform(tv_tensors.Image(_channels_first(image)), tv_tensors.Mask(_tensor(mask)))
        return both[0].as_subclass(Tensor).contiguous(), both[1].as_subclass(Tensor).long().contiguous()

    return apply


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32[3, H, W]: (image / 255 - mean) / std, from uint8[H, W, 3]; mean and std are for images in [0, 1]."""
    return F.normalize(F.to_dtype(_channels_first(image), torch.float32, scale=True), list(mean), list(std)).contiguous()


def _size_for(height: int, width: int, longer: int) -> list[int]:
    scale = longer / max(height, width)
    return [max(1, round(height * scale)), max(1, round(width * scale))]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _channels_first(image: np.ndarray) -> Tensor:
    """View uint8[H, W, 3] as [3, H, W]; torch's quick kernel for uint8 images wants exactly this memory layout."""
    return _tensor(image).permute(2, 0, 1)
