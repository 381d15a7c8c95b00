"""The classifiers whose class activation maps are the first guess: one block per published system, chosen by `system`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from wsss_core.config.base import Fraction, Positive, Training

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Classifier(Training):
    """What the classifiers of all systems share."""

    snapshots: tuple[Positive, ...] = ()
    """Epochs after which a copy of the model is kept. The CAMs of each are evaluated too (figures `cams-epoch<k>...`), apart from the training: how good they are against iterations. Another list trains the classifier again."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        return set() if self.snapshots else {"snapshots"}

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

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        return super().unused | (set() if self.beta_reconstruction else {"ramp"})


class PuzzleClassifier(_Puzzle):
    """System `puzzle`: Puzzle-CAM, whole image and 2 x 2 tiles. See docs/systems/rsa-cfc.md."""

    system: Literal["puzzle"]
    """Puzzle-CAM."""


class RsaCfcClassifier(_Puzzle):
    """System `rsa_cfc`: regional self-attention and cross-image foreground contrast on Puzzle-CAM. See docs/systems/rsa-cfc.md."""

    system: Literal["rsa_cfc"]
    """RSA + CFC."""
    attention: Literal["relu_cosine", "softmax_cosine", "none"] = "relu_cosine"
    """Kernel of the regional self-attention: max(0, cosine), exp(cosine / `temperature`), or `none`: without RSA."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of `softmax_cosine`: the smaller, the more the most similar cells alone count."""
    lambda_contrast: Weight = 0.5
    """Weight λ of the cross-image foreground contrast; 0: without CFC."""
    alpha: Weight = 0.25
    """Slope α of the rank weight of a pair of images."""
    present_only: bool = True
    """Whether the maps of classes that the image does not show are left out of the foreground vectors; false: all classes count."""

    @property
    def unused(self) -> set[str]:
        """See `Training`."""
        kernel = set() if self.attention == "softmax_cosine" else {"temperature"}
        return super().unused | kernel | (set() if self.lambda_contrast else {"alpha", "present_only"})


def _system_of(values: Any) -> str:
    """The system of a block; a block that names none is the plain classifier."""
    if isinstance(values, dict):
        return str(values.get("system", "cam"))
    return str(getattr(values, "system", "cam"))


AnyClassifier = Annotated[
    Annotated[CamClassifier, Tag("cam")] | Annotated[PuzzleClassifier, Tag("puzzle")] | Annotated[RsaCfcClassifier, Tag("rsa_cfc")],
    Discriminator(_system_of),
]
SYSTEMS = tuple(str(get_args(kind.model_fields["system"].annotation)[0]) for kind in (CamClassifier, PuzzleClassifier, RsaCfcClassifier))
