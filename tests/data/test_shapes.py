"""The made images: reproducible one by one, as the configuration says, and with the difficulties they promise."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from skimage.draw import polygon2mask

from wsss_core.config.datasets import Shapes
from wsss_core.data.images import read_image, read_mask
from wsss_core.data.shapes import SPLITS, build_index, class_names, compose, draw
from wsss_core.data.shapes_drawing import draw_toy, placed
from wsss_core.data.shapes_toys import TOYS

SMALL = Shapes(size=64, train=12, val=5, classes=6)
CONTEXT_OF = {number: toy.context for number, toy in enumerate(TOYS, start=1)}


def silent(iterable, what, total=None):
    return iterable


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def objects(dataset: Shapes, images: int):
    return [placed for number in range(images) for placed in compose(dataset, "train", number).objects]


def test_an_image_depends_on_nothing_but_seed_split_and_number():
    forwards = [draw(SMALL, split, number) for split in SPLITS for number in range(4)]
    backwards = [draw(SMALL, split, number) for split in reversed(SPLITS) for number in reversed(range(4))][::-1]
    longer = SMALL.model_copy(update={"train": 100})
    for (image, mask), (image_again, mask_again) in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(mask, mask_again)
    np.testing.assert_array_equal(forwards[3][0], draw(longer, "train", 3)[0])


def test_seeds_splits_and_numbers_give_other_images():
    other_seed = SMALL.model_copy(update={"seed": 1})
    images = [draw(SMALL, "train", 0), draw(SMALL, "train", 1), draw(SMALL, "val", 0), draw(other_seed, "train", 0)]
    for (first, _), (second, _) in itertools.combinations(images, 2):
        assert (first != second).any()


@pytest.mark.parametrize("size", [48, 112, 250])
@pytest.mark.parametrize("classes", [2, 5])
def test_size_and_range_follow_the_configuration(size, classes):
    dataset = Shapes(size=size, classes=classes)
    for number in range(5):
        image, mask = draw(dataset, "train", number)
        assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
        assert mask.max() <= classes
        assert set(np.unique(mask)) - {0} <= {placed.label for placed in compose(dataset, "train", number).objects}


def test_the_index_agrees_with_the_files(tmp_path):
    index = build_index(SMALL, tmp_path, silent)
    assert index.classes == ("background", "train", "car", "boat", "bird", "sheep", "house") == class_names(SMALL)
    assert {name: len(records) for name, records in index.splits.items()} == {"train": 12, "val": 5}
    assert index.root is None
    for number, record in enumerate(index.split("val")):
        image, mask = draw(SMALL, "val", number)
        np.testing.assert_array_equal(read_image(index.image_path(record)), image)
        np.testing.assert_array_equal(read_mask(index.resolve(record.mask), index.num_classes), mask)
        assert record.labels == tuple(np.unique(mask[mask > 0]))
    assert len({record.id for records in index.splits.values() for record in records}) == 17


def test_a_killed_run_resumes_to_the_same_files(tmp_path):
    undisturbed = build_index(SMALL, tmp_path / "undisturbed", silent)

    def killed(iterable, what, total=None):
        yield from itertools.islice(iterable, 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(SMALL, tmp_path / "killed", killed)
    (tmp_path / "killed" / "masks" / "train_00005.png").unlink()  # as if it had been killed between image and mask
    finished = tmp_path / "killed" / "images" / "train_00000.png"
    written = finished.stat().st_mtime_ns
    resumed = build_index(SMALL, tmp_path / "killed", silent)
    assert resumed.splits == undisturbed.splits
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")
    assert finished.stat().st_mtime_ns == written


def test_numbers_of_objects_and_empty_images():
    counts = np.array([len(compose(Shapes(empty=0.1, objects=(2, 3)), "train", number).objects) for number in range(600)])
    assert set(counts) == {0, 2, 3}
    assert 0.06 < (counts == 0).mean() < 0.14
    with pytest.raises(ValidationError, match="fewest"):
        Shapes(objects=(3, 1))


def test_every_object_can_be_seen():
    dataset = Shapes(objects=(3, 3), empty=0)
    for number in range(40):
        labels = {placed.label for placed in compose(dataset, "train", number).objects}
        assert set(np.unique(draw(dataset, "train", number)[1])) - {0} == labels


def test_classes_are_balanced_and_come_together():
    dataset = Shapes(classes=6, objects=(2, 2), empty=0)
    pairs = [[placed.label for placed in compose(dataset, "train", number).objects] for number in range(500)]
    shares = np.bincount(np.ravel(pairs), minlength=7)[1:] / 1000
    assert shares.min() > 0.12 and shares.max() < 0.22
    partners = np.mean([(first - 1) ^ 1 == second - 1 for first, second in pairs])
    assert 0.4 < partners < 0.6  # 0.4 + 0.6 / 6


def test_the_context_comes_with_its_class_at_the_configured_rate_and_never_without():
    drawn = objects(Shapes(classes=6, context=0.7), 500)
    with_context = [placed.context for placed in drawn if CONTEXT_OF[placed.label]]
    assert 0.64 < np.mean(with_context) < 0.76
    assert not any(placed.context for placed in drawn if not CONTEXT_OF[placed.label])


def test_the_context_is_background():
    always, never = Shapes(context=1, size=96), Shapes(context=0, size=96)
    shown = 0
    for number in range(20):
        (image, mask), (bare, bare_mask) = draw(always, "train", number), draw(never, "train", number)
        np.testing.assert_array_equal(mask, bare_mask)
        if any(placed.context for placed in compose(always, "train", number).objects):
            shown += 1
            assert (np.abs(image.astype(int) - bare).max(axis=2)[mask == 0] > 25).mean() > 0.02
        else:
            np.testing.assert_array_equal(image, bare)
    assert shown > 5


@pytest.mark.parametrize("label", range(1, len(TOYS) + 1))
def test_the_mask_holds_the_small_striking_part_and_the_large_body(label):
    toy, place = TOYS[label - 1], (100.0, 150.0, 120.0, 0.1, True)
    image, mask = np.zeros((200, 200, 3), np.float32), np.zeros((200, 200), np.uint8)
    draw_toy(image, mask, toy, label, place, np.random.default_rng(0))
    areas = {"part": np.zeros((200, 200), bool), "body": np.zeros((200, 200), bool)}
    for paint, points in toy.layers:
        areas["part" if paint.startswith("#") else "body"] |= polygon2mask((200, 200), placed(points, *place)[:, ::-1])
    for area in areas.values():
        assert (mask[area] == label).mean() > 0.95
    assert 0.03 < areas["part"].sum() / (mask == label).sum() < 0.25
    assert (mask[~(areas["part"] | areas["body"])] == label).mean() < 0.02


def test_clutter_adds_structure():
    still, busy = (
        np.mean([np.abs(np.diff(draw(Shapes(clutter=c, empty=1), "train", n)[0].astype(int), axis=1)).mean() for n in range(10)])
        for c in (0, 1)
    )
    assert busy > 1.3 * still
