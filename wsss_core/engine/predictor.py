"""The test path of a trained segmenter: multi-scale, flip, optional dense CRF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.config import Predict, validate
from wsss_core.engine.images import inference_precision, network_inputs
from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.refine.predictions import refine_probabilities
from wsss_core.systems.base import PatchSystem, SegmentSystem


class Predictor:
    """A segmenter ready to label images.

    Parameters
    ----------
    model_dir
        Directory with `model.safetensors` and `model.json`.
    config
        Scales, flip, CRF, source (`split` is not used).
    device
        A torch device.

    Raises
    ------
    UserError
        For a model that labels no pixels, or no patches where those are to be the source.
    """

    def __init__(self, model_dir: Path, config: Predict | dict | None = None, device: str = "cpu") -> None:
        self.config = config if isinstance(config, Predict) else validate(Predict, config or {}, "predict")
        self.trained = load_model(model_dir, device)
        if not isinstance(self.trained.system, SegmentSystem):
            raise UserError(f"{model_dir}: holds no segmenter but the system '{self.trained.system.config.system}'")
        if self.config.source == "patches" and not isinstance(self.trained.system, PatchSystem):
            raise UserError(f"{model_dir}: source: the system '{self.trained.system.config.system}' has no patches, expected decoder")
        self.device = device

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, background first."""
        return self.trained.classes

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return class probabilities float32[C, H, W] of an image uint8[H, W, 3], averaged over scales and flips.

        Where the image's `classes` (class numbers, without background) are given, those of all others are 0 (and no longer sum to 1).
        """
        system = self.trained.system
        assert isinstance(system, SegmentSystem)
        config, size = self.config, image.shape[:2]
        segment = system.segment_patches if config.source == "patches" and isinstance(system, PatchSystem) else system.segment
        parts: list[Tensor] = []
        for inputs in network_inputs(image, system, self.device, resize=config.resize, scales=config.scales, flip=config.flip):
            with inference_precision(self.device):
                logits = segment(self.trained.model, inputs)
            logits = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
            probabilities = logits.softmax(dim=1)
            parts.append((probabilities[0] + probabilities[1].flip(-1)) / 2 if config.flip else probabilities[0])
        mean = torch.stack(parts).mean(dim=0).cpu().numpy()
        if classes is not None:
            mean[np.setdiff1d(np.arange(1, len(mean)), classes)] = 0
        return mean

    def labels(self, image: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return class numbers uint8[H, W] of an image uint8[H, W, 3]; with the image's `classes` no others."""
        probabilities = self.probabilities(image, classes)
        if self.config.crf == "none":
            return probabilities.argmax(axis=0).astype(np.uint8)
        return refine_probabilities(image, probabilities, self.config.crf)
