"""System `isim`: the iterative self-improved model (Bircanoglu and Arica; arXiv:2211.12455), DeepLabCAM and UNetCAM.

A segmentation network with a classification branch after its encoder. It learns classes from the image-level labels, and
pixels from pseudo labels that it makes of its own class activation maps; the maps get better by what the encoder learns of pixels, and
with them the next round of pseudo labels (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from wsss_core.config import Classifier, IsimClassifier
from wsss_core.data.images import read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.mask_sets import read_mask_of, round_archive
from wsss_core.losses.classification import multilabel_soft_margin
from wsss_core.losses.segmentation import foreground_cross_entropy
from wsss_core.nn.decoders import decode, make_decoder
from wsss_core.systems.base import Batch, Progress, Run, Sample
from wsss_core.systems.cam import Cam, CamNet

_FALL = 0.01


class Both(NamedTuple):
    """Maps w_c . f [N, C-1, h, w] of the classification branch, and the decoder's logits [N, C, h', w']."""

    maps: Tensor
    logits: Tensor


class IsimNet(CamNet):
    """Encoder, classification branch (global average pooling and a 1x1 convolution without bias) and decoder (Figs. 2 and 3)."""

    def __init__(self, config: IsimClassifier, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.decoder = make_decoder(config.decoder, self.features, num_classes, config.decoder_channels)

    def forward(self, images: Tensor, segment: bool = False) -> Tensor | Both:  # type: ignore[override]
        """Return the maps, as `CamNet`; with `segment` the decoder's logits too."""
        final, levels = self.features(images)
        maps = self.classifier(final)
        return Both(maps, decode(self.decoder, images, levels)) if segment else maps


class Isim(Cam):
    """The iterative self-improved model.

    Notes
    -----
    The test path is the plain classifier's: the decoder teaches the encoder and is asked nothing. The paper names no weights of the two
    losses, which is 1 for both; here the segmentation loss is multiplied by `lambda_segmentation`, a tenth by default (ours): a mean over
    pixels, it has gradients on the encoder several times those of the classification loss, which is a mean over classes of an image's
    scores, and "one of the two losses suppresses the other" (Sec. 3.2). Further decisions are at `foreground_cross_entropy`, `label_rounds`,
    `make_round` and in docs/systems/isim.md.
    """

    config_type: ClassVar[type[Classifier]] = IsimClassifier

    def __init__(self, config: IsimClassifier, num_classes: int) -> None:
        super().__init__(config, num_classes)
        # Shared with the processes that load samples, which outlive a round.
        self._round = torch.tensor(-1).share_memory_()

    def build(self) -> nn.Module:
        """Return encoder, classification branch and decoder."""
        return IsimNet(self.config, self.num_classes)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return encoder, classifier and decoder, each with a learning rate of its own (Sec. 4.1: 0.1, 1 and 0.01)."""
        assert isinstance(model, IsimNet)
        lr = self.learning_rate(model)
        return [
            {"name": "encoder", "params": list(model.features.parameters()), "lr": lr},
            {"name": "classifier", "params": list(model.classifier.parameters()), "lr": lr * self.config.head_lr_factor},
            {"name": "decoder", "params": list(model.decoder.parameters()), "lr": lr * self.config.decoder_factor},
        ]

    def before_epoch(self, epoch: int, run: Run) -> None:
        """Generate pseudo labels, if a round of them is due, and take the latest from now on (Algorithm 1, lines 7 to 10)."""
        rounds = self.label_rounds(epoch, run.history)
        if rounds:
            run.pseudo_labels(self.config.labels, rounds[-1])
            self._round.fill_(rounds[-1])

    def label_rounds(self, epoch: int, history: Sequence[dict[str, Any]]) -> list[int]:
        """Return after how many epochs, up to `epoch`, pseudo labels are made: after `class_epochs` and every `regenerate` epochs, or on convergence.

        `history` has a row of mean losses for each epoch done.

        `converged` (ours, the paper does not define it): both losses have been `patience` epochs without a fall by 1 % below their least
        value since the last round.
        """
        first, every = self.config.class_epochs, self.config.regenerate
        if every != "converged":
            return list(range(first, epoch + 1, every))
        rounds: list[int] = []
        for now in range(first, epoch + 1):
            if not rounds or self._converged(history[rounds[-1] : now]):
                rounds.append(now)
        return rounds

    def _converged(self, since: Sequence[dict[str, Any]]) -> bool:
        return all(
            _epochs_without_fall([row[term] for row in since]) >= self.config.patience for term in ("classification", "segmentation")
        )

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to image [3, S, S] and label [C-1]; once there are pseudo labels, with target int64[S, S].

        Image and pseudo label are resized, mirrored and cropped alike; the target is 255 where padded.
        """
        transform = self.transform()

        def load(record: Record) -> Sample:
            picture, label = read_image(index.image_path(record)), torch.from_numpy(index.multi_hot(record))
            if self._round < 0:
                return {"image": transform(picture, None)[0], "label": label}
            archive = round_archive(inputs["output"], int(self._round))
            image, target = transform(picture, read_mask_of(archive, record.id, index.num_classes))
            return {"image": image, "label": label, "target": target}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the classification loss and, once there are pseudo labels, the segmentation loss times `lambda_segmentation`."""
        if "target" not in batch:
            return super().losses(model, batch, progress)
        maps, logits = cast(Both, model(batch["image"], segment=True))
        return {
            "classification": multilabel_soft_margin(maps.mean(dim=(2, 3)), batch["label"]),
            "segmentation": self.config.lambda_segmentation * foreground_cross_entropy(logits, batch["target"]),  # Eqs. 1 to 3
        }


def _epochs_without_fall(values: Sequence[float]) -> int:
    """Return how many values have come since the last that was less than all before it by 1 %."""
    least, since = float("inf"), 0
    for value in values:
        since += 1
        if value < (1 - _FALL) * least:
            least, since = value, 0
    return since
