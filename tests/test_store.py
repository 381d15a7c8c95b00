"""The score store."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from wsss_core.errors import UserError
from wsss_core.store import ScoreStore, ScoreWriter, StoreType, join_stores, shard_ranges

SHAPES = [(2, 5, 7), (1, 1, 1), (0, 4, 4), (3, 2, 9)]


def made(seed: int = 0) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(f"dir/{seed}-{i}", rng.random(shape, np.float32), np.arange(shape[0]) * 2 + 1) for i, shape in enumerate(SHAPES)]


def write(path: Path, images: list[tuple[str, np.ndarray, np.ndarray]], dtype: StoreType = "float16", compress: bool = False) -> None:
    with ScoreWriter(path, 9, dtype=dtype, compress=compress) as writer:
        for name, scores, classes in images:
            writer.add(name, scores, classes, (40, 50), score=np.arange(8))


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read(tmp_path: Path, dtype: StoreType, compress: bool) -> None:
    images = made()
    write(tmp_path / "s.h5", images, dtype, compress)
    with ScoreStore(tmp_path / "s.h5") as store:
        assert (len(store), store.num_classes, store.ids) == (4, 9, [name for name, _, _ in images])
        for (name, scores, classes), (read_name, read, read_classes) in zip(images, store, strict=True):
            assert (name, read.dtype, store.size(name)) == (read_name, np.float32, (40, 50))
            np.testing.assert_allclose(read, scores, atol=1 / 510 + 1e-6 if dtype == "uint8" else 5e-4)
            np.testing.assert_array_equal(read_classes, classes)
        np.testing.assert_array_equal(store.extra("score"), np.tile(np.arange(8, dtype=np.float32), (4, 1)))


@pytest.mark.parametrize("compress", [False, True])
def test_joined_shards_equal_one_store(tmp_path: Path, compress: bool) -> None:
    first, second = made(0), made(1)
    write(tmp_path / "a.h5", first, compress=compress)
    write(tmp_path / "b.h5", second, compress=compress)
    write(tmp_path / "all.h5", first + second, compress=compress)
    join_stores([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "joined.h5")
    with ScoreStore(tmp_path / "all.h5") as whole, ScoreStore(tmp_path / "joined.h5") as joined:
        assert whole.ids == joined.ids
        for name in whole.ids:
            for one, other in zip(whole.read(name), joined.read(name), strict=True):
                np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(whole.extra("score"), joined.extra("score"))


def test_a_store_has_no_time_of_day_in_it(tmp_path: Path) -> None:
    """HDF5 counts in seconds."""
    bytes_of = []
    for place in (tmp_path / "one", tmp_path / "other"):
        place.mkdir()
        write(place / "a.h5", made(0), "float16")
        write(place / "b.h5", made(1), "float16")
        write(place / "small.h5", made(0), "uint8", compress=True)
        join_stores([place / "a.h5", place / "b.h5"], place / "joined.h5")
        bytes_of.append({path.name: path.read_bytes() for path in place.iterdir()})
        if len(bytes_of) == 1:
            time.sleep(1.1)
    assert len(bytes_of[0]) == 4
    assert {name for name in bytes_of[0] if bytes_of[0][name] != bytes_of[1][name]} == set()
    with ScoreStore(tmp_path / "one" / "joined.h5") as store:
        assert store.extra("score").shape == (8, 8)


def test_an_error_while_writing_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ScoreWriter(tmp_path / "s.h5", 3) as writer:
        writer.add("a", np.zeros((1, 2, 2)), np.array([1]), (2, 2))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    writer = ScoreWriter(tmp_path / "s.h5", 3)
    with pytest.raises(ValueError, match="expected scores"):
        writer.add("a", np.zeros((2, 2, 2)), np.array([1]), (2, 2))


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.h5: not a readable score store"):
        ScoreStore(tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="not a readable score store"):
        ScoreStore(tmp_path / "bad.h5")
    write(tmp_path / "s.h5", made())
    with ScoreStore(tmp_path / "s.h5") as store, pytest.raises(UserError, match="holds no scores of the image 'x'"):
        store.read("x")


def test_an_empty_store_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "s.h5", [])
    with ScoreStore(tmp_path / "s.h5") as store:
        assert list(store) == []


def test_shard_ranges_cover_all() -> None:
    assert shard_ranges(5, 2) == [(0, 2), (2, 4), (4, 5)]
    assert shard_ranges(0, 2) == []
