"""The test path of a trained segmenter: multi-scale, flip, optional dense CRF; for the workflow and for a person's own images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.config import Predict, validate
from wsss_core.data.images import overlay_mask, read_image, save_mask
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.data.listing import IMAGE_SUFFIXES
from wsss_core.devices import torch_device
from wsss_core.engine.models import DESCRIPTION, load_model
from wsss_core.errors import UserError
from wsss_core.files import atomic_path, read_json
from wsss_core.inference import images_of, inference_precision, network_inputs
from wsss_core.refine.predictions import present_classes, refine_predictions, refine_probabilities
from wsss_core.stage import SPEC, Stage
from wsss_core.store import ScoreWriter, shard_ranges
from wsss_core.systems import system_type
from wsss_core.systems.base import PatchSystem, SegmentSystem, System

_SHARD = 64


class Predictor:
    """A segmenter ready to label images.

    Parameters
    ----------
    model_dir
        Directory with `model.safetensors` and `model.json`.
    config
        Scales, flip, CRF, source (`split` is not used).
    device
        A torch device.

    Raises
    ------
    UserError
        For a model that labels no pixels, or no patches where those are to be the source.
    """

    def __init__(self, model_dir: Path, config: Predict | dict | None = None, device: str = "cpu") -> None:
        self.config = config if isinstance(config, Predict) else validate(Predict, config or {}, "predict")
        self.trained = load_model(model_dir, device)
        if not isinstance(self.trained.system, SegmentSystem):
            raise UserError(f"{model_dir}: holds no segmenter but the system '{self.trained.system.config.system}'")
        if self.config.source == "patches" and not isinstance(self.trained.system, PatchSystem):
            raise UserError(f"{model_dir}: source: the system '{self.trained.system.config.system}' has no patches, expected decoder")
        self.device = device

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, background first."""
        return self.trained.classes

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return class probabilities float32[C, H, W] of an image uint8[H, W, 3], averaged over scales and flips.

        Where the image's `classes` (class numbers, without background) are given, those of all others are 0 (and no longer sum to 1).
        """
        system = self.trained.system
        assert isinstance(system, SegmentSystem)
        config, size = self.config, image.shape[:2]
        segment = system.segment_patches if config.source == "patches" and isinstance(system, PatchSystem) else system.segment
        parts: list[Tensor] = []
        for inputs in network_inputs(image, system, self.device, resize=config.resize, scales=config.scales, flip=config.flip):
            with inference_precision(self.device):
                logits = segment(self.trained.model, inputs)
            logits = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
            probabilities = logits.softmax(dim=1)
            parts.append((probabilities[0] + probabilities[1].flip(-1)) / 2 if config.flip else probabilities[0])
        mean = torch.stack(parts).mean(dim=0).cpu().numpy()
        if classes is not None:
            mean[np.setdiff1d(np.arange(1, len(mean)), classes)] = 0
        return mean

    def labels(self, image: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return class numbers uint8[H, W] of an image uint8[H, W, 3]; with the image's `classes` no others."""
        probabilities = self.probabilities(image, classes)
        if self.config.crf == "none":
            return probabilities.argmax(axis=0).astype(np.uint8)
        return refine_probabilities(image, probabilities, self.config.crf)


def predict_stage(stage: Stage) -> None:
    """Do a predict stage. Output: `masks/<id>.png` for each image of the split.

    Parameters of the stage: those of `Predict`, with any split; `image_labels`: the image-level labels are known, and no other class gets a pixel.
    With a CRF the network's probabilities go to a store first, so that the CRF can run in `stage.threads` processes.
    """
    parameters = {key: value for key, value in stage.parameters.items() if key not in ("split", "image_labels")}
    config = validate(Predict, parameters, str(stage.output / SPEC))
    known = bool(stage.parameters.get("image_labels"))
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    torch.set_num_threads(stage.threads)
    predictor = Predictor(stage.input("model"), config, torch_device(stage.gpus))
    folder = stage.resume / "masks"
    folder.mkdir(exist_ok=True)
    todo = [record for record in index.split(stage.parameters["split"]) if not (folder / f"{record.id}.png").exists()]
    if config.crf == "none":
        images = images_of(stage, index, todo, "predict")
        for record, image in zip(todo, images, strict=True):
            with atomic_path(folder / f"{record.id}.png") as temporary:
                save_mask(temporary, predictor.labels(image, record.labels if known else None))
    else:
        for begin, end in shard_ranges(len(todo), _SHARD):
            _predict_with_crf(stage, predictor, index, todo[begin:end], folder, known)
    stage.publish_directory("masks")


def _predict_with_crf(stage: Stage, predictor: Predictor, index: DataIndex, records: list[Record], folder: Path, known: bool) -> None:
    """Predict some images and refine them; between the two, what the CRF needs lies in a store."""
    scores = stage.resume / "probabilities.h5"
    images = images_of(stage, index, records, "predict")
    with ScoreWriter(scores, index.num_classes) as writer:
        for record, image in zip(records, images, strict=True):
            probabilities = predictor.probabilities(image, record.labels if known else None)
            present = present_classes(probabilities)
            writer.add(record.id, probabilities[present], present, image.shape[:2])
    places = [(record.id, index.image_path(record)) for record in records]
    refine_predictions(stage, scores, predictor.config.crf, places, folder)


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
