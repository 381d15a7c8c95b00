"""Figures and gallery on a small made experiment: what appears, what is left out, and that nothing half-made stays."""

import base64
import io
import json
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from wsss_core.data.images import save_mask
from wsss_core.data.index import DataIndex, Record, write_index
from wsss_core.errors import UserError
from wsss_core.report.figures import _over_training, experiment_styles, write_figures
from wsss_core.report.gallery import draw_records, write_gallery
from wsss_core.report.tables import read_records
from wsss_core.store import ScoreWriter

CLASSES = ("background", "cat", "<dog> & co")


def spec(directory, **parameters):
    directory.mkdir(parents=True)
    values = {"stage": "x", "id": "0", "revision": 1, "parameters": parameters, "seed": None, "upstream": {}, "inputs": {}, "files": {}}
    (directory / "spec.json").write_text(json.dumps({**values, "run": {}, "output": str(directory)}))


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_mask(path, mask)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A finished experiment with every stage; returns the record's path."""
    rng = np.random.default_rng(0)
    for name in ("data", "cams", "affinity", "refine", "pseudo", "segmenter", "classifier"):
        spec(tmp_path / name)
    spec(tmp_path / "predict", split="val", scales=[1.0])
    splits = {}
    for split, count in (("train", 4), ("val", 2)):
        splits[split] = []
        for i in range(count):
            name = f"{split}{i}"
            image, mask = tmp_path / "data" / "images" / f"{name}.png", rng.integers(0, 3, (20, 30)).astype(np.uint8)
            image.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(image)
            save(tmp_path / "data" / "masks" / f"{name}.png", mask)
            save(tmp_path / ("predict" if split == "val" else "pseudo") / "masks" / f"{name}.png", mask)
            labels = () if name == "train0" else (1, 2)
            splits[split].append(Record(name, f"prepared:images/{name}.png", labels, f"prepared:masks/{name}.png"))
    index = DataIndex(CLASSES, {name: tuple(records) for name, records in splits.items()}, "made", None, tmp_path / "data")
    (tmp_path / "data" / "index.json").write_text(json.dumps(write_index(index)))
    for name, classes in (("cams", (1, 2)), ("refine", (0, 1, 2))):
        with ScoreWriter(tmp_path / name / "scores.h5", 3) as writer:
            for record in splits["train"]:
                writer.add(record.id, rng.random((len(classes), 5, 8)), np.array(classes), (20, 30))
    for name, terms in (("classifier", {}), ("affinity", {"negative": 1.0}), ("segmenter", {"ce": 1.0, "dice": 2.0})):
        lines = [",".join(["step", "epoch", "lr", *terms, "total", "images_per_second"])]
        lines += [",".join(map(str, [10 * e, e, 0.1, *(v / e for v in terms.values()), 3.0 / e, 50])) for e in (1, 2, 3)]
        (tmp_path / name / "metrics.csv").write_text("\n".join(lines) + "\n")

    class Predictor:
        def __init__(self, model_dir, parameters, device="cpu"):
            assert (model_dir, parameters["scales"], device) == (tmp_path / "segmenter", [1.0], "cpu")

        def labels(self, image):
            return np.ones(image.shape[:2], np.uint8)

    predict = types.ModuleType("wsss_core.engine.predictor")
    predict.Predictor = Predictor
    monkeypatch.setitem(sys.modules, "wsss_core.engine.predictor", predict)
    grid = [i / 10 for i in range(10)]
    curve = {"threshold": grid, "miou": [0.5 - (t - 0.4) ** 2 for t in grid], "mfdr": [None, *grid[1:]], "mfnr": grid}
    rules = [{"rule": "fixed", "threshold": 0.3}, {"rule": "oracle", "threshold": 0.4}]
    figures = [{**rule, "miou": 0.5, "mfdr": 0.2, "mfnr": None} for rule in rules]
    stages = ("data", "classifier", "cams", "affinity", "refine", "pseudo", "segmenter", "predict")
    record = {
        "name": "full",
        "seed": 0,
        "dataset": "made",
        "values": {},
        "stages": {name: {"kind": name, "id": "0", "directory": str(tmp_path / name)} for name in stages},
        "evaluations": {"cams": {"split": "train", "figures": figures, "curve": curve}, "segmenter": {"split": "val", "figures": []}},
    }
    return write_record(tmp_path / "full" / "experiment.json", record)


