"""The configuration: every parameter, its default, unit and range. The only place where defaults live."""

from wsss_core.config.base import Backbone, Block, ResizeLimits, Training
from wsss_core.config.classifiers import (
    AnyClassifier,
    ApcClassifier,
    CamClassifier,
    Classifier,
    IsimClassifier,
    MclClassifier,
    OwnLabels,
    PuzzleClassifier,
    RsaCfcClassifier,
)
from wsss_core.config.datasets import Coco14, Dataset, Folder, Shapes, Voc12
from wsss_core.config.load import load_config, overlay, read_config, read_yaml, validate
from wsss_core.config.pipeline import Cams, Evaluate, Experiment, Predict, Pseudo, Segmenter
from wsss_core.config.refinement import LABELS_CRF, WALK_BETA, Affinity, AffinityLabels, Boundary, PairNetwork, Refine, Walk
from wsss_core.config.root import Config, Report, Run, Table

__all__ = [
    "LABELS_CRF",
    "WALK_BETA",
    "Affinity",
    "AffinityLabels",
    "AnyClassifier",
    "ApcClassifier",
    "Backbone",
    "Block",
    "Boundary",
    "CamClassifier",
    "Cams",
    "Classifier",
    "Coco14",
    "Config",
    "Dataset",
    "Evaluate",
    "Experiment",
    "Folder",
    "IsimClassifier",
    "MclClassifier",
    "OwnLabels",
    "PairNetwork",
    "Predict",
    "Pseudo",
    "PuzzleClassifier",
    "Refine",
    "Report",
    "ResizeLimits",
    "RsaCfcClassifier",
    "Run",
    "Segmenter",
    "Shapes",
    "Table",
    "Training",
    "Voc12",
    "Walk",
    "load_config",
    "overlay",
    "read_config",
    "read_yaml",
    "validate",
]
