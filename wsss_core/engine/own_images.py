"""A person's own images, labelled by a trained segmenter: which images, which model, and the results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from wsss_core.data.images import overlay_mask, read_image, save_mask
from wsss_core.data.listing import IMAGE_SUFFIXES
from wsss_core.engine.models import DESCRIPTION
from wsss_core.engine.predictor import Predictor
from wsss_core.errors import UserError
from wsss_core.files import atomic_path, read_json
from wsss_core.systems import system_type
from wsss_core.systems.base import SegmentSystem, System


def find_model(path: Path) -> Path:
    """Return the segmenter's directory for a model, seed or experiment directory; raises `UserError` if there is none.

    A single-stage experiment without a further segmenter has its classifier's: that of the system `apc`.
    """
    if (path / DESCRIPTION).is_file():
        return path
    for name in ("segmenter", "classifier"):
        for candidate in (path / name, *sorted(path.glob(f"seed*/{name}"))):
            if (candidate / DESCRIPTION).is_file() and issubclass(_system_in(candidate), SegmentSystem):
                return candidate
    raise UserError(
        f"{path}: holds no finished segmenter; expected results/<data set>/experiments/<name> or a directory with {DESCRIPTION}"
    )


def _system_in(directory: Path) -> type[System]:
    path = directory / DESCRIPTION
    return system_type(str(read_json(path)["parameters"]["system"]), str(path))


def find_images(inputs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return (image, relative name) for files, folders (searched recursively) and .txt lists of paths (one a line)."""
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(f"{path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.suffix == ".txt" and path.is_file():
            lines = [Path(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            found += [(line if line.is_absolute() else path.parent / line, Path(line.name)) for line in lines]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise UserError(f"{path}: no such file or directory")
    names: dict[Path, Path] = {}
    for path, name in found:
        other = names.setdefault(name.with_suffix(""), path)
        if other != path:
            raise UserError(f"{path}: would be written under the same name as {other}; predict them into different directories")
    return found


def predict_images(predictor: Predictor, images: list[tuple[Path, Path]], output: Path) -> None:
    """Write `masks/<name>.png` (indexed, palette) and `overlays/<name>.jpg` for each image, with progress."""
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    for path, name in track(images, "predict", console=Console(stderr=True)):
        image = read_image(path)
        mask = predictor.labels(image)
        with atomic_path(output / "masks" / name.with_suffix(".png")) as temporary:
            save_mask(temporary, mask)
        with atomic_path(output / "overlays" / name.with_suffix(".jpg")) as temporary:
            Image.fromarray(overlay_mask(image, mask)).save(temporary, format="JPEG", quality=92)
