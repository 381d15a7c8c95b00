"""The classifiers whose class activation maps are the first guess: one block per published system, chosen by `system`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from wsss_core.config.base import Block, Fraction, Positive, Resize, Scales, Training, Weight


class Classifier(Training):
    """What the classifiers of all systems share."""

    single_stage: ClassVar[bool] = False
    """Whether the trained model segments: its own predictions are the pseudo masks."""

    snapshots: tuple[Positive, ...] = ()
    """Epochs after which a copy of the model is kept. The CAMs of each are evaluated too (figures `cams-epoch<k>...`), apart from the training: how good they are against iterations. Another list trains the classifier again."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        return super().unused | (set() if self.snapshots else {"snapshots"})

    @property
    def cam_options(self) -> dict[str, str]:
        """What the CAMs alone have to be told beside what the training was."""
        return {}

    @model_validator(mode="after")
    def _snapshots_are_in_between(self) -> Classifier:
        if list(self.snapshots) != sorted(set(self.snapshots)) or max(self.snapshots, default=0) >= self.epochs:
            raise ValueError(
                f"snapshots must be increasing epochs before the last one, {self.epochs} (it is kept anyway), got {list(self.snapshots)}"
            )
        return self


class CamClassifier(Classifier):
    """System `cam`: a plain multi-label classifier whose last feature map gives the class activation maps."""

    system: Literal["cam"] = "cam"
    """Plain classifier."""


class _Puzzle(Classifier):
    """What Puzzle-CAM hands on to RSA + CFC."""

    beta_reconstruction: Weight = 2.0
    """Weight β of the L1 reconstruction loss between the maps of the whole image and those of its four tiles; 0: without it."""
    ramp: Fraction = 0.5
    """Fraction of the training over which that weight rises linearly from 0 to β; 0: it is β from the start."""
    reconstruction_level: Literal["cams", "logits"] = "cams"
    """What that loss compares: `cams`, the maps without what is below 0, divided by their maximum per image and class (by 1 at least); `logits`, the maps as they are (the paper; harmful with tiles below about 256 pixels)."""
    tile_statistics: bool = False
    """Whether tiles count in the running statistics of batch normalisation (the published code); false: those are of whole images alone, which is what tests see."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        return super().unused | (set() if self.beta_reconstruction else {"ramp", "reconstruction_level"})


class PuzzleClassifier(_Puzzle):
    """System `puzzle`: Puzzle-CAM, whole image and 2 x 2 tiles. See docs/systems/rsa-cfc.md."""

    system: Literal["puzzle"]
    """Puzzle-CAM."""


class RsaCfcClassifier(_Puzzle):
    """System `rsa_cfc`: regional self-attention and cross-image foreground contrast on Puzzle-CAM. See docs/systems/rsa-cfc.md."""

    system: Literal["rsa_cfc"]
    """RSA + CFC."""
    attention: Literal["centred_cosine", "softmax_dot", "relu_cosine", "softmax_cosine", "none"] = "centred_cosine"
    """Kernel of the regional self-attention: `centred_cosine` max(0, cosine of the features less their mean over the tile); `softmax_dot` exp(scalar product), the paper's; `relu_cosine` max(0, cosine), nearly the mean over the tile; `softmax_cosine` exp(cosine / `temperature`); `none`: without RSA."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of `softmax_cosine`: the smaller, the more the most similar cells alone count."""
    lambda_contrast: Weight = 0.5
    """Weight λ of the cross-image foreground contrast; 0: without CFC."""
    alpha: Weight = 0.25
    """Slope α of the rank weight of a pair of images."""
    foreground: Literal["cam", "relu", "sigmoid"] = "cam"
    """What of the maps weighs the features in the foreground vectors: `cam`, what is above 0, divided by its maximum per image and class (by 1 at least); `relu`, what is above 0 (nearest to the paper); `sigmoid`, the probability."""
    pairs: Literal["sharing", "all"] = "sharing"
    """Pairs of images over which the contrast is a mean: those that have a class in common, or `all` (the paper)."""
    present_only: bool = True
    """Whether the maps of classes that the image does not show are left out of the foreground vectors; false: all classes count."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        kernel = set() if self.attention == "softmax_cosine" else {"temperature"}
        return super().unused | kernel | (set() if self.lambda_contrast else {"alpha", "foreground", "pairs", "present_only"})


class OwnLabels(Block):
    """Pseudo labels that a classifier makes of its own maps, to learn from them."""

    scales: Scales = (0.5, 1.0, 1.5, 2.0)
    """Sizes of the image, relative to `resize`, whose maps are summed."""
    flip: bool = True
    """Also sum the maps of the mirrored image."""
    resize: Positive | None = None
    """Longer side in pixels at scale 1; unset: the image's own size."""
    threshold: Annotated[float, Field(ge=0, lt=1)] | Literal["auto", "otsu"] = "otsu"
    """A pixel whose best map, divided by that map's maximum, scores no more than this is background (the paper: 0.3). `otsu`: each image's own Otsu threshold; `auto`: one for the round by a label-free rule, see docs/refinement.md. With a CRF on scores it is the score of the background against which the maps stand."""
    crf: Literal["none", "labels", "soft", "muscle", "vitpcm"] = "vitpcm"
    """Dense CRF: `labels` on the thresholded maps, with the parameter set of IRN (the paper); the other named sets on scores, as in `refine.crf`; `none`: without."""
    recalibrate: bool = True
    """Whether the maps of a round are made with batch statistics of the model as it is then, from one more pass over the training images; false (the paper says nothing): with the running ones, which lag behind."""

    @model_validator(mode="after")
    def _a_background_has_a_score(self) -> OwnLabels:
        if self.threshold == 0 and self.crf not in ("none", "labels"):
            raise ValueError(f"threshold must be greater than 0 for a CRF on scores, got 0 and {self.crf}")
        return self


