"""The sources of images and image-level labels (`dataset:` in the configuration)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from wsss_core.config.base import Block, Fraction, Positive

SOURCES = ("shapes", "folder", "voc12", "coco14")


class _Source(Block):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = ""
    """Folder below `results/` that holds all that is computed on this data; unset: the source's name."""

    @model_validator(mode="before")
    @classmethod
    def _name_defaults_to_source(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            values = {**values, "name": values.get("source", cls.model_fields["source"].default)}
        return values


class _Outside(_Source):
    checksum: Literal["stat", "content"] = "stat"
    """What tells that images or masks changed: names and sizes of the files (`stat`), or every byte (`content`, slower)."""


class Shapes(_Source):
    """Made images: deterministic from a seed, with the difficulties of weak supervision built in."""

    source: Literal["shapes"] = "shapes"
    """Made images; nothing is read from outside."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawing."""
    size: Annotated[int, Field(ge=48, le=1024)] = 112
    """Side of the square images in pixels."""
    train: Positive = 400
    """Number of training images."""
    val: Positive = 100
    """Number of validation images."""
    classes: Annotated[int, Field(ge=2, le=6)] = 5
    """Number of object classes."""
    objects: tuple[Positive, Positive] = (1, 3)
    """Fewest and most objects in an image that holds any."""
    empty: Fraction = 0.04
    """Share of images without any object."""
    context: Fraction = 0.8
    """Probability that a class with a context (rails below the train) appears with it."""
    clutter: Fraction = 0.5
    """Amount of background texture and distracting clutter."""

    @model_validator(mode="after")
    def _objects_is_a_range(self) -> Shapes:
        if self.objects[0] > self.objects[1]:
            raise ValueError(f"objects must be [fewest, most], got {list(self.objects)}")
        return self


class Folder(_Outside):
    """Own images with tags: VOC layout or a directory of images and a CSV."""

    source: Literal["folder"] = "folder"
    """A directory of images with tags."""
    root: str
    """Directory that all other paths are relative to."""
    images: str | None = None
    """Directory of the images; unset: `JPEGImages`, then `images`, then the root itself, whichever exists first."""
    labels: str = "auto"
    """Image-level labels: a CSV (`image,tags` with `tag1;tag2`, or one 0/1 column per class), `xml` (VOC annotations), `masks` (derived from the masks: the data stage's manifest says so); `auto` looks for image_labels.csv, labels.csv, tags.csv, then XML, never masks."""
    masks: str | None = None
    """Directory of indexed PNG masks, only for evaluation and the upper bound; unset: `SegmentationClass` or `masks` if there."""
    classes: str = "auto"
    """Text file with one class name a line, background first; `auto`: classes.txt, else the names found in the labels, sorted."""
    splits: str = "auto"
    """Directory with train.txt and val.txt; `auto`: `ImageSets/Segmentation`, else `splits`, else a random split."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the images held out for val when there are no split lists; drawn by a hash of the file name."""


class Voc12(_Outside):
    """PASCAL VOC 2012, with SBD's extra annotations for `trainaug` (10,582 images)."""

    source: Literal["voc12"] = "voc12"
    """PASCAL VOC 2012."""
    root: str
    """The directory VOCdevkit/VOC2012."""
    sbd: str | None = None
    """SBD's directory `dataset` (with cls/*.mat), converted to masks; unset: `SegmentationClassAug` in the root if there."""
    train_split: Literal["trainaug", "train"] = "trainaug"
    """List of training images."""
    labels: str = "xml"
    """Image-level labels: `xml` (object annotations), a CSV, or `masks` (derived from the masks: the data stage's manifest says so)."""


class Coco14(_Outside):
    """MS COCO 2014: 80 classes and background, from the instance annotations."""

    source: Literal["coco14"] = "coco14"
    """MS COCO 2014."""
    root: str
    """Directory with train2014/, val2014/ and annotations/."""
    train_annotations: str = "annotations/instances_train2014.json"
    """Instances of the training images, relative to the root."""
    val_annotations: str = "annotations/instances_val2014.json"
    """Instances of the validation images, relative to the root."""


Dataset = Annotated[Shapes | Folder | Voc12 | Coco14, Field(discriminator="source")]