def write_record(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def variant(path, name, keep=None, **changes):
    record = json.loads(path.read_text())
    record.update(name=name, **changes)
    if keep is not None:
        record["stages"] = {stage: record["stages"][stage] for stage in keep}
    return write_record(path.parent.parent / f"{name}-{record['seed']}" / "experiment.json", record)


class Pictures(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def test_figures_of_several_experiments_and_seeds(tree, tmp_path):
    other = variant(tree, "full", seed=1)
    written = write_figures([tree, other, variant(tree, "bare", keep=("data",), evaluations={})], tmp_path / "figures")
    names = {path.name for path in written}
    expected = ("loss_classifier", "loss_affinity", "loss_segmenter", "thresholds_cams")
    assert names == {f"{name}{suffix}" for name in expected for suffix in (".svg", ".png")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    svg = (tmp_path / "figures" / "thresholds_cams.svg").read_text()
    for text in ("background threshold", "mIoU (%)", "full (mean of 2 seeds)", "oracle threshold (chosen on masks)"):
        assert text in svg
    svg = (tmp_path / "figures" / "loss_segmenter.svg").read_text()
    assert "dice" in svg
    assert "epoch" in svg


def test_cams_over_the_training_are_drawn_against_iterations(tree, tmp_path):
    cams = json.loads(tree.read_text())["evaluations"]["cams"]
    early = json.loads(json.dumps(cams).replace("0.5,", "0.125,"))
    early["protocol"] = {"epoch": 1}
    path = variant(tree, "watched", evaluations={"cams-epoch1": early, "cams": cams})
    (frame,) = _over_training(read_records([path]), "cams")["watched"]
    assert frame["step"].tolist() == [10, 30]  # of epochs 1 and 3 in metrics.csv
    assert frame["miou"].tolist() == [0.125, 0.5]
    assert frame["mfdr"].tolist() == [0.2, 0.2]
    assert frame["mfnr"].isna().all()
    names = {path.name for path in write_figures([tree, path], tmp_path / "figures")}
    assert {"cams_over_training.svg", "cams_over_training.png"} < names
    svg = (tmp_path / "figures" / "cams_over_training.svg").read_text()
    assert "iteration" in svg
    assert "watched" in svg
    assert ">full<" not in svg  # no snapshots


def test_image_embeddings_are_drawn_where_the_evaluation_kept_them(tree, tmp_path):
    figure = {"rule": "none", "threshold": None, "map": 0.5, "ap": {"cat": 0.5, "<dog> & co": 0.5}}
    path = variant(tree, "seen", evaluations={"classifier": {"split": "val", "figures": [figure]}})
    (path.parent / "evaluate-classifier").mkdir()
    np.save(path.parent / "evaluate-classifier" / "embeddings.npy", np.random.default_rng(0).random((12, 5)).astype(np.float16))
    np.save(path.parent / "evaluate-classifier" / "labels.npy", np.eye(2, dtype=bool)[np.arange(12) % 2])
    names = {path.name for path in write_figures(iter([tree, path]), tmp_path / "figures")}
    assert {"embeddings.svg", "embeddings.png"} < names
    svg = (tmp_path / "figures" / "embeddings.svg").read_text()
    for text in (">seen<", ">cat<", "&lt;dog&gt; &amp; co", "Image embeddings, val"):
        assert text in svg
    assert ">full<" not in svg


def test_same_records_give_the_same_svg(tree, tmp_path):
    for name in ("one", "two"):
        write_figures([tree], tmp_path / name)
    assert (tmp_path / "one" / "loss_segmenter.svg").read_bytes() == (tmp_path / "two" / "loss_segmenter.svg").read_bytes()


def test_missing_history_names_the_file(tree, tmp_path):
    (tmp_path / "classifier" / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be read"):
        write_figures([tree], tmp_path / "figures")


def test_styles_differ():
    styles = experiment_styles(f"e{i}" for i in range(20))
    assert len({tuple(style.values()) for style in styles.values()}) == 20


def test_gallery(tree, tmp_path):
    out = tmp_path / "gallery"
    (out / "train").mkdir(parents=True)
    (out / "train" / "stale.png").touch()
    write_gallery(tree, out, images=8, seed=0)
    text = (out / "index.html").read_text()
    sources = Pictures(text).sources
    assert len(sources) == 3 + 2  # train0 shows no object
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) for source in sources]
    assert pictures[0].width > 1.9 * pictures[-1].width  # six pictures against three
    assert len(list(out.glob("*/*.png"))) == len(sources)
    assert "&lt;dog&gt; &amp; co" in text
    assert "http" not in text
    assert (out / "gallery.png").is_file()
    assert not (out / "train" / "stale.png").exists()
    assert not list(tmp_path.glob(".gallery*"))


@pytest.mark.parametrize(
    ("keep", "columns", "splits"), [(("data", "cams"), 3, {"train"}), (("data", "segmenter", "predict"), 3, {"train", "val"})]
)
def test_gallery_leaves_out_what_is_not_there(tree, tmp_path, keep, columns, splits):
    write_gallery(variant(tree, "part", keep=keep), tmp_path / "gallery", images=1, seed=0)
    assert {p.name for p in (tmp_path / "gallery").iterdir() if p.is_dir()} == splits
    with Image.open(next((tmp_path / "gallery" / "train").iterdir())) as strip:
        assert round(strip.width / (1.5 * 176)) == columns


def test_gallery_of_no_images(tree, tmp_path):
    write_gallery(tree, tmp_path / "gallery", images=0, seed=0)
    assert "No images" in (tmp_path / "gallery" / "index.html").read_text()


def test_gallery_replaces_no_other_directory(tree, tmp_path):
    with pytest.raises(UserError, match="no part of a gallery"):
        write_gallery(tree, tmp_path, images=1, seed=0)
    assert tree.exists()


def test_failed_gallery_leaves_nothing(tree, tmp_path):
    (tmp_path / "cams" / "scores.h5").unlink()
    with pytest.raises(UserError, match=r"scores\.h5"):
        write_gallery(tree, tmp_path / "gallery", images=2, seed=0)
    assert not list(tmp_path.glob("*gallery*"))


def test_images_are_drawn_by_the_seed():
    records = [Record(str(i), "", (1,) if i % 2 else ()) for i in range(20)]
    first, again, other = (draw_records(records, 5, seed, with_objects=True) for seed in (0, 0, 1))
    assert first == again != other
    assert len({r.id for r in first}) == 5
    assert all(r.labels for r in first)
