"""Soft pseudo masks: scores that sum to 1 over background and classes, as they were before a threshold or an argmax cut them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss_core.data.images import IGNORE
from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.refine.scores import SCORES, SUMMARY, add_background, open_store, upsample


class SoftMasks:
    """The soft masks behind the pseudo masks of a `pseudo` stage.

    Parameters
    ----------
    scores
        Directory of the stage whose scores were cut.
    pseudo
        Directory of the `pseudo` stage, which says where: scores without a background channel get the threshold as theirs.
    """

    def __init__(self, scores: Path, pseudo: Path) -> None:
        self.store = scores / SCORES
        self.threshold = read_json(pseudo / SUMMARY).get("threshold")

    def read(self, image_id: str, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8[1 + K, H, W], in steps of 1/255, and the class numbers int[1 + K], background first, of an image and its mask [H, W].

        Raises `UserError` if the scores have no background and no threshold was recorded.
        """
        store = open_store(self.store)
        scores, classes = store.read(image_id)
        if not len(classes):
            return np.full((1, *mask.shape), 255, np.uint8), np.zeros(1, np.int64)
        scores = upsample(scores, mask.shape)
        if classes[0] != 0:
            if self.threshold is None:
                raise UserError(f"{self.store}: has no background channel, and the pseudo masks name no threshold")
            scores = add_background(scores, max(self.threshold, 1 / 255), 1.0)  # a background of 0 could leave a pixel without any score
        return np.rint(scores * 255).astype(np.uint8), np.union1d([0], classes)


def one_hot(image_id: str, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of a mask uint8[H, W] that is sure of itself; ignored pixels are zero in all channels."""
    classes = np.union1d([0], np.unique(mask[mask != IGNORE])).astype(np.int64)
    return np.where(mask == classes[:, None, None], np.uint8(255), np.uint8(0)), classes
