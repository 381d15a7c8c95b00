"""The parts of a figure's name, see `tables`: subjects and metrics as tables and pictures write them, and the rules of thresholds."""

from __future__ import annotations

from wsss_core.report.published import COSTS

SUBJECTS = {
    "classifier": "Classifier",
    "cams": "CAMs",
    "walk": "Walked",
    "refine": "Refined",
    "pseudo": "Pseudo masks",
    "end_to_end": "End-to-end",
    "end_to_end-labels": "End-to-end, image labels known",
    "end_to_end-patches": "End-to-end, patches",
    "patches": "Patch embeddings",
    "segmenter": "Segmenter",
    "cost": "Cost",
}
METRICS = {"map": "mAP", "accuracy": "accuracy", "exact_match": "exact match", "miou": "mIoU", "mfdr": "mFDR", "mfnr": "mFNR"}
METRICS |= {
    "boundary_f": "boundary F",
    "boundary_agnostic_f": "boundary F (any class)",
    "inter_class": "inter-class cosine distance",
    "intra_class": "intra-class cosine distance",
    "ap": "AP",
    "iou": "IoU",
    "fdr": "FDR",
    "fnr": "FNR",
}
METRICS |= COSTS
RULES = ("oracle", "auto", "otsu", "fixed", "argmax", "none")
