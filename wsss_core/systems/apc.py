"""System `apc`: adaptive patch contrast (Wu et al. 2024, arXiv:2407.10649), a vision transformer that learns to segment in a single stage.

Patches are classified, and the scores of the best of them are the image's (adaptive-K pooling): so the image-level labels teach what each patch
shows. Patches of a class are drawn together (patch contrast), and a decoder over several levels learns from the refined patch predictions to
segment. No class activation map takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import ApcClassifier, Classifier
from wsss_core.data.images import IGNORE
from wsss_core.data.index import DataIndex, Record
from wsss_core.losses.classification import probability_cross_entropy
from wsss_core.losses.contrast import patch_contrast
from wsss_core.losses.segmentation import pixel_cross_entropy
from wsss_core.nn.backbones import PatchFeatures
from wsss_core.nn.bilstm import HVBiLSTM
from wsss_core.nn.patch_decoder import PatchDecoder
from wsss_core.nn.pixel_adaptive import pixel_adaptive_refine
from wsss_core.nn.pooling import pool_patches
from wsss_core.refine.crf import CRF_PRESETS, crf_soft
from wsss_core.systems.base import Batch, CamSystem, PatchSystem, Progress, Run, Sample

_STRIDE = 4
"""Pixels of the image per cell of the labels that the decoder learns from."""
_CRF = replace(
    CRF_PRESETS["vitpcm"],
    gaussian_sxy=CRF_PRESETS["vitpcm"].gaussian_sxy / _STRIDE,
    bilateral_sxy=CRF_PRESETS["vitpcm"].bilateral_sxy / _STRIDE,
)
"""That of the predictions, in cells."""
_EPS = 1e-6
"""Probabilities count at least as this where they divide or a logarithm is taken."""


class Patches(NamedTuple):
    """Refined embeddings F_out [N, D, h, w], class probabilities Z [N, C, h, w] (float32), and the decoder's logits [N, C, h, w]."""

    embeddings: Tensor
    scores: Tensor
    logits: Tensor


