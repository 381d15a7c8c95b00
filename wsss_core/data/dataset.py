"""A torch data set and sampler whose samples and order depend on the seed alone: not on workers, ranks' timing or resuming."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

RecordType = TypeVar("RecordType")
Sample = dict[str, Any]


def stable_seed(*parts: object) -> int:
    """Return a seed in [0, 2^63): the same for the same numbers and words in every process, which `hash` would not be."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class SeededDataset(Dataset[Sample], Generic[RecordType]):
    """Samples by (epoch, position), each with random state of its own.

    Parameters
    ----------
    records
        What the samples are made of.
    load
        Makes a sample of a record; may draw from torch's and numpy's global generators.
    seed
        The stage's seed.
    """

    def __init__(self, records: Sequence[RecordType], load: Callable[[RecordType], Sample], seed: int) -> None:
        self.records = records
        self.load = load
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        seed = stable_seed("sample", self.seed, epoch, position)
        numpy_state = np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]):  # the CPU's generator alone; torch.manual_seed would reset the GPUs' too
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed % 2**32)
                return self.load(self.records[position])
        finally:
            np.random.set_state(numpy_state)


class EpochSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, position) for a `SeededDataset`, in an order that depends on (seed, epoch) alone.

    Parameters
    ----------
    length
        Number of records.
    seed
        The stage's seed.
    shuffle
        False: in the order of the records.
    rank, world_size
        With several processes, each takes every `world_size`-th key. All get the same number of keys: if the records do
        not divide evenly, the first ones of the epoch are seen once more.
    """

    def __init__(self, length: int, seed: int, *, shuffle: bool = True, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        self.length, self.seed, self.shuffle, self.rank, self.world_size = length, seed, shuffle, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        if self.shuffle:
            generator = torch.Generator().manual_seed(stable_seed("order", self.seed, epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = list(range(self.length))
        for turn in range(len(self)):
            yield epoch, order[(turn * self.world_size + self.rank) % self.length]
