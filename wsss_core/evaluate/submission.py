"""The archive that the PASCAL VOC test server takes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from wsss_core.errors import UserError
from wsss_core.files import atomic_path


def write_submission(directory: Path, output: Path, split: str = "test") -> int:
    """Zip `directory/masks/*.png` as results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png; return their number."""
    masks = sorted((directory / "masks").glob("*.png"))
    if not masks:
        raise UserError(f"{directory / 'masks'}: holds no predicted masks; expected a finished predict stage")
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for mask in masks:
            archive.write(mask, f"results/VOC2012/Segmentation/comp6_{split}_cls/{mask.name}")
    return len(masks)