class IsimClassifier(Classifier):
    """System `isim`: the iterative self-improved model, a classifier whose encoder also learns to segment by its own pseudo labels. See docs/systems/isim.md."""

    system: Literal["isim"]
    """Iterative self-improved model."""
    decoder: Literal["deeplabv3", "unet_transposed", "unet_bilinear"] = "deeplabv3"
    """`deeplabv3` (DeepLabCAM), or UNet with transposed convolutions (UNetCAM Learnable) or bilinear upsampling (UNetCAM Non-Learnable)."""
    decoder_channels: Positive = 256
    """Width of the decoder: at the coarsest level of a UNet. (DeepLabv3 has 256 always.)"""
    decoder_lr_factor: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the decoder, as a multiple of `lr`; `head_lr_factor` is that of the 1x1 classifier. Unset: 0.1 with SGD (the paper), `head_lr_factor` with Adam and AdamW, whose steps are as long as the rate says, whatever the gradient."""
    lambda_segmentation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Weight of the segmentation loss. The paper names none, which is 1: the encoder then hears several times more of the decoder than of the classifier."""
    class_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs at the beginning that learn from classes alone. After them the first pseudo labels are made."""
    regenerate: Positive | Literal["converged"] = 10
    """Epochs from one round of pseudo labels to the next; `converged`: a new round when both losses have converged."""
    patience: Positive = 3
    """Of `converged`: a loss has converged when it has not fallen by 1 % for so many epochs."""
    labels: OwnLabels = OwnLabels()
    """The pseudo labels."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        decoder = {"decoder_channels"} if self.decoder == "deeplabv3" else set()
        return super().unused | decoder | (set() if self.regenerate == "converged" else {"patience"})

    @property
    def decoder_factor(self) -> float:
        """`decoder_lr_factor`, or what it is where unset."""
        if self.decoder_lr_factor is not None:
            return self.decoder_lr_factor
        return 0.1 if self.optimizer == "sgd" else self.head_lr_factor

    @property
    def label_epochs(self) -> tuple[int, ...]:
        """Epochs after which pseudo labels are made; none that are known beforehand with `converged`."""
        return () if self.regenerate == "converged" else tuple(range(self.class_epochs, self.epochs, self.regenerate))

    @model_validator(mode="after")
    def _something_is_segmented(self) -> IsimClassifier:
        if self.class_epochs >= self.epochs:
            raise ValueError(f"class_epochs must be smaller than epochs, got {self.class_epochs} and {self.epochs}")
        if self.batch_size == 1 and self.decoder == "deeplabv3":
            raise ValueError("batch_size must be at least 2 for deeplabv3 (batch normalisation of maps of a single cell), got 1")
        return self


