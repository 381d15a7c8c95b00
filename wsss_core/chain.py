"""One experiment as content-addressed stages: what depends on what, ids.

Pure: no file is read here (checksums of what lies outside are handed in), no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wsss_core.config import LABELS_CRF, WALK_BETA, Config, Experiment, IsimClassifier, PairNetwork, Predict, Segmenter, Training
from wsss_core.data.sources import spec_files, spec_parameters
from wsss_core.revisions import REVISIONS

ID_DIGITS = 10
_LABEL_VALUES = {"otsu": set[str](), "thresholds": {"foreground", "background"}, "powers": {"low", "high"}}
"""What each method of making affinity labels is told; what it does not use must not change an id."""


@dataclass(frozen=True)
class Outside:
    """Checksums of what comes from outside the project."""

    images: str = ""
    """Of the images, their lists and labels."""
    masks: str = ""
    """Of the masks, apart: other masks change evaluations, never a pseudo mask."""
    weights: Callable[[str], str] = lambda path: path
    """From the path of a local weights file to its SHA-256."""


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """One node of the graph.

    Attributes
    ----------
    kind
        data, classifier, cams, threshold, affinity-labels, affinity, boundary, walk, crf, pseudo, segmenter, predict or evaluate; the folder in the store.
    parameters
        All that decides the result beside the upstream stages and the seed. JSON values.
    upstream
        The stages it builds on, by role.
    seed
        None for stages without randomness of their own.
    files
        Places outside the project, by role; not part of the id.
    """

    kind: str
    revision: int
    parameters: dict[str, Any]
    upstream: dict[str, PlannedStage] = field(default_factory=dict)
    seed: int | None = None
    files: dict[str, str] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """First hex digits of the SHA-256 over canonical JSON of all that decides the result."""
        content = {
            "stage": self.kind,
            "revision": self.revision,
            "parameters": self.parameters,
            "seed": self.seed,
            "upstream": {role: stage.id for role, stage in self.upstream.items()},
        }
        return digest(content)


@dataclass(frozen=True)
class Chain:
    """One experiment with one seed.

    Attributes
    ----------
    stages
        The stages by readable name (data, classifier, cams, cams-threshold, ..., refine, pseudo, segmenter, predict), in order.
    evaluations
        The evaluate stages by what they judge (classifier, cams, walk, refine, pseudo, segmenter).
    """

    name: str
    seed: int
    experiment: Experiment
    stages: dict[str, PlannedStage]
    evaluations: dict[str, PlannedStage]

    @property
    def all_stages(self) -> dict[str, PlannedStage]:
        """Both, evaluations under `evaluate-<subject>`."""
        return {**self.stages, **{f"evaluate-{name}": stage for name, stage in self.evaluations.items()}}


def digest(content: Any) -> str:
    """First hex digits of the SHA-256 over canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


def make_chain(config: Config, name: str, experiment: Experiment, seed: int, outside: Outside) -> Chain:
    """Return the stages of one experiment and seed."""
    builder = _ChainBuilder(config, experiment, seed, outside)
    if experiment.supervision == "image_labels":
        builder.weak_labels()
    if experiment.segmenter is not None:
        builder.segmenter()
    return Chain(name, seed, experiment, builder.stages, builder.evaluations)


