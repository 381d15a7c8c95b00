"""Classification figures against their definitions."""

import numpy as np
import pytest

from wsss_core.evaluate.classification import average_precision, classification_metrics


def precision_at_each_positive(scores, labels):
    """Average precision for scores without ties: the mean, over positives, of the precision among all ranked no lower."""
    return np.mean([labels[scores >= s].mean() for s in scores[labels == 1]])


def test_average_precision_by_definition():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 3)), (rng.random((40, 3)) < 0.3).astype(np.float32)
    expected = [precision_at_each_positive(scores[:, c], labels[:, c]) for c in range(3)]
    np.testing.assert_allclose(average_precision(scores, labels), expected)


def test_class_without_positives_is_left_out():
    scores, labels = np.array([[0.9, 0.2], [0.1, 0.3]]), np.array([[1, 0], [0, 0]])
    metrics = classification_metrics(scores, labels)
    assert metrics["ap"][0] == 1
    assert np.isnan(metrics["ap"][1])
    assert metrics["map"] == 1


def test_no_positive_at_all_is_nan():
    assert np.isnan(classification_metrics(np.full((2, 2), 0.1), np.zeros((2, 2)))["map"])


def test_accuracy_and_exact_match():
    scores, labels = np.array([[0.9, 0.5], [0.6, 0.7], [0.4, 0.1]]), np.array([[1, 0], [1, 0], [0, 0]])
    metrics = classification_metrics(scores, labels)  # a probability of exactly 0.5 is no detection
    assert metrics["accuracy"] == pytest.approx(5 / 6)
    assert metrics["exact_match"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2))),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.zeros((1, 1)), np.full((1, 1), 2)),
        ([[np.nan]], [[1]]),
    ],
)
def test_wrong_input(scores, labels):
    with pytest.raises(ValueError, match=r"expected scores|must be"):
        classification_metrics(scores, labels)
