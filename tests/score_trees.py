"""What tests of single stages share: images of odd sizes with CAMs and untrained networks, on disk, without a workflow around them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsss_core.data.index import INDEX_FILE, DataIndex, Record, write_index
from wsss_core.engine.models import TrainedModel, load_model, save_model
from wsss_core.stage import Spec, Stage
from wsss_core.store import ScoreWriter
from wsss_core.systems import make_system

CLASSES = ("background", "a", "b", "c")
NETWORK = {"backbone": "test_resnet", "weights": "none", "crop_size": 64, "resize": None, "radius": 3}


@dataclass
class Made:
    """An image uint8[H, W, 3] with the CAMs float32[K, h, w] of its classes."""

    image: np.ndarray
    cams: np.ndarray
    classes: tuple[int, ...]


def odd_images() -> dict[str, Made]:
    """Squares on noise. Sizes are odd, equal, nearly equal and far apart; "d" holds no class, "sub/c" lies in a folder."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (height, width), classes in [
        ("a", (33, 47), (1,)),
        ("b", (64, 64), (2, 3)),
        ("sub/c", (50, 31), (3,)),
        ("d", (41, 57), ()),
        ("e", (33, 39), (1, 2)),
        ("f", (150, 203), (2,)),
        ("g", (64, 64), (1,)),
    ]:
        image = rng.integers(60, 120, (height, width, 3)).astype(np.uint8)
        image[8:24, 8:24] = (200, 30, 40)
        cams = rng.random((len(classes), -(-height // 4), -(-width // 4))).astype(np.float16).astype(np.float32) * 0.5
        cams[:, 2:6, 2:6] = 1
        found[name] = Made(image, cams, classes)
    return found


class Tree:
    """A `data` stage, a `cams` stage, and what is needed to run single stages after them."""

    def __init__(self, root: Path, made: dict[str, Made]) -> None:
        self.root, self.made = root, made
        with ScoreWriter(self.make("cams") / "scores.h5", len(CLASSES)) as writer:
            for name, each in made.items():
                self.image(name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(each.image).save(self.image(name))
                writer.add(name, each.cams, np.array(each.classes, np.int32), each.image.shape[:2])
        records = tuple(Record(name, f"images/{name}.png", each.classes) for name, each in made.items())
        index = DataIndex(CLASSES, {"train": records}, "made", root, self.make("data"))
        (root / "data" / INDEX_FILE).write_text(json.dumps(write_index(index)))

    def make(self, name: str) -> Path:
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return self.root / name

    def image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.png"

    def stage(self, kind: str, parameters: dict[str, Any], output: str | None = None, threads: int = 1, **inputs: str) -> Stage:
        """A stage after `data` and `cams`; further or other inputs by role."""
        places = {"data": "data", "scores": "cams", **inputs}
        roles = {role: self.root / place for role, place in places.items()}
        spec = Spec(kind, "0123456789", 1, parameters, None, {}, roles, {"root": str(self.root)}, {}, self.make(output or kind))
        return Stage(spec, threads, 0)

    def network(self, kind: str, **changes: Any) -> TrainedModel:
        """Write an untrained network, the same each time, to `model`; batch normalisation has statistics of its own."""
        parameters = {"system": kind, **NETWORK, **changes}
        torch.manual_seed(0)
        model = make_system(parameters, len(CLASSES), "test").build()
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
        save_model(self.make("model"), model, parameters, CLASSES)
        return load_model(self.root / "model")

    def threshold(self, value: float) -> str:
        """Write the output of a `threshold` stage; return the name of its directory."""
        (self.make("threshold") / "threshold.json").write_text(json.dumps({"threshold": value}))
        return "threshold"
