"""The `threshold` stage: a background threshold chosen without any mask, and how other stages read it."""

from __future__ import annotations

from pathlib import Path

from wsss_core.data.index import read_index
from wsss_core.errors import UserError
from wsss_core.files import read_json, write_json
from wsss_core.refine.scores import SCORES, image_places, open_store
from wsss_core.refine.threshold import MOST_IMAGES, best_threshold, compare_thresholds
from wsss_core.stage import Stage

THRESHOLD = "threshold.json"


def choose_threshold(stage: Stage) -> None:
    """Do the `threshold` stage.

    Reads the score store of the stage in the role `scores` (maps in [0, 1], no background channel) and images; writes
    `threshold.json`: `threshold`, `agreement` (mIoU with the refined labels there, a fraction), `images` (in the sample) and the
    whole curve, `thresholds` and `agreements`. Ties go to the lower threshold.

    Where no image has a class there is nothing to cut: 0.5. Raises `UserError` if an image is missing, unreadable or of another size than its scores.
    """
    source = stage.input("scores", SCORES)
    store = open_store(source)
    places = image_places(read_index(stage.input("data"), stage.spec.files.get("root")), store)
    histogram, images = compare_thresholds(stage, source, places, MOST_IMAGES, stage.threads, "comparing thresholds")
    write_json(stage.output / THRESHOLD, best_threshold(stage, histogram, images))


def read_threshold(stage: Stage) -> float:
    """Return the threshold that the stage in the role `threshold` chose."""
    return threshold_in(stage.input("threshold", THRESHOLD))


def threshold_in(path: Path) -> float:
    """Return the threshold in a file of `best_threshold`; raises `UserError` if it holds none."""
    content = read_json(path)
    value = content.get("threshold") if isinstance(content, dict) else None
    if not isinstance(value, float):
        raise UserError(f"{path}: holds no threshold")
    return value
