"""The interface between the training loop and whatever is trained.

The loop (`wsss_core.engine`) knows nothing of weak supervision but how a model's own pseudo labels are made; a system knows nothing of devices,
files of the workflow or Snakemake. A system module reads like its paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from wsss_core.config import OwnLabels, Training
from wsss_core.data.images import IGNORE, read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.transforms import training_transform
from wsss_core.nn.backbones import has_layer_norm, statistics

Sample = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """Where the training stands: epoch (from 0), optimiser step (from 0), number of steps in all."""

    epoch: int
    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """Share of the training that is done, in [0, 1)."""
        return self.step / self.steps


@dataclass(frozen=True)
class Run:
    """What the loop lets a system have between epochs.

    Attributes
    ----------
    model
        On its device, in training mode or not.
    history
        One row of metrics for each epoch done.
    pseudo_labels
        `pseudo_labels(labels, epoch)` sees to it that the pseudo labels of the model after `epoch` epochs are there, made as `labels` says;
        raises `UserError` if they are gone and the model has learned on.
    """

    model: nn.Module
    history: Sequence[dict[str, Any]]
    pseudo_labels: Callable[[OwnLabels, int], None]


class System(ABC):
    """Something that trains.

    Parameters
    ----------
    config
        The system's own configuration block.
    num_classes
        C, background included.
    """

    config_type: ClassVar[type[Training]]

    def __init__(self, config: Any, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        self.mean, self.std = statistics(config)
        self._observed: dict[str, Tensor] = {}

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Epochs after which a copy of the model is kept."""
        return ()

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the model, on the CPU."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the named, weighted loss terms (scalars); the loop sums and logs them."""

    @abstractmethod
    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a training record to a sample, augmentation included.

        `inputs` has the directories of upstream stages by role, and under `output` that of the training itself.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the backbone with `lr`, all else with `lr` times `head_lr_factor`."""
        backbone = [p for name, p in model.named_parameters() if name.startswith("features.") and p.requires_grad]
        rest = [p for name, p in model.named_parameters() if not name.startswith("features.") and p.requires_grad]
        lr = self.learning_rate(model)
        return [
            {"name": "backbone", "params": backbone, "lr": lr},
            {"name": "head", "params": rest, "lr": lr * self.config.head_lr_factor},
        ]

    def learning_rate(self, model: nn.Module) -> float:
        """Return the initial learning rate of the backbone, `auto` resolved (ours, by workflow/studies/recipes.yaml)."""
        if self.config.lr != "auto":
            return self.config.lr
        if self.config.optimizer == "sgd":
            return 1e-2
        return 1e-4 if has_layer_norm(model.get_submodule("features")) else 3e-4

    def observe(self, **values: Tensor) -> None:
        """Have scalars logged beside the loss terms, as means over an epoch's batches. Called in `losses`; they are no part of the loss.

        In an epoch that observes a value at all, every process has to.
        """
        self._observed |= {name: value.detach() for name, value in values.items()}

    def observed(self) -> dict[str, Tensor]:
        """Return what was observed since the last call."""
        observed, self._observed = self._observed, {}
        return observed

    def start(self, model: nn.Module, inputs: dict[str, Path]) -> None:  # noqa: B027
        """Load what a new model takes over from upstream stages (directories by role), beside its backbone's weights."""

    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:  # noqa: B027
        """Do what is due after the last epoch, with the model in evaluation mode and one more pass over the training batches."""

    def before_epoch(self, epoch: int, run: Run) -> None:  # noqa: B027
        """Do what is due before an epoch (from 0). Called in every process, also when a run is resumed; the model may be left in either mode."""

    def transform(self) -> Callable[[np.ndarray, np.ndarray | None], tuple[Tensor, Tensor | None]]:
        """Return the training augmentation, from image uint8[H, W, 3] (and mask uint8[H, W]) to tensors."""
        return training_transform(self.config, self.mean, self.std)


class CamSystem(System):
    """A classifier that gives class activation maps."""

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Those of the configuration."""
        return tuple(self.config.snapshots)

    def load_padded(self, index: DataIndex) -> Callable[[Record], tuple[Tensor, Tensor, Tensor]]:
        """Return the function from a record to an augmented image [3, S, S], its label [C-1] and which pixels are padding, bool[S, S]."""
        transform = self.transform()

        def load(record: Record) -> tuple[Tensor, Tensor, Tensor]:
            picture = read_image(index.image_path(record))
            image, margin = transform(picture, np.zeros(picture.shape[:2], np.uint8))
            assert margin is not None
            return image, torch.from_numpy(index.multi_hot(record)), margin == IGNORE

        return load

    @abstractmethod
    def cams(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """The test path. Return maps [N, C-1, h, w], not negative and not normalised, and class logits [N, C-1]."""


class SegmentSystem(System):
    """Something whose trained model labels pixels."""

    @abstractmethod
    def segment(self, model: nn.Module, images: Tensor) -> Tensor:
        """The test path. Return class logits [N, C, h, w] of images [N, 3, H, W], at any resolution."""


class PatchSystem(SegmentSystem):
    """Something whose trained model labels pixels by a decoder, and patches before it."""

    @abstractmethod
    def segment_patches(self, model: nn.Module, images: Tensor) -> Tensor:
        """The test path without the decoder. Return the patches' class logits [N, C, h, w] of images [N, 3, H, W]."""

    @abstractmethod
    def embed(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the embeddings [N, D, h, w] of the patches of images [N, 3, H, W]."""
