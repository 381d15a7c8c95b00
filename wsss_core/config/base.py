"""What all configuration blocks share: strict keys, immutability, and the fields of everything that trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scales = Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], Field(min_length=1)]


class Block(BaseModel):
    """A section of the configuration: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Backbone(Block):
    """Which timm network, its weights and its output stride."""

    backbone: str = "resnet50"
    """Any timm model name (`timm.list_models()`)."""
    weights: str = "pretrained"
    """`pretrained` (timm's default weights, downloaded once), `none` (random), or the path of a local .safetensors/.pth file."""
    output_stride: Literal[8, 14, 16, 32] = 16
    """Pixels of the image per cell of the last feature map; the last stages are dilated instead of strided. Of a vision transformer its patch size (14 for some)."""
    mean: tuple[float, float, float] | None = None
    """Channel means for images in [0, 1]; unset: those of the backbone's pretrained weights."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations for images in [0, 1]; unset: those of the backbone's pretrained weights."""
    freeze_batch_norm: bool | Literal["auto"] = False
    """Whether the backbone's batch normalisation keeps the statistics of its weights in training, too; its scales and shifts learn. `auto`: unless `weights` is none."""

    @property
    def keeps_statistics(self) -> bool:
        """`freeze_batch_norm`, `auto` resolved."""
        return self.weights != "none" if self.freeze_batch_norm == "auto" else self.freeze_batch_norm


class ResizeLimits(Block):
    """Limits of an image's longer side; an image within them keeps its size."""

    at_least: Positive
    """A smaller image is enlarged to this longer side, in pixels."""
    at_most: Positive
    """A larger image is reduced to this longer side, in pixels."""

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> ResizeLimits:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least must not be greater than at_most, got {self.at_least} and {self.at_most}")
        return self


def _kind_of_resize(values: Any) -> str:
    if isinstance(values, str):
        return "square"
    return "limits" if isinstance(values, (dict, ResizeLimits)) else "range"


RESIZES = ("range", "limits", "square")
Resize = Annotated[
    Annotated[tuple[Positive, Positive], Tag("range")]
    | Annotated[ResizeLimits, Tag("limits")]
    | Annotated[Literal["square"], Tag("square")],
    Discriminator(_kind_of_resize),
]


class Training(Backbone):
    """The training loop, the optimiser and the augmentation; every system that trains has these fields."""

    epochs: Positive = 10
    """Passes over the training images."""
    batch_size: Positive = 16
    """Images per optimiser step and device."""
    accumulate: Positive = 1
    """Batches whose gradients are summed (as a mean) before one optimiser step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Update rule."""
    lr: Rate | Literal["auto"] = "auto"
    """Initial learning rate of the backbone. `auto`: 0.01 for SGD; for Adam and AdamW 3e-4, and 1e-4 for backbones with layer normalisation (transformers, ConvNeXt)."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate of all newly initialised layers, as a multiple of `lr`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum. Much published code in this field ran with about 1e-4 (weight decay passed in momentum's place)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty (SGD, Adam) or decoupled decay (AdamW)."""
    schedule: Literal["poly", "step", "constant"] = "poly"
    """Learning rate over steps: `poly` (1 - step/steps)^power, `step` (times gamma at each milestone), `constant`."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of the `poly` schedule."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """Fractions of the training at which the `step` schedule multiplies by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the `step` schedule."""
    warmup: Fraction = 0.05
    """Fraction of the training over which the learning rate rises linearly from 0."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm; unset: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward passes; `auto`: bf16 on GPUs that have it, fp32 elsewhere."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory layout; `auto`: channels last for convolutional networks, not for those with layer normalisation (transformers, ConvNeXt)."""
    resize: Resize | None = (320, 640)
    """Longer side of the image in pixels, drawn uniformly from this range; `{at_least: 320, at_most: 640}`: only images beyond a limit are resized, to it; `square`: the whole image to `crop_size` x `crop_size`, whatever its shape; unset: images keep their size."""
    crop_size: Positive = 512
    """Side of the square training crop in pixels; smaller images are padded (images with the mean, masks with ignore)."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random changes of brightness, contrast and saturation."""

    @property
    def unused(self) -> set[str]:
        """Fields that make no difference as the others are: they must not change an id."""
        steps = {"milestones", "gamma"}
        schedule = {"poly": steps, "step": {"power"}, "constant": {"power", *steps}}[self.schedule]
        return schedule | (set() if self.optimizer == "sgd" else {"momentum"})

    @model_validator(mode="after")
    def _resize_is_a_range(self) -> Training:
        if isinstance(self.resize, tuple) and self.resize[0] > self.resize[1]:
            raise ValueError(f"resize must be [smallest, largest], got {list(self.resize)}")
        return self
