"""The `crf` stage: class activation maps become probabilities of background and classes, refined by a dense CRF."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.data.index import DataIndex, read_index
from wsss_core.errors import UserError
from wsss_core.refine.crf import crf_soft
from wsss_core.refine.pool import map_images
from wsss_core.refine.scores import add_background, open_store, read_image_of_size, upsample
from wsss_core.stages import Stage
from wsss_core.store import ScoreStore, ScoreWriter, join_stores, shard_ranges

SCORES = "scores.h5"
_IMAGES_PER_SHARD = 64


def refine_with_crf(stage: Stage) -> None:
    """Do the `crf` stage.

    Reads the score store of the stage in the role `scores` (maps in [0, 1] of classes >= 1) and the images; writes `scores.h5` with
    the same images in the same order: uint8 probabilities at the image's full size, channel 0 the background, then the
    image's classes in their order. An image without classes gets a background of ones.

    Parameters of the stage: `background`, `background_power` (see `add_background`), `crf` (a name in `CRF_PRESETS`).
    Killed, it goes on after the last finished shard of 64 images.

    Raises `UserError` for an image that is missing, unreadable, not in the index, or of another size than its scores.
    """
    source = stage.input("scores", SCORES)
    store = open_store(source)
    places = image_places(read_index(stage.input("data"), stage.spec.files.get("root")), store)
    ranges = shard_ranges(len(store), _IMAGES_PER_SHARD)
    shards = [stage.resume / f"shard-{number:05d}.h5" for number in range(len(ranges))]
    missing = [i for i, (begin, end) in enumerate(ranges) if not _is_complete(shards[i], store.ids[begin:end])]
    todo = [item for i in missing for item in places[slice(*ranges[i])]]
    if len(todo) < len(places):
        stage.log(f"{len(places) - len(todo)} of {len(places)} images were refined earlier")
    function = partial(_refine_image, source, stage.parameters)
    results = map_images(function, todo, stage.threads, stage, "refining images", done=len(places) - len(todo))
    for i in missing:
        with ScoreWriter(shards[i], store.num_classes, dtype="uint8", compress=True) as writer:
            for image_id, (levels, classes) in zip(store.ids[slice(*ranges[i])], results, strict=False):  # results go on in the next shard
                writer.add(image_id, levels * np.float32(1 / 255), classes, levels.shape[1:])
    next(results, None)  # ends the workers and the progress display
    join_stores(shards, stage.output / SCORES)


def image_places(index: DataIndex, store: ScoreStore) -> list[tuple[str, Path]]:
    """Return (id, path of the image) for every image of the store; raises `UserError` for an id that is not in the index."""
    records = {record.id: record for split in index.splits.values() for record in split}
    if not len(store):
        raise UserError(f"{store.path}: holds no image")
    unknown = next((name for name in store.ids if name not in records), None)
    if unknown is not None:
        raise UserError(f"{store.path}: holds the image '{unknown}', which is not in the index of the data set")
    return [(name, index.image_path(records[name])) for name in store.ids]


def _refine_image(source: Path, parameters: dict[str, Any], item: tuple[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the refined probabilities as uint8[1 + K, H, W] in steps of 1/255, and the class numbers int32[1 + K]."""
    image_id, path = item
    store = open_store(source)
    cams, classes = store.read(image_id)
    image = read_image_of_size(path, store.size(image_id))
    if len(classes):
        scores = add_background(upsample(cams, image.shape[:2]), parameters["background"], parameters["background_power"])
        scores = crf_soft(image, scores, parameters["crf"])
    else:
        scores = np.ones((1, *image.shape[:2]), np.float32)
    return np.rint(scores * 255).astype(np.uint8), np.concatenate([[0], classes]).astype(np.int32)


def _is_complete(shard: Path, ids: list[str]) -> bool:
    if not shard.exists():
        return False
    with ScoreStore(shard) as store:
        return store.ids == ids