class MclClassifier(Classifier):
    """System `mcl`: the encoder of MuSCLe, multi-strategy contrastive learning at the level of images, pixels and regions. See docs/systems/muscle.md."""

    system: Literal["mcl"]
    """Multi-contrast learning encoder."""
    epochs: Positive = 16
    """Passes over the training images."""
    classification_loss: Literal["hybrid", "bce"] = "hybrid"
    """`hybrid`: binary cross-entropy + focal + pair loss; `bce`: the first alone."""
    pair_loss: Literal["scores", "probabilities"] = "scores"
    """Pair loss of `hybrid`: of the scores, as in the work that the paper cites (LSEP), or of probabilities over all pairs (the published code), which is bounded and hardly teaches."""
    attention: Literal["sam", "sam_plain", "pcm"] = "sam"
    """Module that the contrast of pixels and regions trains, and after which the maps are taken: spatial attention over maps less their mean, at length 1 (`sam`); as the paper prints it, over the maps as they are (`sam_plain`); or pixel correlation (`pcm`, the published code)."""
    test_maps: Literal["attended", "plain"] | None = None
    """Which maps are the CAMs: after the attention module, or before it; unset: after it where pixel or region contrast trains it. `attended` where neither does: after the module as it starts, its projections identities. The training does not know of it: rows that differ in nothing else share a classifier."""
    crop_pair: Positive = 224
    """Side in pixels of the two overlapping crops whose maps are compared."""
    lambda_image: Weight = 1.0
    """Weight of the image contrast; 0: without."""
    lambda_pixel: Weight = 1.0
    """Weight of the pixel contrast; 0: without."""
    pixel_vectors: Literal["background", "centred", "relu"] = "background"
    """What the pixel contrast compares in a cell: the softmax of its maps and the background (Eqs. 4, 5), the maps less their mean over the cells, or what they show, ReLU (no gradient where a map of the first crop is below 0)."""
    lambda_region: Weight = 1.0
    """Weight of the pairwise regional contrast; 0: without."""
    image_from: Annotated[int, Field(ge=0)] = 4
    """Epochs before the image contrast is switched on."""
    pixel_from: Annotated[int, Field(ge=0)] = 8
    """Epochs before the pixel contrast is switched on."""
    region_from: Annotated[int, Field(ge=0)] = 12
    """Epochs before the regional contrast is switched on."""
    image_loss: Literal["imc", "supervised"] = "imc"
    """Form of the image contrast: the paper's, or that of Khosla et al. (supervised contrastive learning), to compare."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the image contrast (none in the paper; 0.1 in its published code)."""

    @property
    def compares_crops(self) -> bool:
        """Whether any loss looks at the two crops; without, nothing trains the attention module, and there is none."""
        return self.lambda_pixel > 0 or self.lambda_region > 0

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        image = set() if self.lambda_image else {"image_from", "image_loss", "temperature"}
        pixel = set() if self.lambda_pixel else {"pixel_from", "pixel_vectors"}
        region = set() if self.lambda_region else {"region_from"}
        crops = set() if self.compares_crops else {"attention", "crop_pair"}
        pair = set() if self.classification_loss == "hybrid" else {"pair_loss"}
        return super().unused | image | pixel | region | crops | pair | {"test_maps"}

    @property
    def cam_options(self) -> dict[str, str]:
        """See `Classifier`."""
        if self.compares_crops:
            return {"test_maps": "plain"} if self.test_maps == "plain" else {}
        return {"test_maps": "attended", "attention": self.attention} if self.test_maps == "attended" else {}

    @model_validator(mode="after")
    def _every_term_has_its_time(self) -> MclClassifier:
        for name in ("image", "pixel", "region"):
            start = getattr(self, f"{name}_from")
            if getattr(self, f"lambda_{name}") > 0 and start >= self.epochs:
                raise ValueError(f"{name}_from must be smaller than epochs (or lambda_{name} 0), got {start} and {self.epochs}")
        if self.test_maps == "attended" and self.attention == "pcm" and not self.compares_crops:
            raise ValueError("test_maps attended without lambda_pixel and lambda_region needs attention sam or sam_plain, got 'pcm'")
        if self.compares_crops and self.crop_pair > self.crop_size:
            raise ValueError(f"crop_pair must not be greater than crop_size, got {self.crop_pair} and {self.crop_size}")
        if self.lambda_region > 0 and self.crop_pair < 2 * self.output_stride:
            raise ValueError(f"crop_pair must be at least twice output_stride (2 x 2 cells), got {self.crop_pair} and {self.output_stride}")
        return self


