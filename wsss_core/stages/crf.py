"""The `crf` stage: class activation maps become probabilities of background and classes, refined by a dense CRF."""

from __future__ import annotations

from functools import partial

import numpy as np

from wsss_core.data.index import read_index
from wsss_core.processes import map_images
from wsss_core.refine.pseudo import refine_image
from wsss_core.refine.scores import SCORES, image_places, is_complete, open_store
from wsss_core.stage import Stage
from wsss_core.store import ScoreWriter, join_stores, shard_ranges

_IMAGES_PER_SHARD = 64


def refine_with_crf(stage: Stage) -> None:
    """Do the `crf` stage.

    Reads the score store of the stage in the role `scores` (maps in [0, 1] of classes >= 1, or probabilities with a background channel)
    and the images; writes `scores.h5` with
    the same images in the same order: uint8 probabilities at the image's full size, channel 0 the background, then the
    image's classes in their order. An image without classes gets a background of ones.

    Parameters of the stage: `background`, `background_power` (see `add_background`; not for scores that have a background), `crf` (a
    name in `CRF_PRESETS`).
    Killed, it goes on after the last finished shard of 64 images.

    Raises `UserError` for an image that is missing, unreadable, not in the index, or of another size than its scores.
    """
    source = stage.input("scores", SCORES)
    store = open_store(source)
    places = image_places(read_index(stage.input("data"), stage.spec.files.get("root")), store)
    ranges = shard_ranges(len(store), _IMAGES_PER_SHARD)
    shards = [stage.resume / f"shard-{number:05d}.h5" for number in range(len(ranges))]
    missing = [i for i, (begin, end) in enumerate(ranges) if not is_complete(shards[i], store.ids[begin:end])]
    todo = [item for i in missing for item in places[slice(*ranges[i])]]
    if len(todo) < len(places):
        stage.log(f"{len(places) - len(todo)} of {len(places)} images were refined earlier")
    function = partial(refine_image, source, stage.parameters)
    results = map_images(function, todo, stage.threads, stage, "refining images", done=len(places) - len(todo))
    for i in missing:
        with ScoreWriter(shards[i], store.num_classes, dtype="uint8", compress=True) as writer:
            for image_id, (levels, classes) in zip(store.ids[slice(*ranges[i])], results, strict=False):  # results go on in the next shard
                writer.add(image_id, levels * np.float32(1 / 255), classes, levels.shape[1:])
    next(results, None)  # ends the workers and the progress display
    join_stores(shards, stage.output / SCORES)
