"""The figure of image embeddings: who gets a panel, which images are coloured, and that near embeddings stay near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsss_core.evaluate.embeddings import EMBEDDINGS, LABELS
from wsss_core.report import embeddings as module
from wsss_core.report.embeddings import Panel, embedding_panels, neighbourhoods
from wsss_core.report.figures import _draw_embeddings

CLASSES = ["cat", "dog", "cow"]


def vectors(count: int = 30) -> np.ndarray:
    """Two heaps in turns, which only their direction tells apart: the length of each vector is its own."""
    rng = np.random.default_rng(1)
    heaps = np.zeros((count, 8))
    heaps[::2, 0] = heaps[1::2, 1] = 1
    return (heaps + 0.1 * rng.standard_normal((count, 8))) * rng.uniform(1, 50, (count, 1))


def judged(folder: Path, values: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """The directory of an evaluation."""
    folder.mkdir(parents=True)
    np.save(folder / EMBEDDINGS, values.astype(np.float16))
    np.save(folder / LABELS, np.eye(3, dtype=bool)[np.arange(len(values)) % 3] if labels is None else labels)
    return folder


def record(tmp_path: Path, name: str, evaluation: Path | None, seed: int = 0, split: str = "val") -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "experiments" / name / f"seed{seed}" / "experiment.json"
    path.parent.mkdir(parents=True)
    if evaluation is not None:
        (path.parent / "evaluate-classifier").symlink_to(evaluation)
    content = {"split": split, "figures": [{"rule": "none", "ap": dict.fromkeys(CLASSES, 0.5)}]}
    return path, {"name": name, "seed": seed, "evaluations": {"classifier": content}}


def test_embeddings_of_like_direction_stay_near() -> None:
    places = neighbourhoods(vectors())
    assert places.shape == (30, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) % 2 == np.arange(30) % 2).all()


def test_few_images_are_enough(tmp_path: Path) -> None:
    (panel,) = embedding_panels([record(tmp_path, "a", judged(tmp_path / "a", vectors(module.LEAST)))])
    assert panel.places.shape == (module.LEAST, 2) and np.isfinite(panel.places).all()


def test_a_panel_for_each_classifier_of_the_first_seed(tmp_path: Path) -> None:
    own, other, later = (judged(tmp_path / name, values) for name, values in (("x", vectors()), ("y", -vectors()), ("z", vectors(20))))
    records = [
        record(tmp_path, "cam", own),
        record(tmp_path, "cam", later, seed=1),
        record(tmp_path, "mcl", other, split="test"),
        record(tmp_path, "cam-crf", own),
    ]
    panels = embedding_panels(records)
    assert [(panel.title, panel.split, len(panel.places)) for panel in panels] == [("cam, cam-crf", "val", 30), ("mcl", "test", 30)]
    assert all(panel.classes == CLASSES for panel in panels)
    many = [record(tmp_path, f"row{i}", own) for i in range(4)]
    assert embedding_panels(many)[0].title == "row0 and 3 others"


def test_only_images_of_one_class_are_shown_as_such(tmp_path: Path) -> None:
    labels = np.zeros((12, 3), bool)
    labels[0] = True, False, True
    labels[1:6, 2] = labels[6:11, 0] = True  # the last one has none
    (panel,) = embedding_panels([record(tmp_path, "a", judged(tmp_path / "a", vectors(12), labels))])
    assert panel.shown.tolist() == [-1, *[2] * 5, *[0] * 5, -1]


def test_of_many_images_some_are_drawn_the_same_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    records = [record(tmp_path, name, judged(tmp_path / name, values)) for name, values in (("a", vectors(40)), ("b", vectors(40)))]
    one, other = embedding_panels(records)
    assert len(one.places) == 20 and one.shown.tolist() == other.shown.tolist()
    assert set(one.shown[:10]) == {0, 1, 2}  # not sorted by the lot, and not the first of them
    assert one.shown.tolist() != (np.arange(20) % 3).tolist()


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = vectors()
    endless[3] = np.inf
    records = [
        record(tmp_path, "old", None),
        record(tmp_path, "few", judged(tmp_path / "few", vectors(module.LEAST - 1))),
        record(tmp_path, "wild", judged(tmp_path / "wild", endless)),
    ]
    assert embedding_panels(records) == []
    log = capsys.readouterr().err
    assert "old" not in log and "embeddings of few: 9 images, 10 are needed" in log and "embeddings of wild: they are not all finite" in log


def test_classes_have_their_colour_and_mark_in_all_panels() -> None:
    names = [f"class{i}" for i in range(10)]
    places = np.arange(8, dtype=np.float32).reshape(4, 2)
    panels = [
        Panel("one", "val", names, places, np.array([-1, 0, 9, 9])),
        Panel("two", "val", names, places + 10, np.array([9, 9, 1, 1])),
    ]
    axes = _draw_embeddings(panels).axes
    assert [axis.get_title() for axis in axes] == ["one", "two"]
    drawn = [{marks.get_label(): marks for marks in axis.collections} for axis in axes]
    assert [list(each) for each in drawn] == [["several classes or none", "class0", "class9"], ["class1", "class9"]]
    np.testing.assert_array_equal(drawn[0]["class9"].get_offsets(), places[2:])
    np.testing.assert_array_equal(drawn[0]["several classes or none"].get_offsets(), places[:1])
    looks = {name: _look(marks) for each in drawn for name, marks in each.items()}
    assert looks["class9"] == _look(drawn[0]["class9"]) and len(set(looks.values())) == 4


def _look(marks: Any) -> tuple[Any, ...]:
    return tuple(marks.get_facecolor()[0]), marks.get_paths()[0].vertices.tobytes()
