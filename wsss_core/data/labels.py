"""Image-level labels: from a CSV, from VOC's XML annotations or, if the user asks for it by name, derived from masks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from wsss_core.data.images import IGNORE, read_mask
from wsss_core.data.listing import Track, image_id, read_text
from wsss_core.errors import UserError, did_you_mean

BACKGROUND = "background"
_TAG_HEADERS = frozenset(("tag", "tags", "label", "labels", "class", "classes"))
_IMAGE_HEADERS = frozenset(("image", "images", "image_id", "id", "file", "filename", "file_name", "name"))
_BINARY = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
Origin = Path | Literal["xml", "masks"]


@dataclass(frozen=True)
class LabelTable:
    """Class names per image.

    Attributes
    ----------
    names
        All foreground classes the labels speak of, sorted, also those that no image has.
    rows
        Foreground class names by image id; empty: the image holds no object.
    """

    names: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]


def describe(origin: Origin) -> str:
    """Return where labels come from, in words."""
    return {"xml": "XML object annotations", "masks": "masks"}[origin] if isinstance(origin, str) else origin.name


def read_labels(
    origin: Origin,
    splits: Mapping[str, Sequence[str]],
    *,
    annotations: Path,
    masks: Mapping[str, Path],
    classes: Sequence[str] | None,
    track: Track,
) -> LabelTable:
    """Return the class names of all images of all splits.

    Parameters
    ----------
    origin
        A CSV, ``"xml"`` (one file an image in `annotations`) or ``"masks"``.
    splits
        Image ids by split. Images of `test` may be without labels; they get none.
    classes
        Names of all classes, background first, if known; ``"masks"`` needs them.

    Raises
    ------
    UserError
        If a train or val image has no label, naming the file that should hold it, or a file is damaged.
    """
    if isinstance(origin, Path):
        table = read_csv_labels(origin, classes)
        known, place = table.rows.__contains__, lambda i: f"{origin}: no row for the image '{i}' (a row without tags: no object)"
        return LabelTable(table.names, _collect(splits, known, table.rows.__getitem__, place, track))
    if origin == "xml":
        rows = _collect(
            splits,
            known=lambda i: (annotations / f"{i}.xml").is_file(),
            read=lambda i: read_xml_labels(annotations / f"{i}.xml"),
            place=lambda i: f"{annotations / i}.xml: no such annotation; labels 'xml' need one for each image",
            track=track,
        )
    else:
        if classes is None:
            raise UserError("dataset.labels: 'masks' needs the class names: expected classes.txt or dataset.classes")
        rows = _collect(
            splits,
            known=masks.__contains__,
            read=lambda i: tuple(classes[number] for number in labels_of_mask(masks[i], len(classes))),
            place=lambda i: f"{i}: has no mask; labels 'masks' need one for each image",
            track=track,
        )
    return LabelTable(tuple(sorted({name for row in rows.values() for name in row})), rows)


def _collect(
    splits: Mapping[str, Sequence[str]],
    known: Callable[[str], bool],
    read: Callable[[str], tuple[str, ...]],
    place: Callable[[str], str],
    track: Track,
) -> dict[str, tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    for split, ids in splits.items():
        for identifier in track(ids, f"labels of {split}", total=len(ids)):
            if known(identifier):
                rows[identifier] = read(identifier)
            elif split == "test":
                rows[identifier] = ()
            else:
                raise UserError(place(identifier))
    return rows


def class_numbers(names: Iterable[str], classes: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the sorted numbers of class names; raises `UserError` for an unknown one."""
    numbers = set()
    for name in names:
        if name not in classes:
            raise UserError(f"{where}: unknown class '{name}'{did_you_mean(name, classes)}")
        numbers.add(classes.index(name))
    return tuple(sorted(numbers))


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the class names of a text file, one a line.

    Raises `UserError` if the first is not "background", a name is there twice or there are more than 255 (255 is ignore).
    """
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not names or names[0] != BACKGROUND:
        raise UserError(f"{path}: the first line must be '{BACKGROUND}' (class 0), got '{names[0] if names else ''}'")
    check_classes(names, str(path))
    return names


def check_classes(names: Sequence[str], where: str) -> None:
    """Raise `UserError` unless class names are distinct, at least one beside background, and fit a mask's byte."""
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise UserError(f"{where}: the class '{min(double)}' is there twice")
    if not 2 <= len(names) <= IGNORE:
        raise UserError(f"{where}: expected 1 to {IGNORE - 1} classes beside background, got {len(names) - 1}")


