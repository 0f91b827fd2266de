"""SampleSource, the interface of data sets, and the plan of batches: one source a batch, small sources more often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.samples.samples import TrainingSample


class SampleSource(Protocol):
    """A data set of one task. Must be picklable, because worker processes read it.

    Attributes:
        name: name of the data set.
        categories: every category name that its samples may contain; empty if it has no closed list.
    """

    name: str
    categories: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of samples in one epoch."""
        ...

    def draw(self, index: int, random: np.random.Generator) -> TrainingSample:
        """Return a sample.

        Args:
            index: 0 to `len(self) - 1`.
            random: source of all random choices, or of a whole synthetic sample; in the same state for the same seed,
                step and place in the batch.
        """
        ...


def balanced_sizes(sizes: Sequence[int], threshold: float = 0.1) -> list[int]:
    """Return the number of samples of each source in one epoch, with small sources repeated (X-SAM, sec. 3.4).

    A source that has a share f of all samples is repeated max(1, sqrt(threshold / f)) times.
    """
    total = sum(sizes)
    return [int(size * max(1.0, math.sqrt(threshold * total / size))) for size in sizes]


class BatchPlan:
    """Determines the samples of each batch from its number alone, so that resuming needs no saved state.

    In every epoch each source yields `balanced_sizes` samples in a random order, cut into batches, and the batches of
    all sources are shuffled. A remainder that does not fill a batch is left out, except for a source smaller than one.

    Args:
        sizes: number of samples of each source.
        batch_size: samples in a batch, over all processes.
        threshold: threshold of `balanced_sizes`; 0 to repeat nothing.
        seed: seed of every order.

    Raises:
        ValueError: if there is no source, or one is empty.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, threshold: float = 0.1, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1 or batch_size < 1:
            raise ValueError(f"need sources that are not empty and a batch size of 1 or more: {sizes}, {batch_size}")
        self._sizes, self._batch_size, self._seed = tuple(sizes), batch_size, seed
        self._counts = [max(1, size // batch_size) for size in balanced_sizes(sizes, threshold)]
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __getstate__(self) -> dict[str, object]:
        """Leave out the cache, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Start with an empty cache."""
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of all sources in one epoch."""
        return sum(self._counts)

    def at(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Return the source of a batch and the indices of its samples: (batch_size,) int64."""
        epoch, place = divmod(step, self.batches_per_epoch)
        sources, firsts, orders = self._epoch(epoch)
        source = int(sources[place])
        first = int(firsts[place]) * self._batch_size
        order = orders[source]
        # A source that is smaller than a batch starts again.
        return source, order[np.arange(first, first + self._batch_size) % len(order)]

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
        random = np.random.default_rng([self._seed, epoch])
        orders = []
        for size, count in zip(self._sizes, self._counts, strict=True):
            rounds = -(-count * self._batch_size // size)
            orders.append(np.concatenate([random.permutation(size) for _ in range(rounds)]))
        sources = np.repeat(np.arange(len(self._counts)), self._counts)
        firsts = np.concatenate([np.arange(count) for count in self._counts])
        shuffled = random.permutation(len(sources))
        return sources[shuffled], firsts[shuffled], orders