class ApcNet(nn.Module):
    """Transformer, HV-BiLSTM, patch classifier W without bias (Eq. 1) and segmentation branch (Fig. 3)."""

    def __init__(self, config: ApcClassifier, num_classes: int) -> None:
        super().__init__()
        self.features = PatchFeatures(config)
        dim = self.features.out_channels
        self.bilstm = HVBiLSTM(dim) if config.hv_bilstm else nn.Identity()
        self.classifier = nn.Conv2d(dim, num_classes, 1, bias=False)
        self.decoder = PatchDecoder(self.features.channels, num_classes, config.decoder_channels, config.decoder_levels)

    def forward(self, images: Tensor) -> Patches:
        """Return what is known of the patches of images [N, 3, H, W]."""
        first, levels = self.features(images)
        return Patches(*self._classify(first), self.decoder(levels))

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings and class probabilities alone."""
        return self._classify(self.features(images)[0])

    def segment(self, images: Tensor) -> Tensor:
        """Return the decoder's logits alone."""
        return self.decoder(self.features(images)[1])

    def _classify(self, first: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.bilstm(first)
        return embeddings, self.classifier(embeddings).float().softmax(dim=1)


class Apc(CamSystem, PatchSystem):
    """Adaptive patch contrast.

    Notes
    -----
    Ours, where the paper is silent: background is one of the classes, and in every image; the new layers alone, the decoder among them,
    learn in the first epochs; the decoder's labels are the best of the image's classes, by scores that are comparable between classes (`label_scores`), refined
    at a quarter of the image's resolution. Images are made squares of the size named, as in the paper, in training and in tests (unless `resize`
    says otherwise).
    """

    config_type: ClassVar[type[Classifier]] = ApcClassifier

    def build(self) -> nn.Module:
        """Return the network; raises `UserError` if its transformer has fewer than `train_blocks` blocks."""
        net = ApcNet(self.config, self.num_classes)
        self._learning(net.features)
        return net

    def before_epoch(self, epoch: int, run: Run) -> None:
        """Let the transformer, or the last of its blocks, learn from `head_epochs` on."""
        features = run.model.features
        assert isinstance(features, PatchFeatures)
        features.requires_grad_(False)
        if epoch >= self.config.head_epochs:
            for module in self._learning(features):
                module.requires_grad_(True)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to image [3, S, S], label [C-1] and `padded` bool[S, S], which pixels are no image."""
        padded_sample = self.load_padded(index)
        return lambda record: dict(zip(("image", "label", "padded"), padded_sample(record), strict=True))

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the loss of the image's classes, from `label_from` on that of segmentation and, if asked for, the patch contrast (Eq. 7)."""
        config, images = self.config, batch["image"]
        labels = functional.pad(batch["label"], (1, 0), value=1.0)  # with background
        embeddings, scores, logits = model(images)
        patch_scores = _sequence(scores)
        losses = {"classification": probability_cross_entropy(self._pool(patch_scores), labels)}
        if progress.epoch >= config.label_from:
            targets = self.pixel_labels(images, scores.detach(), labels, batch["padded"])
            losses["segmentation"] = config.lambda_segmentation * pixel_cross_entropy(logits, targets)
            ignored, background = ((targets == value).float().mean() for value in (IGNORE, 0))
            self.observe(labels_foreground=1 - ignored - background, labels_background=background, labels_ignored=ignored)
        if config.lambda_contrast > 0:
            contrast = patch_contrast(_sequence(embeddings), patch_scores, labels, config.epsilon)
            losses["contrast"] = config.lambda_contrast * contrast
        return losses

    @torch.no_grad()
    def pixel_labels(self, images: Tensor, scores: Tensor, labels: Tensor, padded: Tensor) -> Tensor:
        """Return what the decoder learns, int64[N, H/4, W/4]: patch predictions mapped to pixels ("patch to pixel" of Fig. 3), refined, unsure ones ignored.

        Parameters
        ----------
        images
            float[N, 3, H, W], normalised.
        scores
            float32[N, C, h, w], the patches' probabilities.
        labels
            [N, C], 1 for the classes of the image, background among them: no other gets a pixel.
        padded
            bool[N, H, W], pixels that are no image: ignored.
        """
        config = self.config
        size = [max(1, side // _STRIDE) for side in images.shape[-2:]]
        own = functional.interpolate(scores * labels[:, :, None, None], size=size, mode="nearest-exact")
        small = functional.interpolate(images.float(), size=size, mode="area")
        outside = functional.interpolate(padded[:, None].float(), size=size, mode="nearest-exact") > 0
        if config.label_scores == "peak":
            own = _shares_of_peaks(own, ~outside)
        if config.label_refinement == "pixel_adaptive":
            own = pixel_adaptive_refine(small, own, _in_cells(config.label_dilations, max(size)), config.label_iterations)
        elif config.label_refinement == "crf":
            own = torch.stack([self._crf(*pair) for pair in zip(small, own, strict=True)])
        confidence, best = own.max(dim=1)
        return best.masked_fill((confidence <= config.label_confidence) | outside[:, 0], IGNORE)

    def cams(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches' probabilities of the foreground classes, and the logits of the image's scores."""
        assert isinstance(model, ApcNet)
        _, scores = model.classify(self._squared(images))
        return scores[:, 1:], torch.logit(self._pool(_sequence(scores))[:, 1:], eps=1e-6)

    def segment(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the decoder's logits, one per patch."""
        assert isinstance(model, ApcNet)
        return model.segment(self._squared(images))

    def segment_patches(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return ln Z, the logits of the patches' own probabilities (Sec. 2.1: "we map the patches to pixels as the segmentation result")."""
        assert isinstance(model, ApcNet)
        return model.classify(self._squared(images))[1].clamp(min=_EPS).log()

    def embed(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the refined patch embeddings [N, D, h, w]: what the patch contrast compares."""
        assert isinstance(model, ApcNet)
        return model.classify(self._squared(images))[0]

    def _learning(self, features: PatchFeatures) -> list[nn.Module]:
        """The parts of the transformer that learn at all."""
        return [features] if self.config.train_blocks is None else features.last_blocks(self.config.train_blocks)

    def _pool(self, patch_scores: Tensor) -> Tensor:
        return pool_patches(patch_scores, self.config.pooling, self.config.k, self.config.theta)

    def _squared(self, images: Tensor) -> Tensor:
        """Make the images as square as those of the training: both sides become the longer one."""
        side = max(images.shape[-2:])
        if self.config.resize != "square" or images.shape[-2:] == (side, side):
            return images
        return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)

    def _crf(self, image: Tensor, scores: Tensor) -> Tensor:
        """Refine the scores [C, h, w] of an image [3, h, w]; at each pixel their sum stays."""
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (self.mean, self.std))
        pixels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        refined = crf_soft(pixels.permute(1, 2, 0).cpu().numpy(), scores.cpu().numpy(), _CRF)
        return torch.from_numpy(refined).to(scores.device) * scores.sum(dim=0)


def _shares_of_peaks(scores: Tensor, inside: Tensor) -> Tensor:
    """Divide the scores [N, C, h, w] of each class by their maximum `inside` the image, bool[N, 1, h, w], then by their sum over classes.

    Source: `merge_class_labels` of ViT-PCM's published code. A class whose scores are 0 everywhere keeps them; where those of all are, they stay 0.
    """
    scores = scores / (scores * inside).amax(dim=(2, 3), keepdim=True).clamp(min=_EPS)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=_EPS)


def _in_cells(shares: Sequence[float], side: int) -> list[int]:
    """Return distances of cells, ascending, each once, of shares of an image that is `side` cells wide."""
    return sorted({max(1, round(share * side)) for share in shares})


def _sequence(maps: Tensor) -> Tensor:
    """Return [N, h * w, C] of [N, C, h, w]."""
    return maps.flatten(2).transpose(1, 2)
