"""Label-free background thresholds against the oracle: `python -m benchmarks.threshold_rules results/mine/experiments/cam/seed0`.

Takes a finished experiment and prints, for each rule, the threshold and the mIoU of the CAMs cut there. True masks judge the rules;
the rules see none. docs/refinement.md shows what came out.
"""

from __future__ import annotations

import sys
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from skimage.filters import threshold_isodata, threshold_li, threshold_otsu, threshold_triangle

from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.data.truth import read_truth
from wsss_core.evaluate.confusion import confusion_matrix, segmentation_metrics
from wsss_core.evaluate.thresholds import best_foreground, curve, score_histogram
from wsss_core.refine.crf import crf_labels, crf_soft
from wsss_core.refine.scores import add_background, open_store, otsu_background, read_image_of_size, upsample
from wsss_core.stage import SPEC, read_spec

STEPS = np.arange(1, 50) / 50
COARSE = STEPS[4::5]
EVERY = 3
"""Every third image is enough, and three times as fast."""


def judge(index: DataIndex, source: Path, record: Record) -> list[np.ndarray | float]:
    """Count one image: scores against truth, against their CRF, cuts against a CRF on themselves; its values and Otsu threshold."""
    store, classes_of = open_store(source), index.num_classes
    scores, classes = store.read(record.id)
    image = read_image_of_size(index.image_path(record), store.size(record.id))
    scores, truth = upsample(scores, image.shape[:2]), read_truth(index, record, image.shape[:2])
    best, best_class = best_foreground(scores, classes)
    numbers = np.concatenate([[0], classes]).astype(np.uint8)
    refined = numbers[crf_soft(image, add_background(scores, "otsu", 1.0), "vitpcm").argmax(axis=0)]
    on_itself = []
    for cut in COARSE:
        channel = np.where(best > cut, scores.argmax(axis=0) + 1, 0)
        refined_cut = crf_labels(image, channel, len(classes) + 1)
        on_itself.append(confusion_matrix(numbers[refined_cut], numbers[channel], classes_of))
    otsu = otsu_background(best)
    return [
        score_histogram(best, best_class, truth, STEPS, classes_of),
        score_histogram(best, best_class, refined, STEPS, classes_of),
        np.array(on_itself),
        np.histogram(best, 256, (0, 1))[0],
        confusion_matrix(truth, np.where(best > otsu, best_class, 0), classes_of),
        otsu,
    ]


def main(experiment: Path) -> None:
    """Print the table."""
    spec = read_spec(experiment / "data" / SPEC)
    index = read_index(experiment / "data", spec.files.get("root"))
    source = (experiment / "cams" / "scores.h5").resolve()
    store = open_store(source)
    records = [record for record in index.split("train") if len(store.classes(record.id))][::EVERY]
    with Pool() as pool:
        truth, refined, on_itself, values, own, otsu = zip(*pool.map(partial(judge, index, source), records, chunksize=4), strict=True)
    miou = segmentation_metrics(curve(sum(truth)))["miou"]
    agreement = segmentation_metrics(curve(sum(refined)))["miou"]
    stability = segmentation_metrics(sum(on_itself))["miou"]
    counts, centres = sum(values), (np.arange(256) + 0.5) / 256
    sample = np.repeat(centres, counts // max(1, counts.sum() // 500_000))
    rules = {
        "oracle": STEPS[miou.argmax()],
        "agreement with the CRF against Otsu's threshold (auto)": STEPS[agreement.argmax()],
        "mean over images of each image's Otsu threshold": float(np.mean(otsu)),
        "Otsu's threshold of the histogram of all images": threshold_otsu(hist=(counts, centres)),
        "isodata threshold of that histogram": threshold_isodata(hist=(counts, centres)),
        "Li's threshold of that histogram": threshold_li(sample),
        "the constant 0.3": 0.3,
        "agreement of the cut with a CRF on itself": COARSE[stability.argmax()],
        "triangle threshold of that histogram": threshold_triangle(sample),
    }
    print(f"{len(records)} images of {experiment}\n\n| rule | threshold | mIoU |\n| --- | --: | --: |")
    for name, threshold in rules.items():
        print(f"| {name} | {threshold:.2f} | {100 * np.interp(threshold, STEPS, miou):.1f} |")
    print(
        f"| each image's own Otsu threshold | {np.min(otsu):.2f}-{np.max(otsu):.2f} | {100 * segmentation_metrics(sum(own))['miou']:.1f} |"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
