"""The `data` stage: index, manifest and log, and splits that overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss_core.config import Folder
from wsss_core.data import sources
from wsss_core.data.images import save_mask
from wsss_core.data.index import read_index
from wsss_core.errors import UserError
from wsss_core.stage import Spec, Stage, run_stage
from wsss_core.stages.data import prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "splits").mkdir()
    for number, name in enumerate("abcd"):
        Image.fromarray(np.full((6, 8, 3), 60 * number, dtype=np.uint8)).save(root / "images" / f"{name}.png")
        save_mask(root / "masks" / f"{name}.png", np.zeros((6, 8), dtype=np.uint8))
    (root / "splits/train.txt").write_text("a\nb\n")
    (root / "splits/val.txt").write_text("c\n")
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    (root / "tags.csv").write_text("image,tags\na,cat\nb,dog\nc,\n")
    return root


def spec_of(dataset: Any, output: Path) -> dict[str, Any]:
    return {
        "stage": "data",
        "id": "0123456789",
        "revision": 1,
        "parameters": {"dataset": {**sources.spec_parameters(dataset), "content": sources.checksum(dataset)["images"]}},
        "seed": None,
        "upstream": {},
        "inputs": {},
        "files": sources.spec_files(dataset),
        "run": {},
        "output": str(output),
    }


def test_data_stage(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "stage"
    output.mkdir()
    (output / "spec.json").write_text(json.dumps(spec_of(Folder(root=str(root)), output)))
    run_stage(output / "spec.json", ("data",), prepare, threads=1)

    index = read_index(output, root)
    assert [r.labels for r in index.split("train")] == [(1,), (2,)]
    assert "train 2 images (2 with mask, 0 without object)" in (output / "log.txt").read_text()
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["label_source"] == "tags.csv"
    assert set(manifest["outputs"]) == {"index.json"}
    assert str(root) not in (output / "index.json").read_text()


def test_data_stage_says_that_labels_are_from_masks(root: Path, tmp_path: Path) -> None:
    save_mask(root / "masks/a.png", np.ones((6, 8), dtype=np.uint8))
    values = spec_of(Folder(root=str(root), labels="masks"), tmp_path)
    stage = Stage(Spec(**{**values, "output": tmp_path}), threads=1, gpus=0)
    prepare(stage)
    assert stage.facts["label_source"] == "masks"
    assert "derived from pixel masks" in (tmp_path / "log.txt").read_text()


def test_an_image_in_two_splits_is_refused(root: Path, tmp_path: Path) -> None:
    lists = next(root.rglob("train.txt")).parent
    (lists / "val.txt").write_text((lists / "train.txt").read_text())
    dataset = Folder(root=str(root))
    values = {"dataset": {**sources.spec_parameters(dataset), "content": ""}}
    spec = Spec("data", "0" * 10, 1, values, None, {}, {}, sources.spec_files(dataset), {}, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is in both train and val"):
        prepare(Stage(spec, 1, 0))
