"""The segmenter's test path, on the workflow's images and on a person's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_core.data.images import read_mask
from wsss_core.engine.export import export_model
from wsss_core.engine.own_images import find_images, find_model, predict_images
from wsss_core.engine.predictor import Predictor
from wsss_core.errors import UserError
from wsss_core.evaluate.submission import write_submission
from wsss_core.plan import Plan
from wsss_core.refine.predictions import refine_probabilities


@pytest.fixture
def model(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> Path:
    """A segmenter, trained on true masks to be quick."""
    return do(planned({"experiments": {"crf": {"supervision": "masks"}}}), "segmenter")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)


def test_probabilities_are_the_mean_over_scales_and_flips(model: Path, image: np.ndarray) -> None:
    probabilities = Predictor(model, {"scales": [1.0, 0.5], "flip": True}).probabilities(image)
    assert probabilities.shape == (4, 40, 57)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    single = [Predictor(model, {"scales": [s], "flip": True}).probabilities(image) for s in (1.0, 0.5)]
    np.testing.assert_allclose(probabilities, np.mean(single, axis=0), atol=1e-6)
    mirrored = Predictor(model, {"scales": [1.0], "flip": True}).probabilities(image[:, ::-1].copy())
    np.testing.assert_allclose(mirrored[:, :, ::-1], single[0], atol=1e-5)


def test_labels_are_the_best_class(model: Path, image: np.ndarray) -> None:
    predictor = Predictor(model)
    np.testing.assert_array_equal(predictor.labels(image), predictor.probabilities(image).argmax(axis=0))


def test_a_crf_keeps_the_class_numbers(image: np.ndarray) -> None:
    probabilities = np.full((6, 40, 57), 0.001, np.float32)
    probabilities[0], probabilities[4], probabilities[4, :, 30:], probabilities[0, :, 30:] = 0.9, 0.09, 0.9, 0.09
    labels = refine_probabilities(np.full_like(image, 100), probabilities / probabilities.sum(axis=0), "soft")
    assert set(np.unique(labels)) == {0, 4}
    assert (labels[:, 35:] == 4).all()


def test_a_crf_takes_predictions_without_a_clear_class(image: np.ndarray) -> None:
    labels = refine_probabilities(image, np.full((81, 40, 57), 1 / 81, np.float32), "vitpcm")
    assert labels.shape == (40, 57)


def test_the_stage_refines_as_the_predictor_does(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    from wsss_core.data.images import read_image
    from wsss_core.data.index import read_index

    plan = planned({"experiments": {"crf": {"supervision": "masks"}}, "predict": {"crf": "vitpcm"}})
    directory = do(plan, "predict")
    index = read_index(do(plan, "data"), None)
    predictor = Predictor(do(plan, "segmenter"), {"crf": "vitpcm"})
    for record in index.split("val"):
        image = read_image(index.image_path(record))
        agreement = (read_mask(directory / "masks" / f"{record.id}.png") == predictor.labels(image)).mean()
        assert agreement > 0.999  # the store rounds to float16


def test_own_images_are_written_as_masks_and_overlays(model: Path, image: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "trip"
    folder.mkdir(parents=True)
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(image).convert("L").save(tmp_path / "photos" / "grey.jpg")
    found = find_images([tmp_path / "photos"])
    predictor = Predictor(model)
    predict_images(predictor, found, tmp_path / "out")
    np.testing.assert_array_equal(read_mask(tmp_path / "out/masks/trip/a.png", 4), predictor.labels(image))
    assert Image.open(tmp_path / "out/overlays/grey.jpg").size == (57, 40)


def test_lists_are_relative_to_themselves(image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n\n")
    assert find_images([tmp_path / "list.txt"]) == [(tmp_path / "a.png", Path("a.png"))]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(UserError, match="same name as"):
        find_images([tmp_path])
    assert len(find_images([tmp_path / "a.png", tmp_path / "a.png"])) == 2  # the same image twice does no harm


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or directory"):
        find_images([tmp_path / "gone.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="holds no finished segmenter"):
        find_model(tmp_path)


def test_a_classifier_is_no_segmenter(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    with pytest.raises(UserError, match="holds no segmenter but the system 'cam'"):
        Predictor(do(planned({"classifier": {"epochs": 1}}), "classifier"))


def test_a_segmenter_has_no_patches_to_predict_from(model: Path) -> None:
    with pytest.raises(UserError, match=r"source: the system 'segment' has no patches, expected decoder") as error:
        Predictor(model, {"source": "patches"})
    assert "\n" not in str(error.value)


def test_an_exported_model_gives_the_same_probabilities(model: Path, image: np.ndarray, tmp_path: Path) -> None:
    export_model(model, tmp_path / "m.pt", 64)
    square = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        exported = torch.jit.load(tmp_path / "m.pt")(pixels)[0].numpy()
    np.testing.assert_allclose(exported, Predictor(model, {"scales": [1.0], "flip": False}).probabilities(square), atol=1e-5)
    with pytest.raises(UserError, match="expected a name ending in"):
        export_model(model, tmp_path / "m.bin", 64)


def test_a_submission_has_the_layout_of_the_server(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="holds no predicted masks"):
        write_submission(tmp_path, tmp_path / "s.zip")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "masks" / "2008_000001.png")
    assert write_submission(tmp_path, tmp_path / "s.zip") == 1
    assert zipfile.ZipFile(tmp_path / "s.zip").namelist() == ["results/VOC2012/Segmentation/comp6_test_cls/2008_000001.png"]