class _ChainBuilder:
    """Adds the stages of one experiment, in the order of the pipeline."""

    def __init__(self, config: Config, experiment: Experiment, seed: int, outside: Outside) -> None:
        self.config, self.experiment, self.seed, self.outside = config, experiment, seed, outside
        self.files = spec_files(config.dataset)
        self.data = PlannedStage(
            "data", REVISIONS["data"], {"dataset": {**spec_parameters(config.dataset), "content": outside.images}}, files=self.files
        )
        self.stages: dict[str, PlannedStage] = {"data": self.data}
        self.evaluations: dict[str, PlannedStage] = {}

    def weak_labels(self) -> None:
        """Classifier, CAMs, refinement and pseudo masks."""
        experiment = self.experiment
        classifier = self._train("classifier", experiment.classifier)
        resize = experiment.cams.resize
        protocol: dict[str, Any] = {"image_labels": False, "scales": [1.0], "flip": False}
        self._evaluate("classifier", {"split": "val", "resize": resize}, protocol, model=classifier)
        options = {"classifier": experiment.classifier.cam_options} if experiment.classifier.cam_options else {}
        parameters = {**experiment.cams.model_dump(mode="json"), "split": "train", **options}
        protocol = experiment.cams.model_dump(mode="json", include={"scales", "flip"})
        protocol = {**protocol, "image_labels": experiment.cams.classes == "image_labels", "walk": "none", "crf": "none"}
        for epoch in experiment.classifier.snapshots:
            name = f"cams-epoch{epoch}"
            snapshot = self._add(name, "cams", {**parameters, "snapshot": epoch}, model=classifier)
            self._judge(name, snapshot, {**protocol, "epoch": epoch})
        self._judge_own_labels(classifier)
        cams = self._add("cams", "cams", parameters, model=classifier)
        threshold = self._judge("cams", cams, protocol)
        if experiment.classifier.single_stage:
            self._single_stage(classifier)
            return
        scores, method = cams, experiment.refine.method
        if method in ("affinity", "boundary"):
            scores = self._walk(cams)
            protocol = {**protocol, "walk": method}
            threshold = self._judge("walk", scores, protocol, background=experiment.refine.walk.background == "power")
        if method != "none" and experiment.refine.crf != "none":
            parameters = experiment.refine.model_dump(mode="json", include={"crf", *self._background_values()})
            scores = self._add("refine", "crf", parameters, scores=scores)
            protocol = {**protocol, "crf": experiment.refine.crf}
            threshold = self._judge("refine", scores, protocol, background=True)
        parameters = {**experiment.pseudo.model_dump(mode="json"), "threshold": threshold}
        chosen = self._threshold(scores) if threshold == "auto" else {}
        pseudo = self._add("pseudo", "pseudo", parameters, scores=scores, **chosen)
        used = [name for name in (protocol["crf"], experiment.pseudo.crf) if name != "none"]
        protocol = {**protocol, "crf": " + ".join(used) or "none", "threshold": threshold}
        self._evaluate("pseudo", {"split": "train"}, protocol, masks=pseudo, **chosen)

    def _single_stage(self, model: PlannedStage) -> None:
        """Pseudo masks and predictions of a classifier that segments, and how far its patches' embeddings lie apart."""
        predict = self.experiment.end_to_end or self.experiment.predict
        self._predict("pseudo", model, predict.model_copy(update={"split": "train"}), image_labels=True)
        self._predict("end_to_end", model, predict)
        if predict.split == "val":  # of test images neither tags nor masks may be known
            self._predict("end_to_end-labels", model, predict, image_labels=True)
            if predict.source == "decoder":
                self._predict("end_to_end-patches", model, predict.model_copy(update={"source": "patches"}))
        self._evaluate("patches", {"split": "val", "resize": predict.resize}, {"scales": [1.0], "flip": False}, model=model)

    def _walk(self, cams: PlannedStage) -> PlannedStage:
        """Affinity labels, the network that learns from them, and the random walk of the CAMs."""
        refine = self.experiment.refine
        labels = refine.labels.model_dump(mode="json", include={"method", *_LABEL_VALUES[refine.labels.method]})
        chosen = self._threshold(cams) if "auto" in labels.values() else {}
        if refine.labels.method == "otsu" or chosen:
            labels["margin"] = refine.labels.margin
        labels["crf"] = refine.labels.crf or LABELS_CRF[refine.labels.method]
        labels["cams"] = self.experiment.cams.classes
        made = self._add("affinity-labels", "affinity-labels", labels, scores=cams, **chosen)
        network, start = self._initial(refine.affinity if refine.method == "affinity" else refine.boundary)
        model = self._train(refine.method, network, None, labels=made, **start)
        unused = {"normalise"} if refine.walk.background == "power" else {"background_power"}
        walk = refine.walk.model_dump(mode="json", exclude=unused | ({"radius"} if refine.method == "affinity" else set()))
        walk["beta"] = refine.walk.beta or WALK_BETA[refine.method]
        walk["resize"] = refine.walk.resize or self.experiment.cams.resize
        return self._add("walk", "walk", walk, scores=cams, model=model)

    def _initial(self, network: PairNetwork | Segmenter) -> tuple[Training, dict[str, PlannedStage]]:
        """The network as it starts, and the classifier as its upstream stage if it has the backbone from there."""
        if network.initial == "weights":
            return network, {}
        own = self.experiment.classifier
        values: dict[str, Any] = {"backbone": own.backbone, "mean": own.mean, "std": own.std, "weights": "none"}
        if network.freeze_batch_norm == "auto":
            values["freeze_batch_norm"] = own.keeps_statistics
        return network.model_copy(update=values), {"classifier": self.stages["classifier"]}

    def _background_values(self) -> set[str]:
        """What decides the background in the CRF; a background that walked along stands there already."""
        refine = self.experiment.refine
        if refine.method in ("affinity", "boundary") and refine.walk.background == "power":
            return set()
        return {"background", "background_power"} if refine.background is None else {"background"}

    def _judge(self, subject: str, scores: PlannedStage, protocol: dict[str, Any], *, background: bool = False) -> float | str | None:
        """Evaluate a stage of scores over all thresholds. Return the one that is not chosen by the truth: None if a background channel decides."""
        threshold = None if background else self.experiment.pseudo.threshold
        chosen = self._threshold(scores) if threshold == "auto" else {}
        parameters = {"split": "train", "thresholds": self.experiment.evaluate.thresholds, "threshold": threshold}
        self._evaluate(subject, parameters, protocol, scores=scores, **chosen)
        return threshold

    def _judge_own_labels(self, classifier: PlannedStage) -> None:
        """Evaluate the pseudo labels that a classifier made itself, round by round."""
        own = self.experiment.classifier
        if not isinstance(own, IsimClassifier):
            return
        labels = own.labels.model_dump(mode="json", include={"scales", "flip", "crf", "threshold"})
        if own.labels.crf not in ("none", "labels"):  # a background channel decides
            labels["threshold"] = None
        for epoch in own.label_epochs:
            protocol = {**labels, "image_labels": True, "walk": "none", "epoch": epoch}
            self._evaluate(f"pseudo-epoch{epoch}", {"split": "train", "round": epoch}, protocol, masks=classifier)

    def _threshold(self, scores: PlannedStage) -> dict[str, PlannedStage]:
        """The label-free threshold of scores without a background channel, as an upstream stage."""
        name = next(name for name, stage in self.stages.items() if stage is scores) + "-threshold"
        return {"threshold": self.stages.get(name) or self._add(name, "threshold", {}, scores=scores)}

    def segmenter(self) -> None:
        """Segmenter, its predictions and their evaluation."""
        experiment = self.experiment
        assert experiment.segmenter is not None
        if experiment.supervision == "masks":
            labels: dict[str, PlannedStage] = {}
            extra = {"supervision": "masks", "masks": self.outside.masks}
        else:
            pseudo = self.stages["pseudo"]
            labels, extra = {"pseudo": pseudo}, {"supervision": "pseudo masks"}
            if experiment.segmenter.loss == "beacon":
                labels["scores"] = pseudo.upstream["scores"]  # the same masks before they were cut: soft
        network, start = self._initial(experiment.segmenter)
        model = self._train("segmenter", network, extra, **labels, **start)
        self._predict("segmenter", model, experiment.predict, stage="predict", supervision=experiment.supervision)

    def _predict(
        self, subject: str, model: PlannedStage, predict: Predict, *, image_labels: bool = False, stage: str = "", **protocol: Any
    ) -> None:
        """Predictions of a network that segments, under the name `stage` (or `subject`), and their evaluation.

        With `image_labels` the image's classes are taken as known: pseudo masks, and a second figure beside the honest one on val.
        """
        tolerance = self.experiment.evaluate.boundary_tolerance
        parameters = predict.model_dump(mode="json", exclude={"source"} if model.kind == "segmenter" else set())
        known = {"image_labels": True} if image_labels else {}
        masks = self._add(stage or subject, "predict", {**parameters, **known}, model=model)
        made: dict[str, Any] = {key: parameters[key] for key in ("scales", "flip", "crf", "source") if key in parameters}
        protocol = {**made, "image_labels": image_labels, **protocol}
        judged = {"split": predict.split, **({} if tolerance is None else {"boundary_tolerance": tolerance})}
        self._evaluate(subject, judged, protocol, masks=masks)

    def _train(self, kind: str, training: Training, extra: dict[str, Any] | None = None, **upstream: PlannedStage) -> PlannedStage:
        parameters = training.model_dump(mode="json", exclude=training.unused) | {"freeze_batch_norm": training.keeps_statistics}
        files = dict(self.files)
        if training.weights not in ("pretrained", "none"):
            files["weights"] = training.weights
            parameters["weights"] = f"sha256:{self.outside.weights(training.weights)}"
        revision = REVISIONS[f"{kind}.{parameters['system']}"]
        stage = PlannedStage(kind, revision, {**parameters, **(extra or {})}, {"data": self.data, **upstream}, self.seed, files)
        self.stages[kind] = stage
        return stage

    def _add(self, name: str, kind: str, parameters: dict[str, Any], **upstream: PlannedStage) -> PlannedStage:
        stage = PlannedStage(kind, REVISIONS[kind], parameters, {"data": self.data, **upstream}, files=self.files)
        self.stages[name] = stage
        return stage

    def _evaluate(self, subject: str, parameters: dict[str, Any], protocol: dict[str, Any], **upstream: PlannedStage) -> None:
        """`protocol` says how the figure came about: image-label masking, CRF, scales, flip. It goes with the figure wherever it goes.

        What comes from amid the training is judged as what it is: `cams-epoch4` as `cams`, `pseudo-epoch5` as `pseudo`.
        """
        parameters = {"subject": subject.partition("-")[0], **parameters, "protocol": protocol, "masks": self.outside.masks}
        self.evaluations[subject] = PlannedStage(
            "evaluate", REVISIONS["evaluate"], parameters, {"data": self.data, **upstream}, files=self.files
        )
