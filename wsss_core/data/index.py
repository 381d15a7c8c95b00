"""The index of a data set: what the `data` stage writes and every later stage reads, whatever the source.

It knows image-level labels. It does not give masks: those are behind `wsss_core.data.truth`, which evaluation (and the
fully supervised upper bound) alone may open.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

INDEX_FILE = "index.json"
PREPARED = "prepared:"


@dataclass(frozen=True)
class Record:
    """One image.

    Attributes
    ----------
    id
        Name without suffix, unique in the data set; may contain "/".
    image
        Path relative to the data set's root, or ``prepared:`` + a path relative to the data stage's directory.
    labels
        Sorted foreground class numbers in [1, C-1]; empty: the image holds no object.
    mask
        Path of the indexed PNG in the same two forms, or None. For `wsss_core.data.truth` alone.
    """

    id: str
    image: str
    labels: tuple[int, ...]
    mask: str | None = None


@dataclass(frozen=True)
class DataIndex:
    """A prepared data set.

    Attributes
    ----------
    classes
        C names, background first.
    splits
        Records by split: train, val and, where there is one, test.
    label_source
        Where the image-level labels come from, in words; "masks" only if the user asked for it by name.
    root
        Directory of the original images; None if all are prepared ones.
    prepared
        Directory of the data stage.
    """

    classes: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]
    label_source: str
    root: Path | None
    prepared: Path

    @property
    def num_classes(self) -> int:
        """Number of classes including background."""
        return len(self.classes)

    def split(self, name: str) -> tuple[Record, ...]:
        """Return the records of a split; raises `UserError` if there is none of that name or it is empty."""
        if not self.splits.get(name):
            raise UserError(f"{self.prepared / INDEX_FILE}: the split '{name}' is empty{did_you_mean(name, self.splits)}")
        return self.splits[name]

    def resolve(self, path: str) -> Path:
        """Return the absolute place of a record's `image` or `mask`."""
        if path.startswith(PREPARED):
            return self.prepared / path.removeprefix(PREPARED)
        if self.root is None:
            raise UserError(f"{path}: relative to the data set's root, but the data set has none")
        return self.root / path

    def image_path(self, record: Record) -> Path:
        """Return the place of a record's image."""
        return self.resolve(record.image)

    def multi_hot(self, record: Record) -> np.ndarray:
        """Return the image-level label as float32[C-1], 1 where foreground class c+1 is in the image."""
        import numpy as np

        vector = np.zeros(self.num_classes - 1, dtype=np.float32)
        vector[[label - 1 for label in record.labels]] = 1
        return vector


def write_index(index: DataIndex) -> dict[str, Any]:
    """Return the index as what `index.json` holds; roots are left out, so that moved data stays the same data."""
    return {
        "classes": list(index.classes),
        "label_source": index.label_source,
        "splits": {name: [asdict(record) for record in records] for name, records in index.splits.items()},
    }


def read_index(prepared: Path, root: str | Path | None) -> DataIndex:
    """Read what the data stage left in `prepared`. `root` is where the original images lie now."""
    path = Path(prepared) / INDEX_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the data stage first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not the index of a data set ({error})") from None
    splits = {name: tuple(Record(**{**r, "labels": tuple(r["labels"])}) for r in records) for name, records in values["splits"].items()}
    return DataIndex(
        classes=tuple(values["classes"]),
        splits=splits,
        label_source=values["label_source"],
        root=Path(root) if root is not None else None,
        prepared=Path(prepared),
    )
