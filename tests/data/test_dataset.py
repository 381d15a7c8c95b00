"""Samples and their order depend on the seed alone: not on workers, on what was drawn before, or on resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wsss_core.data.dataset import EpochSampler, SeededDataset, stable_seed


def load(record: int) -> dict[str, float]:
    return {"record": record, "torch": torch.rand(()).item(), "numpy": np.random.rand()}


def samples(workers: int, epoch: int = 0, seed: int = 0) -> list[tuple[float, ...]]:
    sampler = EpochSampler(7, seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(SeededDataset(range(7), load, seed), batch_size=2, sampler=sampler, num_workers=workers)
    return [tuple(values) for batch in loader for values in zip(*(batch[key].tolist() for key in load(0)), strict=True)]


def test_workers_do_not_matter() -> None:
    assert samples(0) == samples(2)


def test_epoch_and_seed_change_samples_and_order() -> None:
    runs = [samples(0), samples(0, epoch=1), samples(0, seed=1)]
    assert all(sorted(row[0] for row in run) == list(range(7)) for run in runs)
    assert len({tuple(row[0] for row in run) for run in runs}) == 3
    assert len({row[1] for run in runs for row in run}) == 21


def test_sample_depends_on_its_key_alone() -> None:
    dataset = SeededDataset(range(5), load, seed=3)
    first = dataset[2, 4]
    torch.rand(3), np.random.rand(3)
    dataset[2, 3]
    assert dataset[2, 4] == first
    assert dataset[1, 4] != first


def test_global_random_state_is_left_alone() -> None:
    dataset = SeededDataset(range(5), load, seed=3)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist()
    torch.manual_seed(0)
    np.random.seed(0)
    dataset[0, 1]
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == expected


def test_random_state_is_restored_after_an_error() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError):
        SeededDataset([0], lambda record: 1 // record, seed=0)[0, 0]
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])


def test_stable_seed_is_the_same_on_every_machine() -> None:
    assert stable_seed("sample", 0, 1, 2) == 4546792013340644937
    assert 0 <= stable_seed(1) < 2**63


@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (10, 3), (9, 3), (2, 5)])
def test_ranks_share_the_epoch_evenly(length: int, world_size: int) -> None:
    ranks = [list(EpochSampler(length, 1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(keys) for keys in ranks} == {len(EpochSampler(length, 1, world_size=world_size))}
    taken = [position for keys in ranks for _, position in keys]
    assert set(taken) == set(range(length))
    assert len(taken) - length < world_size


def test_without_shuffling() -> None:
    sampler = EpochSampler(4, 0, shuffle=False)
    sampler.set_epoch(6)
    assert list(sampler) == [(6, 0), (6, 1), (6, 2), (6, 3)]


def test_wrong_rank() -> None:
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\)"):
        EpochSampler(4, 0, rank=2, world_size=2)