class ApcClassifier(Classifier):
    """System `apc`: adaptive patch contrast, a vision transformer that classifies patches and segments, in a single stage. See docs/systems/apc.md."""

    single_stage: ClassVar[bool] = True
    system: Literal["apc"]
    """Adaptive patch contrast."""
    backbone: str = "vit_base_patch16_384"
    """A plain vision transformer of timm; `output_stride` is its patch size."""
    epochs: Positive = 15
    """Passes over the training images."""
    milestones: tuple[Fraction, ...] = (2 / 15,)
    """Fractions of the training at which the `step` schedule multiplies by gamma; unset: where `head_epochs` end."""
    resize: Resize | None = "square"
    """Longer side of the image in pixels, drawn uniformly from this range; `{at_least: 320, at_most: 640}`: only images beyond a limit are resized, to it; `square`: the whole image to `crop_size` x `crop_size`, and to squares in tests too; unset: images keep their size."""
    crop_size: Positive = 384
    """Side of the square training image in pixels."""
    head_epochs: Annotated[int, Field(ge=0)] = 2
    """Epochs at the beginning in which the backbone does not learn."""
    train_blocks: Positive | None = None
    """How many of the transformer's last blocks, with the final normalisation, learn after `head_epochs`; unset: the whole transformer. (ViT-PCM: 5.)"""
    hv_bilstm: bool = True
    """Whether a bidirectional LSTM over rows and columns refines the patch embeddings."""
    pooling: Literal["adaptive", "topk", "max", "average"] = "adaptive"
    """From patch scores to the image's: adaptive-K pooling, the mean of the `k` best, the best, or the mean of all."""
    k: Positive = 6
    """Of `adaptive` the most, of `topk` the number of patches."""
    theta: Fraction = 0.9
    """Of `adaptive`: one more patch counts where the mean is more than so much of that before."""
    lambda_segmentation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    """Weight λ1 of the segmentation branch, whose output the predictions are."""
    lambda_contrast: Weight = 0.01
    """Weight λ2 of the patch contrast; 0: without."""
    epsilon: Annotated[float, Field(ge=0.5, lt=1)] = 0.85
    """Of the patch contrast: a patch surely shows a class above ε, and surely does not below 1 - ε."""
    decoder_channels: Positive = 256
    """Width of the segmentation branch."""
    decoder_levels: Annotated[int, Field(ge=1)] = 4
    """How many of the transformer's blocks, evenly spaced, the segmentation branch merges."""
    label_scores: Literal["probability", "peak"] = "peak"
    """What the segmentation branch's labels are the best of, among the image's own classes and background: the patches' probabilities, or each class's divided by its greatest of the image, then by their sum at the patch (ViT-PCM), so that a background that is surer than the object everywhere does not win; a class that is found nowhere then gets its best place all the same."""
    label_refinement: Literal["pixel_adaptive", "crf", "none"] = "pixel_adaptive"
    """What refines the patch predictions that the segmentation branch learns from: pixel-adaptive refinement, a dense CRF (slow: on the CPU, in each step), nothing."""
    label_dilations: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.025, 0.05)
    """Of `pixel_adaptive`: how far the neighbours of a cell lie, as shares of the image's side; at least one cell (4 pixels), and each distance once. (AFA, by its code: 1, 2, 4, 8, 12 and 24 of 160 cells, [0.00625, 0.0125, 0.025, 0.05, 0.075, 0.15].)"""
    label_iterations: Positive = 3
    """Of `pixel_adaptive`: number of steps. (AFA: 10.)"""
    label_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Where the best refined class scores no more than this, the segmentation branch learns nothing: a probability; with `peak` its share of the scores of the image's classes, of which with a single tag one always has a half, so that values up to 0.5 ignore pixels only where several objects compete."""
    label_from: Annotated[int, Field(ge=0)] = 0
    """Epochs before the segmentation loss counts. (With `probability` the first labels are nearly all background, with `peak` they are not.)"""

    @model_validator(mode="before")
    @classmethod
    def _rate_falls_when_the_backbone_starts(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("milestones") is not None:
            return values
        epochs, head = (values.get(key, cls.model_fields[key].default) for key in ("epochs", "head_epochs"))
        if not (isinstance(epochs, int) and isinstance(head, int) and 0 <= head < epochs):
            return values
        return {**values, "milestones": (head / epochs,)}

    @model_validator(mode="after")
    def _everything_learns(self) -> ApcClassifier:
        for name in ("head_epochs", "label_from"):
            if getattr(self, name) >= self.epochs:
                raise ValueError(f"{name} must be smaller than epochs, got {getattr(self, name)} and {self.epochs}")
        return self

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        pooling = {"adaptive": set(), "topk": {"theta"}}.get(self.pooling, {"k", "theta"})
        refinement = set() if self.label_refinement == "pixel_adaptive" else {"label_dilations", "label_iterations"}
        return super().unused | pooling | refinement | (set() if self.lambda_contrast else {"epsilon"})


def _system_of(values: Any) -> str:
    """The system of a block; a block that names none is the plain classifier."""
    if isinstance(values, dict):
        return str(values.get("system", "cam"))
    return str(getattr(values, "system", "cam"))


AnyClassifier = Annotated[
    Annotated[CamClassifier, Tag("cam")]
    | Annotated[PuzzleClassifier, Tag("puzzle")]
    | Annotated[RsaCfcClassifier, Tag("rsa_cfc")]
    | Annotated[IsimClassifier, Tag("isim")]
    | Annotated[MclClassifier, Tag("mcl")]
    | Annotated[ApcClassifier, Tag("apc")],
    Discriminator(_system_of),
]
_KINDS = (CamClassifier, PuzzleClassifier, RsaCfcClassifier, IsimClassifier, MclClassifier, ApcClassifier)
SYSTEMS = tuple(str(get_args(kind.model_fields["system"].annotation)[0]) for kind in _KINDS)
