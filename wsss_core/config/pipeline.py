"""The blocks of one experiment, in the order of the pipeline: classifier, CAMs, refinement, pseudo masks, segmenter, prediction, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wsss_core.config.base import Block, Fraction, Positive, Scales, Training
from wsss_core.config.classifiers import AnyClassifier, CamClassifier
from wsss_core.config.refinement import Refine


class Cams(Block):
    """Multi-scale class activation maps."""

    scales: Scales = (0.5, 1.0, 1.5, 2.0)
    """Sizes of the image, relative to `resize`, whose maps are summed."""
    flip: bool = True
    """Also sum the maps of the mirrored image."""
    resize: Positive | None = None
    """Longer side in pixels at scale 1; unset: the image's own size."""
    classes: Literal["image_labels", "predicted"] = "image_labels"
    """Which maps are kept: those of the image's labels, or of the classes that the classifier predicts (for images without labels)."""
    stride: Literal[1, 2, 4, 8, 16] = 4
    """Pixels of the image per cell of the stored maps."""


class Pseudo(Block):
    """From scores to pseudo masks."""

    threshold: Fraction | Literal["auto"] = "auto"
    """Background threshold: a pixel whose best class scores no more than this is background. `auto`: a label-free rule, see docs/refinement.md. Not used where a background channel decides: after a CRF, and after a walk with `refine.walk.background: power`."""
    crf: Literal["none", "labels"] = "none"
    """`labels`: a dense CRF on the thresholded labels, with the parameter set of IRN, Puzzle-CAM and ISIM."""


class Segmenter(Training):
    """System `segment`: a segmentation network trained on pseudo masks (or, as the upper bound, on the true masks)."""

    system: Literal["segment"] = "segment"
    """Segmentation network."""
    freeze_batch_norm: bool | Literal["auto"] = "auto"
    """Whether the backbone's batch normalisation keeps the statistics of its weights in training, too; its scales and shifts learn. `auto`: unless `weights` is none."""
    initial: Literal["weights", "classifier"] = "weights"
    """`weights`: the backbone starts with the weights that this block names. `classifier`: with those of the trained classifier, whose `backbone` has to be the same (`weights`, `mean` and `std` of this block are not used)."""
    decoder: Literal["deeplabv2", "deeplabv3", "deeplabv3plus", "unet", "bifpn"] = "deeplabv3plus"
    """DeepLabv2 (sum of dilated convolutions), DeepLabv3 (ASPP), DeepLabv3+ (ASPP and a low-level skip), UNet (a skip at every level) or BiFPN (EfficientDet's feature pyramid, MuSCLe's decoder)."""
    decoder_channels: Positive = 256
    """Width of the decoder."""
    separable: bool = True
    """Of `deeplabv3plus`: depthwise separable 3x3 convolutions in the decoder (Chen et al. 2018), a quarter of the work of full ones."""
    bifpn_layers: Annotated[int, Field(ge=1, le=8)] = 3
    """Layers of the BiFPN."""
    loss: Literal["cross_entropy", "beacon"] = "cross_entropy"
    """`beacon`: cross-entropy and MuSCLe's contrast across object boundaries (BEACON); needs the decoder bifpn."""
    lambda_beacon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    """Weight λ of BEACON."""
    beacon_steps: Positive = 7
    """How far the points on both sides lie from the boundary, in pixels of the training crop."""
    beacon_samples: Positive = 128
    """Number k of pairs of points of an image, drawn at random."""
    beacon_threshold: Fraction | Literal["mean"] = "mean"
    """Similarity τ of the pseudo mask below which two points are different things; `mean`: the mean over all pairs."""
    beacon_sign: Literal["pair", "point"] = "pair"
    """What decides whether two points are drawn apart: the similarity of the pair itself, or (`point`, Algorithm 3) the mean of each point's with all on the other side, which also draws points of one class apart where most points lie in background."""
    beacon_from: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of the training before BEACON is switched on: boundaries are read off the segmentation map, which has none worth the name at the beginning."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        beacon = {"loss", "lambda_beacon", "beacon_steps", "beacon_samples", "beacon_threshold", "beacon_sign", "beacon_from"}
        initial = {"initial"} if self.initial == "weights" else set()
        own = {"bifpn": {"separable"}, "deeplabv3plus": {"bifpn_layers"}}.get(self.decoder, {"separable", "bifpn_layers"})
        return super().unused | initial | own | (beacon if self.loss != "beacon" else set())

    @model_validator(mode="after")
    def _image_pooling_needs_two_images(self) -> Segmenter:
        if self.batch_size == 1 and self.decoder in ("deeplabv3", "deeplabv3plus", "bifpn"):
            raise ValueError(f"batch_size must be at least 2 for {self.decoder} (batch normalisation of maps of a single cell), got 1")
        if self.loss == "beacon" and self.decoder != "bifpn":
            raise ValueError(f"loss beacon needs the decoder bifpn, got {self.decoder}")
        return self


