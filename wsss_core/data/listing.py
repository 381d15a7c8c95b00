"""Files that come from outside: directories of images, split lists, their checksums, and masks converted from other formats.

The sources `folder`, `voc` and `coco` are built from these; nothing here knows a data set's layout.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np

from wsss_core.data.images import save_mask
from wsss_core.data.index import PREPARED
from wsss_core.errors import UserError
from wsss_core.files import atomic_path

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
MASKS = "masks"
_WHOLE_FILE = 16 * 2**20
_BLOCK = 2**16
_BLOCKS = 64
Item = TypeVar("Item")
Entries = dict[str, "os.DirEntry[str]"]


class Track(Protocol):
    """A progress iterator, such as `Stage.track`."""

    def __call__(self, items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items."""
        ...


def existing_directory(path: str | Path, what: str) -> Path:
    """Return `path` as a Path; raises `UserError` naming `what` (a configuration key) if it is no directory."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory ({what})")
    return directory


def below_root(path: str, what: str) -> str:
    """Return `path` in normal form; raises `UserError` if it is absolute or leaves its directory by `..`."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UserError(f"{what}: expected a path below its directory, without a leading '/' or '..', got '{path}'")
    return pure.as_posix()


def image_id(name: str) -> str:
    """Return a file name without its suffix, if that is an image's: "a/b.jpg" and "a/b" are the same image."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def scan(directory: Path, suffixes: Collection[str] = IMAGE_SUFFIXES, skip: Collection[Path] = ()) -> Entries:
    """Return the files below a directory that have one of the (lower-case) suffixes, by id: path below it without suffix.

    Hidden files and the directories in `skip` are left out. Files are not touched, so that 10,000 take some 20 ms.

    Raises
    ------
    UserError
        If a directory cannot be read, or two files differ in their suffix alone.
    """
    found: Entries = {}
    pending = [(directory, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            with os.scandir(folder) as entries:
                content = list(entries)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
        for entry in content:
            stem, suffix = os.path.splitext(entry.name)
            if entry.name.startswith("."):
                continue
            if suffix.lower() in suffixes:
                if prefix + stem in found:
                    raise UserError(f"{entry.path}: differs from {found[prefix + stem].name} in its suffix alone; names must be unique")
                found[prefix + stem] = entry
            elif entry.is_dir() and Path(entry.path) not in skip:
                pending.append((Path(entry.path), f"{prefix}{entry.name}/"))
    return found


def name_of(identifier: str, entry: os.DirEntry[str]) -> str:
    """Return the path of a scanned file below its directory: the id with the file's own suffix."""
    return identifier + os.path.splitext(entry.name)[1]


def read_list(path: Path) -> tuple[str, ...]:
    """Return the image ids of a split list, one a line, with or without the images' suffix.

    Raises
    ------
    UserError
        If the file cannot be read, or an entry is absolute, holds `..` or is there twice.
    """
    ids: dict[str, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        entry = image_id(below_root(line.strip(), f"{path}: line {number}"))
        if entry in ids:
            raise UserError(f"{path}: line {number}: '{entry}' is listed twice")
        ids[entry] = None
    return tuple(ids)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark; raises `UserError` naming it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error})") from None


def require(ids: Iterable[str], there: Mapping[str, Any], directory: Path, suffix: str, listed_in: str) -> None:
    """Raise `UserError` for the first id that has no file in a scanned directory."""
    for identifier in ids:
        if identifier not in there:
            raise UserError(f"{directory / identifier}{suffix}: no such file, but {listed_in} lists it")


class Checksum:
    """What tells that files changed, without a word about where they lie.

    Parameters
    ----------
    mode
        ``stat``: images and per-image annotations count by name and size; ``content``: by every byte.
    """

    def __init__(self, mode: str) -> None:
        self._every_byte = mode == "content"
        self._hash = hashlib.sha256()

    def add_file(self, role: str, path: Path) -> None:
        """Add the content of a list, label or class file (of one over 16 MiB its size and 64 blocks spread over it)."""
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                if self._every_byte or size <= _WHOLE_FILE:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                else:
                    blocks = hashlib.sha256()
                    for i in range(_BLOCKS):
                        file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
                        blocks.update(file.read(_BLOCK))
                    digest = blocks.hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        self._add(role, size, digest)

    def add_entries(self, role: str, entries: Mapping[str, os.DirEntry[str]], ids: Iterable[str] | None = None) -> None:
        """Add scanned files by name and size, or by every byte; of those in `ids` only the ones that exist."""
        for identifier in sorted(entries if ids is None else entries.keys() & set(ids)):
            entry = entries[identifier]
            if self._every_byte:
                self.add_file(f"{role}/{name_of(identifier, entry)}", Path(entry.path))
                continue
            try:
                self._add(role, name_of(identifier, entry), entry.stat().st_size)
            except OSError as error:
                raise UserError(f"{entry.path}: cannot be read ({error.strerror})") from None

    def add_names(self, role: str, names: Iterable[str]) -> None:
        """Add names alone."""
        self._add(role, *sorted(names))

    def hexdigest(self) -> str:
        """Return the checksum of all that was added, as hex digits."""
        return self._hash.hexdigest()

    def _add(self, *parts: object) -> None:
        self._hash.update(os.fsencode("\0".join(map(str, parts)) + "\n"))


def convert_masks(prepared: Path, ids: Collection[str], make: Callable[[str], np.ndarray], track: Track, what: str) -> dict[str, str]:
    """Write `make(id)` (uint8[H, W]) as `prepared/masks/<id>.png` for each id; return the masks' places for the index.

    Masks already there are kept, so that a conversion that was stopped goes on where it was.
    """
    directory = prepared / MASKS
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".*.tmp"):  # left by a kill; nobody else writes here, the stage holds its lock
        stale.unlink()
    done = scan(directory, (".png",))
    missing = [identifier for identifier in ids if identifier not in done]
    for identifier in track(missing, what, total=len(missing)):
        with atomic_path(directory / f"{identifier}.png") as temporary:
            save_mask(temporary, make(identifier))
    return {identifier: f"{PREPARED}{MASKS}/{identifier}.png" for identifier in ids}
