"""The configuration: defaults, sharing, sweeps, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wsss_core.config import CamClassifier, PuzzleClassifier, RsaCfcClassifier, load_config, read_config
from wsss_core.config import document as generated
from wsss_core.errors import UserError

BASE: dict[str, Any] = {"experiments": {"plain": {}}}


def error_of(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(values, "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mine.yaml: ")
    return message


def test_an_empty_experiment_has_all_defaults() -> None:
    config = load_config(BASE)
    experiment = config.experiments["plain"]
    assert config.dataset.name == "shapes"
    assert experiment.classifier.system == "cam"
    assert experiment.cams.scales == (0.5, 1.0, 1.5, 2.0)
    assert list(config.tables) == ["shapes"]


def test_top_level_blocks_are_shared_and_own_values_win() -> None:
    config = load_config({"classifier": {"lr": 0.5, "epochs": 3}, "experiments": {"a": {}, "b": {"classifier": {"lr": 0.1}}}})
    assert [(e.classifier.lr, e.classifier.epochs) for e in config.experiments.values()] == [(0.5, 3), (0.1, 3)]


def test_a_sweep_is_a_grid_and_names_tell_the_values() -> None:
    config = load_config({**BASE, "sweep": {"classifier.lr": [0.1, 0.2], "cams.scales": [[1.0], [1.0, 2.0]]}})
    assert list(config.experiments) == [
        "plain,lr=0.1,scales=1.0",
        "plain,lr=0.1,scales=1.0-2.0",
        "plain,lr=0.2,scales=1.0",
        "plain,lr=0.2,scales=1.0-2.0",
    ]
    assert config.experiments["plain,lr=0.2,scales=1.0-2.0"].cams.scales == (1.0, 2.0)


def test_a_sweep_that_names_two_experiments_alike_is_refused() -> None:
    assert "sweep" in error_of({**BASE, "sweep": {"classifier.lr": [0.1, 0.1]}})


def test_null_ends_the_chain_at_the_pseudo_masks() -> None:
    assert load_config({"experiments": {"a": {"segmenter": None}}}).experiments["a"].segmenter is None


def test_a_known_data_set_needs_no_source(tmp_path: Path) -> None:
    assert load_config({**BASE, "dataset": {"name": "voc12", "root": str(tmp_path)}}).dataset.source == "voc12"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"experimens": {}}, "unknown key 'experimens'; did you mean 'experiments'?"),
        ({"experiments": {}}, "experiments: expected a mapping"),
        ({"experiments": {"a": {"clasifier": {}}}}, "experiments.a.clasifier: unknown key; did you mean 'classifier'?"),
        (
            {"experiments": {"a": {"classifier": {"backbon": "x"}}}},
            "experiments.a.classifier.backbon: unknown key; did you mean 'backbone'?",
        ),
        ({"experiments": {"a": {"classifier": {"epochs": 0}}}}, "experiments.a.classifier.epochs: input should be greater than 0, got 0"),
        ({"experiments": {"a": {"classifier": {"lr": "fast"}}}}, "experiments.a.classifier.lr: input should be a valid number"),
        ({"experiments": {"a": {"classifier": {"optimizer": "sdg"}}}}, "got 'sdg'; did you mean 'sgd'?"),
        ({"experiments": {"a": {"seeds": [1, 1]}}}, "experiments.a.seeds: seeds must be distinct"),
        ({"experiments": {"a": {"classifier": {"channels_last": "atuo"}}}}, "experiments.a.classifier.channels_last: "),
        (
            {"experiments": {"a": {"classifier": {"system": "puzzle", "beta_reconstruction": float("inf")}}}},
            "classifier.beta_reconstruction: ",
        ),
        ({"experiments": {"a": {"classifier": {"resize": [640, 320]}}}}, "resize must be [smallest, largest]"),
        ({"experiments": {"a": {"cams": {"scales": []}}}}, "experiments.a.cams.scales"),
        ({**BASE, "dataset": {"root": "x"}}, "dataset.source: missing; valid: shapes, folder, voc12, coco14"),
        ({**BASE, "dataset": {"source": "fodler"}}, "dataset"),
        ({**BASE, "dataset": {"source": "folder"}}, "dataset.root: missing"),
        ({**BASE, "dataset": {"source": "folder", "root": "x", "mask": "y"}}, "dataset.mask: unknown key; did you mean 'masks'?"),
        ({**BASE, "tables": {"t": {"experiments": ["plian"]}}}, "tables.t.experiments: 'plian' names no experiment; did you mean 'plain'?"),
        (
            {**BASE, "tables": {"t": {"compare": "plian"}}},
            "tables.t.compare: 'plian' names no experiment of the table; did you mean 'plain'?",
        ),
        (
            {"experiments": {"a": {}, "b": {}}, "tables": {"t": {"experiments": ["b"], "compare": "a"}}},
            "tables.t.compare: 'a' names no experiment of the table; valid: b",
        ),
        (
            {**BASE, "sweep": {"classifier.lr": [0.1, 0.2]}, "tables": {"t": {"compare": "plain"}}},
            "tables.t.compare: 'plain' names no experiment of the table; valid: plain,lr=0.1, plain,lr=0.2",
        ),
        ({**BASE, "tables": {"t": {"rows": "segmenter", "compare": False}}}, "tables.t.compare: input should be a valid string, got False"),
        ({"experiments": {"a": {"segmenter": {"batch_size": 1}}}}, "batch_size must be at least 2 for deeplabv3plus"),
        ({**BASE, "sweep": {"classifier.lr": 3}}, "sweep: expected configuration keys with lists of values"),
        (
            {"experiments": {"a": {"refine": {"labels": {"foreground": 0.3, "background": 0.3}}}}},
            "experiments.a.refine.labels: foreground must be greater than background, got 0.3 and 0.3",
        ),
        ({"refine": {"labels": {"foreground": 0, "background": 1}}, **BASE}, "foreground must be greater than background, got 0 and 1"),
        ({"experiments": {"a": {"refine": {"labels": {"foreground": 1.5}}}}}, "experiments.a.refine.labels.foreground"),
        ({"experiments": {"a": {"refine": {"labels": {"low": 24}}}}}, "refine.labels: low must be smaller than high, got 24 and 24"),
        (
            {"experiments": {"a": {"refine": {"method": "crf", "crf": "none"}}}},
            "experiments.a.refine: method crf needs a parameter set in refine.crf, got 'none'",
        ),
        ({"experiments": {"a": {"refine": {"method": "afinity"}}}}, "got 'afinity'; did you mean 'affinity'?"),
        (
            {"experiments": {"a": {"refine": {"affinity": {"radius": 1}}}}},
            "refine.affinity.radius: input should be greater than or equal to 2",
        ),
        ({"experiments": {"a": {"refine": {"walk": {"beta": 0}}}}}, "refine.walk.beta: input should be greater than 0, got 0"),
        ({"experiments": {"a": {"refine": {"walk": {"steps": -1}}}}}, "experiments.a.refine.walk.steps"),
        ({"experiments": {"a": {"refine": {"walk": {"step": 3}}}}}, "refine.walk.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_errors_name_the_key_and_the_nearest_valid_name(values: dict[str, Any], expected: str) -> None:
    assert expected in error_of(values)


def test_a_row_to_compare_with_is_known_by_its_label() -> None:
    swept = load_config({**BASE, "sweep": {"classifier.lr": [0.1, 0.2]}, "tables": {"t": {"compare": "plain,lr=0.1"}}})
    assert swept.tables["t"].compare == "plain,lr=0.1"
    assert load_config({**BASE, "tables": {"t": {"rows": "classifier.lr", "compare": 0.1}}}).tables["t"].compare == "0.1"


@pytest.mark.parametrize(
    ("block", "system"), [({}, "cam"), ({"lr": 0.1}, "cam"), *(({"system": name}, name) for name in ("cam", "puzzle", "rsa_cfc"))]
)
def test_the_classifier_is_the_plain_one_unless_another_is_named(block: dict[str, Any], system: str) -> None:
    classifier = load_config({"experiments": {"a": {"classifier": block}}}).experiments["a"].classifier
    assert classifier.system == system and classifier.snapshots == ()
    types = {"cam": CamClassifier, "puzzle": PuzzleClassifier, "rsa_cfc": RsaCfcClassifier}
    assert type(classifier) is types[system]
    assert load_config({"classifier": block, "experiments": {"a": {}}}).experiments["a"].classifier == classifier
    assert classifier.lr == block.get("lr", CamClassifier().lr)


def test_the_published_values_of_the_systems_are_the_defaults() -> None:
    config = load_config({"experiments": {"p": {"classifier": {"system": "puzzle"}}, "r": {"classifier": {"system": "rsa_cfc"}}}})
    puzzle, rsa_cfc = (config.experiments[name].classifier for name in "pr")
    assert isinstance(puzzle, PuzzleClassifier) and isinstance(rsa_cfc, RsaCfcClassifier)
    assert (puzzle.beta_reconstruction, puzzle.ramp) == (rsa_cfc.beta_reconstruction, rsa_cfc.ramp) == (2, 0.5)
    assert (rsa_cfc.lambda_contrast, rsa_cfc.alpha) == (0.5, 0.25)


def test_what_is_not_the_papers_is_the_default_and_its_own_can_be_chosen() -> None:
    ours = {"reconstruction_level": "cams", "tile_statistics": False}
    papers = {"reconstruction_level": "logits", "tile_statistics": True}
    own = {"attention": "centred_cosine", "foreground": "cam", "pairs": "sharing", "present_only": True}
    their_own = {"attention": "softmax_dot", "foreground": "relu", "pairs": "all", "present_only": False}
    for system, left, right in (("puzzle", ours, papers), ("rsa_cfc", ours | own, papers | their_own)):
        for values, expected in (({}, left), (right, right)):
            classifier = load_config({"experiments": {"a": {"classifier": {"system": system, **values}}}}).experiments["a"].classifier
            assert {name: getattr(classifier, name) for name in expected} == expected


def test_a_sweep_may_go_over_systems_and_their_own_keys() -> None:
    config = load_config({**BASE, "sweep": {"classifier.system": ["cam", "puzzle", "rsa_cfc"]}})
    assert {name: each.classifier.system for name, each in config.experiments.items()} == {
        f"plain,system={name}": name for name in ("cam", "puzzle", "rsa_cfc")
    }
    grid = {"classifier.lambda_contrast": [0.5, 1], "classifier.beta_reconstruction": [1, 2]}
    config = load_config({"classifier": {"system": "rsa_cfc"}, **BASE, "sweep": grid})
    assert "plain,lambda_contrast=1,beta_reconstruction=2" in config.experiments and len(config.experiments) == 4


@pytest.mark.parametrize("place", ["own", "shared"])
@pytest.mark.parametrize("name", ["cam", "puzzle", "rsa_cfc", "a"])
def test_an_unknown_system_is_named_at_its_key(name: str, place: str) -> None:
    block = {"classifier": {"system": "puzle", "lr": 0.1}}
    values = {"experiments": {name: block}} if place == "own" else {**block, "experiments": {name: {}}}
    assert error_of(values) == f"mine.yaml: experiments.{name}.classifier.system: unknown 'puzle'; did you mean 'puzzle'?"


@pytest.mark.parametrize("name", ["cam", "puzzle", "rsa_cfc", "a"])
@pytest.mark.parametrize("system", ["cam", "puzzle", "rsa_cfc"])
@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"backbon": "x"}, "backbon: unknown key; did you mean 'backbone'?"),
        ({"epochs": 0}, "epochs: input should be greater than 0, got 0"),
        ({"snapshots": [0]}, "snapshots.0: input should be greater than 0, got 0"),
        ({"optimizer": "sdg"}, "optimizer: expected 'sgd', 'adam' or 'adamw', got 'sdg'; did you mean 'sgd'?"),
        ({"resize": [320, 640, 9]}, "resize: tuple should have at most 2 items after validation, not 3, got [320, 640, 9]"),
    ],
)
def test_a_wrong_value_is_placed_without_the_systems_name(name: str, system: str, block: dict[str, Any], message: str) -> None:
    values = {"experiments": {name: {"classifier": {"system": system, **block}}}}
    assert error_of(values) == f"mine.yaml: experiments.{name}.classifier.{message}"


@pytest.mark.parametrize("system", ["cam", "puzzle", "rsa_cfc"])
@pytest.mark.parametrize("key", ["cam", "puzzle", "rsa_cfc"])
def test_a_key_named_like_a_system_keeps_its_place(system: str, key: str) -> None:
    message = error_of({"experiments": {"a": {"classifier": {"system": system, key: 1}}}})
    assert message.startswith(f"mine.yaml: experiments.a.classifier.{key}: unknown key")


@pytest.mark.parametrize(
    ("system", "key", "value"),
    [
        *(("cam", *each) for each in (("beta_reconstruction", 1), ("ramp", 0.5), ("attention", "none"), ("alpha", 0.1))),
        *(("puzzle", *each) for each in (("attention", "none"), ("lambda_contrast", 0), ("alpha", 0.25), ("present_only", True))),
    ],
)
def test_a_key_of_another_system_is_refused(system: str, key: str, value: Any) -> None:
    message = error_of({"experiments": {"a": {"classifier": {"system": system, key: value}}}})
    assert message.startswith(f"mine.yaml: experiments.a.classifier.{key}: unknown key")
    assert f"did you mean '{key}'" not in message
    assert load_config({"experiments": {"a": {"classifier": {"system": "rsa_cfc", key: value}}}})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"attention": "relu_cosin"},
            "attention: expected 'centred_cosine', 'softmax_dot', 'relu_cosine', 'softmax_cosine' or 'none', got 'relu_cosin'; did you mean",
        ),
        ({"foreground": "cams"}, "foreground: expected 'cam', 'relu' or 'sigmoid', got 'cams'; did you mean 'cam'"),
        ({"pairs": "every"}, "pairs: expected 'sharing' or 'all', got 'every'"),
        ({"reconstruction_level": "cam"}, "reconstruction_level: expected 'cams' or 'logits', got 'cam'; did you mean 'cams'"),
        ({"tile_statistics": "perhaps"}, "tile_statistics: input should be a valid boolean"),
        ({"temperature": 0}, "temperature: input should be greater than 0"),
        ({"lambda_contrast": -1}, "lambda_contrast: input should be greater than or equal to 0"),
        ({"beta_reconstruction": -0.1}, "beta_reconstruction: input should be greater than or equal to 0"),
        ({"alpha": -1}, "alpha: input should be greater than or equal to 0"),
        ({"ramp": 1.5}, "ramp: input should be less than or equal to 1"),
    ],
)
def test_values_of_rsa_cfc_have_their_ranges(block: dict[str, Any], message: str) -> None:
    assert f"experiments.a.classifier.{message}" in error_of({"experiments": {"a": {"classifier": {"system": "rsa_cfc", **block}}}})


@pytest.mark.parametrize("system", ["cam", "puzzle", "rsa_cfc"])
@pytest.mark.parametrize("snapshots", [[2, 1], [1, 1], [1, 4], [4], [5], [1, 2, 3, 3]])
def test_snapshots_are_epochs_in_order_before_the_last(system: str, snapshots: list[int]) -> None:
    block = {"system": system, "epochs": 4, "snapshots": snapshots}
    assert error_of({"experiments": {system: {"classifier": block}}}) == (
        f"mine.yaml: experiments.{system}.classifier: snapshots must be increasing epochs before the last one, 4 (it is kept anyway), "
        f"got {snapshots}"
    )
    for right in ([], [1], [3], [1, 2, 3]):
        config = load_config({"experiments": {"a": {"classifier": {**block, "snapshots": right}}}})
        assert config.experiments["a"].classifier.snapshots == tuple(right)


def test_a_walk_needs_no_crf_and_one_confident_threshold_may_stand_alone() -> None:
    for method in ("none", "affinity", "boundary"):
        refine = {"method": method, "crf": "none", "labels": {"foreground": 0.01}, "walk": {"steps": 0}}
        config = load_config({"experiments": {"a": {"refine": refine}}}).experiments["a"].refine
        assert (config.method, config.crf, config.labels.foreground, config.labels.background) == (method, "none", 0.01, "auto")
        assert (config.walk.steps, config.affinity.freeze_backbone, config.boundary.freeze_backbone) == (0, False, True)


@pytest.mark.parametrize(("text", "expected"), [("a: [", "not a YAML file"), ("- 1", "expected a mapping"), (None, "cannot be read")])
def test_a_bad_file_is_one_line(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_later_files_overlay_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("experiments: {x: {classifier: {lr: 0.1, epochs: 2}}}")
    (tmp_path / "b.yaml").write_text("experiments: {x: {classifier: {lr: 0.2}}}")
    classifier = read_config(tmp_path / "a.yaml", tmp_path / "b.yaml").experiments["x"].classifier
    assert (classifier.lr, classifier.epochs) == (0.2, 2)


def test_every_field_says_what_it_means() -> None:
    undocumented = [
        f"{model.__name__}.{name}" for _, _, model in generated._SECTIONS for name, f in model.model_fields.items() if not f.description
    ]
    assert undocumented == []


def test_the_generated_files_are_current() -> None:
    assert generated.SCHEMA_FILE.read_text(encoding="utf-8") == generated.schema(), "run `make docs`"
    assert generated.DOCS_FILE.read_text(encoding="utf-8") == generated.document(), "run `make docs`"


def test_the_default_configuration_fits_the_schema_and_the_models() -> None:
    known = json.loads(generated.schema())["properties"]
    import yaml

    values = yaml.safe_load((generated.ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) <= set(known)
    assert len(read_config(generated.ROOT / "config.yaml").experiments) >= 2