def read_csv_labels(path: Path, classes: Sequence[str] | None = None) -> LabelTable:
    """Read `image,tags` with tags `cow;sheep`, or `image` and one 0/1 column per class.

    A header is needed for the second form unless `classes` (background first) has a name for each column, and optional
    for the first. The image may have a suffix or not. A tag or column "background" says nothing and is left out.

    Raises
    ------
    UserError
        Naming the file, the line and what was expected.
    """
    reader = csv.reader(read_text(path).splitlines())
    lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    if not lines:
        raise UserError(f"{path}: empty; expected image,tags or image and one 0/1 column per class")
    first = lines[0][1]
    for number, cells in lines:
        if len(cells) != len(first) or len(cells) < 2:
            raise UserError(f"{path}: line {number}: expected {max(len(first), 2)} cells, got {len(cells)} (tags share a cell: cow;sheep)")
    if len(first) > 2 or (first[1].lower() not in _TAG_HEADERS and _all_binary(lines[1:])):
        names, parsed = _read_columns(path, lines, classes)
    else:
        header = first[1].lower() in _TAG_HEADERS or first[0].lower() in _IMAGE_HEADERS
        parsed = [(number, image, [tag.strip() for tag in tags.split(";") if tag.strip()]) for number, (image, tags) in lines[header:]]
        names = sorted({tag for _, _, tags in parsed for tag in tags})
    rows: dict[str, tuple[str, ...]] = {}
    for number, image, tags in parsed:
        identifier = image_id(image)
        if identifier in rows:
            raise UserError(f"{path}: line {number}: the image '{identifier}' has two rows")
        rows[identifier] = tuple(tag for tag in tags if tag != BACKGROUND)
    return LabelTable(tuple(sorted(set(names) - {BACKGROUND})), rows)


def _all_binary(lines: list[tuple[int, list[str]]]) -> bool:
    return bool(lines) and all(cell.lower() in _BINARY for _, cells in lines for cell in cells[1:])


def _read_columns(
    path: Path, lines: list[tuple[int, list[str]]], classes: Sequence[str] | None
) -> tuple[list[str], list[tuple[int, str, list[str]]]]:
    """Read the form with one column per class: return its class names and (line number, image, tags) of each row."""
    names, rows = lines[0][1][1:], lines[1:]
    if _all_binary(lines[:1]):
        if classes is None or len(classes) - 1 != len(names):
            expected = f"; classes.txt names {len(classes) - 1}" if classes is not None else ""
            raise UserError(f"{path}: line 1: expected a header with the class of each of the {len(names)} columns{expected}")
        names, rows = list(classes[1:]), lines
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"{path}: line 1: expected a different class name for each column, got {', '.join(names)}")
    parsed = []
    for number, (image, *cells) in rows:
        for name, cell in zip(names, cells, strict=True):
            if cell.lower() not in _BINARY:
                raise UserError(f"{path}: line {number}: column '{name}': expected 0 or 1, got '{cell}' (tags share a cell: cow;sheep)")
        parsed.append((number, image, [name for name, cell in zip(names, cells, strict=True) if _BINARY[cell.lower()]]))
    return names, parsed


def read_xml_labels(path: Path) -> tuple[str, ...]:
    """Return the class names of all objects of a VOC annotation, "difficult" ones included; parts (head, hand) are no objects."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: not an XML file ({error})") from None
    names = [(item.findtext("name") or "").strip() for item in root.findall("object")]
    if root.tag != "annotation" or "" in names:
        raise UserError(f"{path}: not a VOC annotation: expected <annotation> with an <object><name> per object")
    return tuple(sorted(set(names)))


def labels_of_mask(path: Path, num_classes: int) -> tuple[int, ...]:
    """Return the foreground classes with at least a pixel in a mask. Stronger supervision than tags: on the user's word alone."""
    return tuple(int(number) for number in np.unique(read_mask(path, num_classes)) if number not in (0, IGNORE))
