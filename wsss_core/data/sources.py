"""From a `dataset` block to an index, whatever the source, and what the plan records of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_core.config.datasets import SOURCES, Coco14, Dataset, Folder, Shapes, Voc12
from wsss_core.config.load import validate
from wsss_core.data.index import DataIndex
from wsss_core.errors import UserError, did_you_mean
from wsss_core.stage import SPEC

if TYPE_CHECKING:
    from wsss_core.data.listing import Track

_MODELS: dict[str, type[Shapes | Folder | Voc12 | Coco14]] = {"shapes": Shapes, "folder": Folder, "voc12": Voc12, "coco14": Coco14}
_PLACES = ("root", "sbd")
_NOT_PARAMETERS = {"name", "checksum", *_PLACES}


def build_index(dataset: Dataset, prepared: Path, track: Track) -> DataIndex:
    """Index a data set; whatever is made or converted is written below `prepared`, whole and resumably.

    Parameters
    ----------
    dataset
        The `dataset` block of the configuration.
    prepared
        Directory of the data stage.
    track
        `track(items, what, total=None)` iterates with progress.

    Raises
    ------
    UserError
        With one line that names the file, the key and what was expected.
    """
    return _module(dataset).build_index(dataset, Path(prepared), track)


def checksum(dataset: Dataset) -> dict[str, str]:
    """Return what tells that data from outside changed: hex digests `images` and `masks`, which know no path.

    `images` covers all that the index is made of: images and per-image annotations by name and size (or every byte, see
    `dataset.checksum`), lists, label and class files by content, files that are converted, and which images have a mask.
    `masks` covers the masks that are read in place: it enters evaluation and the upper bound, and nothing else.
    Made images have nothing outside: both are "".
    """
    if isinstance(dataset, Shapes):
        return {"images": "", "masks": ""}
    from wsss_core.data.listing import Checksum

    images, masks = Checksum(dataset.checksum), Checksum(dataset.checksum)
    _module(dataset).add_checksums(dataset, images, masks)
    return {"images": images.hexdigest(), "masks": masks.hexdigest()}


def spec_parameters(dataset: Dataset) -> dict[str, Any]:
    """Return the block as the spec's `parameters["dataset"]`: all that makes the result, not its name or where it lies.

    The plan adds `content`, the checksum `images`.
    """
    return dataset.model_dump(mode="json", exclude=_NOT_PARAMETERS)


def spec_files(dataset: Dataset) -> dict[str, str]:
    """Return the block's places outside the project as the spec's `files`: `root` and `sbd`, those that are set."""
    return {key: str(Path(getattr(dataset, key)).expanduser()) for key in _PLACES if getattr(dataset, key, None)}


def dataset_from_spec(parameters: dict[str, Any], files: dict[str, str], where: str = SPEC) -> Dataset:
    """Return the block that `spec_parameters` and `spec_files` were made from (its name apart); `where` names the spec."""
    values = {key: value for key, value in parameters.items() if key != "content"}
    source = values.get("source")
    if source not in _MODELS:
        raise UserError(f"{where}: parameters.dataset.source: unknown source '{source}'{did_you_mean(str(source), SOURCES)}")
    places = {key: files[key] for key in _PLACES if key in files}
    return validate(_MODELS[source], {**values, **places}, f"{where}: parameters.dataset")


def summary(index: DataIndex) -> str:
    """Return a data set in one line: images and masks per split, classes, images without object, source of the labels."""
    splits = []
    for name, records in index.splits.items():
        masks, empty = sum(r.mask is not None for r in records), sum(not r.labels for r in records)
        splits.append(f"{name} {len(records)} images ({masks} with mask, {empty} without object)")
    derived = " (derived from pixel masks, as the configuration asks)" if index.label_source == "masks" else ""
    return f"{', '.join(splits)}; {index.num_classes - 1} object classes; image-level labels: {index.label_source}{derived}"


def _module(dataset: Dataset) -> Any:
    """Return the module of a source; only that one is imported, so that a plan on made images is not kept waiting."""
    if isinstance(dataset, Shapes):
        from wsss_core.data import shapes

        return shapes
    if isinstance(dataset, Folder):
        from wsss_core.data import folder

        return folder
    if isinstance(dataset, Voc12):
        from wsss_core.data import voc

        return voc
    from wsss_core.data import coco

    return coco
