"""Confusion matrices against counting class by class, and the figures against their definitions."""

from pathlib import Path

import numpy as np
import pytest

from wsss_core.evaluate.confusion import confusion_matrix, segmentation_metrics

GOLDEN = Path(__file__).parents[3] / "shared/golden/segmentation_metrics.npz"


def count_one_by_one(gt, pred, num_classes, ignore=255):
    cm = np.zeros((num_classes, num_classes), np.int64)
    for g, p in zip(np.ravel(gt), np.ravel(pred), strict=True):
        if g != ignore:
            cm[g, p] += 1
    return cm


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(c, np.uint8) for c in (1, 2, 21, 81)] + [(c, dtype) for c in (1, 2, 21, 81, 256, 300) for dtype in (np.int32, np.int64)],
)
def test_equals_counting_one_by_one(num_classes, dtype):
    rng = np.random.default_rng(num_classes)
    gt, pred = (rng.integers(0, num_classes, (13, 17)).astype(dtype) for _ in range(2))
    gt[rng.random(gt.shape) < 0.2] = 255
    cm = confusion_matrix(gt, pred, num_classes)
    assert cm.dtype == np.int64
    np.testing.assert_array_equal(cm, count_one_by_one(gt, pred, num_classes))


@pytest.mark.parametrize("ignore", [-1, 0, 2, 255])
def test_any_value_can_be_ignored(ignore):
    gt, pred = np.array([0, 1, 2, 2, 1]), np.array([0, 1, 1, 2, 0])
    gt = np.append(gt, ignore)
    np.testing.assert_array_equal(confusion_matrix(gt, np.append(pred, 0), 3, ignore), count_one_by_one(gt, np.append(pred, 0), 3, ignore))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (1, 9), (9, 1)])
def test_odd_shapes(shape):
    gt = np.ones(shape, np.uint8)
    assert confusion_matrix(gt, np.zeros_like(gt), 2).tolist() == [[0, 0], [gt.size, 0]]


def test_all_ignored_counts_nothing():
    assert not confusion_matrix(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8), 3).any()


def test_inputs_are_not_changed():
    gt, pred = np.array([[0, 255, 1]], np.uint8), np.array([[1, 0, 1]], np.uint8)
    gt.flags.writeable = pred.flags.writeable = False
    confusion_matrix(gt, pred, 2)


@pytest.mark.parametrize("wrong", [255, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_prediction_out_of_range(wrong, dtype):
    gt = np.zeros((2, 3), dtype)
    pred = gt.copy()
    pred[1, 2] = wrong
    with pytest.raises(ValueError, match=r"pred must be in 0\.\.2"):
        confusion_matrix(gt, pred, 3)


@pytest.mark.parametrize(
    ("gt", "message"), [([0, 3], "gt must be in"), ([0, -1], "gt must be in"), ([0.0, 1.0], "integers"), ([0], "one shape")]
)
def test_wrong_truth(gt, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(gt), np.array([0, 1]), 3)


def test_figures_by_hand():
    cm = np.array([[50, 10, 0], [5, 20, 0], [15, 0, 0]])
    metrics = segmentation_metrics(cm)
    np.testing.assert_allclose(metrics["iou"], [50 / 80, 20 / 35, 0])
    np.testing.assert_allclose(metrics["fdr"], [20 / 70, 10 / 30, np.nan])  # class 2 is never predicted
    np.testing.assert_allclose(metrics["fnr"], [10 / 60, 5 / 25, 1])
    assert metrics["miou"] == pytest.approx((50 / 80 + 20 / 35) / 3)
    assert metrics["mfdr"] == pytest.approx((20 / 70 + 10 / 30) / 2)
    assert metrics["mfnr"] == pytest.approx((10 / 60 + 5 / 25 + 1) / 3)


def test_absent_class_is_left_out_of_the_means():
    with_absent, without = np.array([[8, 0, 2], [0, 0, 0], [1, 0, 5]]), np.array([[8, 2], [1, 5]])
    metrics, reference = segmentation_metrics(with_absent), segmentation_metrics(without)
    for name in ("iou", "fdr", "fnr"):
        assert np.isnan(metrics[name][1])
        assert metrics[f"m{name}"] == pytest.approx(reference[f"m{name}"])


def test_class_predicted_but_not_there_counts_as_zero_iou():
    metrics = segmentation_metrics(np.array([[8, 2], [0, 0]]))
    assert metrics["iou"][1] == 0
    assert metrics["fdr"][1] == 1
    assert np.isnan(metrics["fnr"][1])


def test_nothing_counted_is_nan():
    assert np.isnan(segmentation_metrics(np.zeros((3, 3), np.int64))["miou"])


def test_perfect_and_wholly_wrong():
    assert segmentation_metrics(np.diag([5, 7]))["miou"] == 1
    metrics = segmentation_metrics(np.array([[0, 5], [7, 0]]))
    assert (metrics["miou"], metrics["mfdr"], metrics["mfnr"]) == (0, 1, 1)


def test_leading_dimensions_are_kept():
    stack = np.random.default_rng(0).integers(0, 9, (4, 3, 3))
    metrics = segmentation_metrics(stack)
    assert metrics["iou"].shape == (4, 3)
    np.testing.assert_allclose(metrics["miou"], [segmentation_metrics(cm)["miou"] for cm in stack])


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros(4), np.array([[1, -1], [0, 0]])])
def test_no_confusion_matrix(wrong):
    with pytest.raises(ValueError, match="expected counts"):
        segmentation_metrics(wrong)


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden vectors are not here")
def test_golden():
    golden = np.load(GOLDEN, allow_pickle=False)
    c = int(golden["num_classes"])
    cm = sum(confusion_matrix(gt, pred, c) for gt, pred in zip(golden["gt"], golden["pred"], strict=True))
    metrics = segmentation_metrics(cm)
    for name in ("iou", "miou", "mfdr", "mfnr"):
        np.testing.assert_allclose(metrics[name], golden[name], rtol=1e-12)
