"""The refinement block: from class activation maps to better scores, by a dense CRF, AffinityNet or the boundary network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from wsss_core.config.base import Block, Fraction, Positive, Training

CrfPreset = Literal["soft", "labels", "muscle", "vitpcm"]
Radius = Annotated[int, Field(ge=2, le=16)]
Power = Annotated[float, Field(gt=0)]
LABELS_CRF: dict[str, CrfPreset] = {"otsu": "vitpcm", "thresholds": "labels", "powers": "soft"}
"""The CRF of affinity labels where none is named: ours, IRN's and PSA's."""
WALK_BETA = {"affinity": 8.0, "boundary": 10.0}
"""The power of affinities where none is given: PSA's and IRN's."""


class AffinityLabels(Block):
    """From CAMs to the labels that AffinityNet and the boundary network learn from: sure foreground, sure background, and the rest ignored."""

    method: Literal["otsu", "thresholds", "powers"] = "otsu"
    """What the CAMs stand against, strictly and loosely: scores on both sides of each image's own Otsu threshold (`otsu`), two thresholds for all images (`thresholds`: IRN, Puzzle-CAM, ISIM), or (1 - max)^`low` and (1 - max)^`high` (`powers`: PSA)."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far the strict and the loose threshold lie from the one between them, as a share of its distance from 1 and from 0. For `otsu`, and for thresholds that are `auto`."""
    foreground: Fraction | Literal["auto"] = "auto"
    """Strict threshold of `thresholds`: what is foreground even against it is surely foreground. `auto`: `margin` above the CAMs' label-free threshold."""
    background: Fraction | Literal["auto"] = "auto"
    """Loose threshold of `thresholds`: what is background even against it is surely background. `auto`: `margin` below the CAMs' label-free threshold."""
    low: Power = 4.0
    """Strict background power of `powers`: a small one makes a strong background."""
    high: Power = 24.0
    """Loose background power of `powers` (24 in PSA's paper, 32 in its code)."""
    crf: Literal["soft", "labels", "muscle", "vitpcm", "none"] | None = None
    """Dense CRF on both; unset: `vitpcm` for otsu; `labels` for thresholds and `soft` for powers, as published."""

    @model_validator(mode="after")
    def _strict_is_stricter(self) -> AffinityLabels:
        if isinstance(self.foreground, float) and isinstance(self.background, float) and self.foreground <= self.background:
            raise ValueError(f"foreground must be greater than background, got {self.foreground:g} and {self.background:g}")
        if self.low >= self.high:
            raise ValueError(f"low must be smaller than high, got {self.low:g} and {self.high:g}")
        return self


class PairNetwork(Training):
    """What AffinityNet and the boundary network share: they start from a backbone and learn from affinity labels."""

    initial: Literal["classifier", "weights"] = "classifier"
    """`classifier`: the trained classifier's backbone with its weights (`backbone`, `weights`, `mean` and `std` of this block are not used). `weights`: those that this block names."""
    freeze_backbone: bool = False
    """Train the new layers alone; the backbone's batch normalisation then keeps its statistics."""

    @model_validator(mode="after")
    def _frozen_backbone_has_learned(self) -> PairNetwork:
        if self.freeze_backbone and self.initial == "weights" and self.weights == "none":
            raise ValueError("freeze_backbone with weights none would leave the backbone at its random start, got weights 'none'")
        return self


class Affinity(PairNetwork):
    """System `affinity`: AffinityNet (PSA)."""

    system: Literal["affinity"] = "affinity"
    """AffinityNet."""
    epochs: Positive = 3
    """Passes over the training images."""
    radius: Radius = 5
    """Pairs of cells (8 pixels wide) nearer than this are learned and walked."""


class Boundary(PairNetwork):
    """System `boundary`: the class-boundary network (IRN)."""

    system: Literal["boundary"] = "boundary"
    """Boundary network."""
    epochs: Positive = 3
    """Passes over the training images."""
    freeze_backbone: bool = True
    """Train the new layers alone, as published; the backbone's batch normalisation then keeps its statistics."""
    radius: Radius = 10
    """Pairs of cells (4 pixels wide) nearer than this are learned."""
    displacement: bool = True
    """Also train the displacement head, as published. Instances need it; the boundary map does not, and nothing here reads it: `false` saves its time."""


class Walk(Block):
    """The random walk of the CAMs over the image."""

    steps: Annotated[int, Field(ge=0, le=1 << 20)] | Literal["auto"] = "auto"
    """Steps of the walk; the cost grows with the square root. `auto`: the power of two nearest to 256 times the image's area over that of 500 x 375 pixels, for which 2^8 steps were published (MuSCLe 64): on smaller images as many steps reach too far."""
    beta: Power | None = None
    """Pair weights are affinity^beta; unset: 8 for AffinityNet, 10 for the boundary network, as published."""
    radius: Radius = 5
    """Reach of one step over the boundary map, in cells of 4 pixels. (AffinityNet's is that of its training.)"""
    background: Literal["threshold", "power"] = "threshold"
    """`threshold`: the classes walk alone and a threshold comes afterwards (IRN). `power`: a background (1 - max)^`background_power` walks with them and the best channel wins (PSA)."""
    background_power: Power = 16.0
    """Power of that background (16 in PSA's published code)."""
    normalise: Literal["image", "class"] = "image"
    """What walked scores are divided by: the image's greatest, over all classes (IRN), or that of each class. Not used with a walking background."""
    flip: bool = True
    """Average the network's output with that of the mirrored image."""
    resize: Positive | None = None
    """Longer side in pixels of the image that the network sees; unset: that of the CAMs (`cams.resize`)."""


class Refine(Block):
    """From CAMs to better scores."""

    method: Literal["none", "crf", "affinity", "boundary"] = "crf"
    """`none` (CAMs as they are), `crf` (dense CRF on softened CAMs), `affinity` (random walk by AffinityNet) or `boundary` (random walk by the boundary network), both followed by a CRF unless `crf` is `none`."""
    background: Annotated[float, Field(gt=0, le=1)] | Literal["otsu"] | None = "otsu"
    """Score of the background channel in the CRF, against which the maps stand: a constant, `otsu` (per image, the threshold that best splits its map's histogram; needs no mask), or null (`background_power` is used). Not used where a background walked along (`walk.background: power`)."""
    background_power: Power = 4.0
    """Background score (1 - max over classes of the map)^power (PSA), when `background` is unset."""
    crf: Literal["soft", "labels", "muscle", "vitpcm", "none"] = "vitpcm"
    """Named parameter set of the dense CRF. `vitpcm` (narrow in colour) keeps thin parts; `soft` (PSA) smooths more, too much for small images. `none`, for walks: no CRF after the walk."""
    labels: AffinityLabels = AffinityLabels()
    """Labels that AffinityNet and the boundary network learn from."""
    affinity: Affinity = Affinity()
    """AffinityNet."""
    boundary: Boundary = Boundary()
    """The boundary network."""
    walk: Walk = Walk()
    """The random walk."""

    @model_validator(mode="after")
    def _crf_needs_a_set(self) -> Refine:
        if self.method == "crf" and self.crf == "none":
            raise ValueError("method crf needs a parameter set in refine.crf, got 'none'")
        return self