class Predict(Block):
    """Test path of a network that segments."""

    scales: Scales = (0.75, 1.0, 1.25)
    """Sizes of the image, relative to `resize`, whose probabilities are averaged."""
    flip: bool = True
    """Also average the mirrored image's probabilities."""
    resize: Positive | None = None
    """Longer side in pixels at scale 1; unset: the image's own size."""
    crf: Literal["none", "soft", "muscle", "vitpcm"] = "none"
    """Dense CRF on the averaged probabilities."""
    source: Literal["decoder", "patches"] = "decoder"
    """Of a single-stage system: what the predictions are, its decoder's output or the patches' own class probabilities. With `decoder` those of the patches are judged beside them, on val (figures `end_to_end-patches...`). A segmenter has its decoder alone."""
    split: Literal["val", "test"] = "val"
    """Split that is predicted and, where masks exist, evaluated."""


class Evaluate(Block):
    """What the evaluation computes."""

    thresholds: Annotated[int, Field(ge=5, le=1000)] = 100
    """Number of evenly spaced background thresholds of the curve: 0, 1/n, ..., (n-1)/n."""
    boundary_tolerance: Annotated[float, Field(ge=0)] | None = None
    """Also judge the boundaries of the segmenter's predictions: how far in pixels a predicted boundary may lie from the true one (F-score, `segmenter.val.boundary_f`); unset: no."""


class Experiment(Block):
    """One chain from images and tags to a trained segmenter; every block has defaults."""

    supervision: Literal["image_labels", "masks"] = "image_labels"
    """`image_labels`: weak supervision. `masks`: the fully supervised upper bound, the same segmenter trained on the true masks."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """One run of the chain per seed; tables show mean and standard deviation over them."""
    classifier: AnyClassifier = CamClassifier()
    """The network whose CAMs are the first guess."""
    cams: Cams = Cams()
    """Multi-scale class activation maps."""
    refine: Refine = Refine()
    """Refinement of the CAMs."""
    pseudo: Pseudo = Pseudo()
    """Pseudo masks."""
    segmenter: Segmenter | None = Segmenter()
    """The segmentation network; `null` ends the chain at the pseudo masks."""
    predict: Predict = Predict()
    """Prediction with the segmenter and, unless `end_to_end` says otherwise, with a single-stage system."""
    end_to_end: Predict | None = None
    """Predictions of a single-stage system itself, its pseudo masks among them, with the keys of `predict`; unset: as `predict`. Other systems have none."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""

    @model_validator(mode="after")
    def _single_stage_has_no_scores(self) -> Experiment:
        beacon = self.segmenter is not None and self.segmenter.loss == "beacon"
        if beacon and self.supervision == "image_labels" and self.classifier.single_stage:
            raise ValueError(
                "segmenter.loss beacon needs the scores behind the pseudo masks;"
                f" those of classifier.system {self.classifier.system} are its predictions"
            )
        return self

    @model_validator(mode="after")
    def _the_segmenter_starts_from_a_classifier_like_it(self) -> Experiment:
        if self.segmenter is None or self.segmenter.initial == "weights":
            return self
        if self.supervision == "masks":
            raise ValueError("segmenter.initial classifier needs a classifier, and supervision masks has none; use `initial: weights`")
        if self.segmenter.backbone != self.classifier.backbone:
            raise ValueError(
                f"segmenter.initial classifier needs the classifier's backbone, {self.classifier.backbone!r}; got {self.segmenter.backbone!r}"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must be distinct, got {list(seeds)}")
        return seeds
