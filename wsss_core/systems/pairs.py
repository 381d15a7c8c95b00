"""What AffinityNet and the boundary network share: where they start, what they learn from, and what they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Walk
from wsss_core.data.images import read_image, read_mask
from wsss_core.data.index import DataIndex, Record
from wsss_core.systems.base import Sample, System
from wsss_core.systems.initial import start_from_classifier


@dataclass(frozen=True)
class Affinities:
    """What a random walk needs to know of one image.

    Attributes
    ----------
    values
        float32[K, h, w] in [0, 1], of the pairs (p, p + offset_k) within the radius; 0 where a pair leaves the image.
    boundary
        float32[h, w] in [0, 1], the probability of a class boundary; None if the network gives none.
    """

    values: Tensor
    boundary: Tensor | None = None


class PairSystem(System):
    """A network that tells for pairs of neighbouring cells whether they belong together; trained on affinity labels."""

    default_beta: float
    """Power of the affinities in the walk, as published."""

    @abstractmethod
    def affinities(self, model: nn.Module, image: Tensor, walk: Walk) -> Affinities:
        """The test path: affinities of one normalised image [1, 3, H, W], on a grid of the system's stride."""

    def start(self, model: nn.Module, inputs: dict[str, Path]) -> None:
        """Load the backbone of the trained classifier, if the stage builds on one."""
        start_from_classifier(model, inputs, self.config.backbone)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to an augmented image [3, S, S] and its labels int64[S, S], 255 where unsure or padded."""
        transform = self.transform()
        labels = inputs["labels"] / "labels"

        def load(record: Record) -> Sample:
            image, target = transform(read_image(index.image_path(record)), read_mask(labels / f"{record.id}.png", index.num_classes))
            return {"image": image, "target": target}

        return load


def labels_on_grid(target: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Return uint8[N, h, w], the label at the centre of each cell, of int64[N, H, W]."""
    return functional.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].to(torch.uint8)


def mean_with_mirrored(network: Callable[[Tensor], Tensor], image: Tensor, flip: bool) -> Tensor:
    """Return the network's output float32[1, D, h, w], averaged with that of the mirrored image if `flip`."""
    if not flip:
        return network(image).float()
    both = network(torch.cat([image, image.flip(-1)])).float()
    return (both[:1] + both[1:].flip(-1)) / 2
