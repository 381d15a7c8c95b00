"""The `pseudo` stage: scores become pseudo masks, one indexed PNG per image."""

from __future__ import annotations

from functools import partial

import numpy as np

from wsss_core.data.index import read_index
from wsss_core.files import write_json
from wsss_core.processes import map_images
from wsss_core.refine.pseudo import make_mask
from wsss_core.refine.scores import SCORES, SUMMARY, image_places, open_store
from wsss_core.stage import Stage
from wsss_core.stages.threshold import read_threshold

MASKS = "masks"


def make_pseudo_masks(stage: Stage) -> None:
    """Do the `pseudo` stage.

    Reads the score store of the stage in the role `scores`; writes `masks/<id>.png` and `summary.json`:

    ``images``            number of masks
    ``all_background``    ids of the images whose mask holds no foreground
    ``missed``            of these, how many have classes by their label
    ``share``             share of all pixels by class name, background included
    ``threshold``         the background threshold that was used, None if a background channel decided

    Parameters of the stage: `threshold` (see `label_map`; `auto`: that of the stage in the role `threshold`), `crf` (`none`, or `labels`: a CRF on the label map). Killed, it
    keeps the masks that were written. Raises `UserError` for an image that is missing, unreadable, not in the index, or of
    another size than its scores.
    """
    source = stage.input("scores", SCORES)
    store = open_store(source)
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    places = image_places(index, store)
    folder = stage.resume / MASKS
    parameters = dict(stage.parameters)
    if parameters["threshold"] == "auto":
        parameters["threshold"] = read_threshold(stage)
    function = partial(make_mask, source, folder, parameters)
    counts = np.stack(list(map_images(function, places, stage.threads, stage, "making pseudo masks")))
    empty = [name for name, row in zip(store.ids, counts, strict=True) if not row[1:].any()]
    missed = sum(bool((store.read(name)[1] > 0).any()) for name in empty)
    share = counts.sum(axis=0) / counts.sum()
    summary = {
        "images": len(places),
        "all_background": empty,
        "missed": missed,
        "threshold": parameters["threshold"],
        "share": {name: round(float(share[number]), 6) for number, name in enumerate(index.classes)},
    }
    write_json(stage.output / SUMMARY, summary)
    stage.publish_directory(MASKS)
    stage.log(f"{len(places)} masks, {share[0]:.0%} of the pixels background; {len(empty) / len(places):.1%} of the images all background")
    if missed:
        stage.log(f"{missed} images have classes by their label but no foreground in their mask")
