"""Loads the batches of a stage in worker processes; each depends only on seed, stage and step."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from xsam_model.training.samples.batches import BatchBuilder, TrainingBatch
from xsam_model.training.samples.sources import BatchPlan, SampleSource

# A worker forked from a process with threads, such as those of Ray or gRPC, may die at once; a fork server has none.
_CONTEXT = multiprocessing.get_context("forkserver")
_WORKERS: dict[str, Any] = {"prefetch_factor": 4, "multiprocessing_context": _CONTEXT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The part of every batch that one forward pass of one process takes.

    Attributes:
        batch_size: samples in one update.
        accumulation: forward passes in one update.
        num_processes, process: number of processes, and the number of this one.
    """

    batch_size: int
    accumulation: int = 1
    num_processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        """Refuse parts of different sizes.

        Raises:
            ValueError: if the batch cannot be divided evenly.
        """
        if self.batch_size % (self.accumulation * self.num_processes):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided by {self.num_processes} processes x "
                f"{self.accumulation} accumulated passes"
            )

    def places(self, part: int) -> range:
        """Return the places in the batch that this process takes in the given forward pass of an update."""
        size = self.batch_size // (self.accumulation * self.num_processes)
        first = (part * self.num_processes + self.process) * size
        return range(first, first + size)


class StageBatches(Dataset[TrainingBatch]):
    """A data set of batches by number; `accumulation` of them make one update.

    Args:
        sources: sources of the stage.
        builder: builder of the stage.
        plan: which samples make each update.
        share: the part that this process takes.
        seed: seed of everything drawn, a sequence of integers.
    """

    def __init__(
        self, sources: Sequence[SampleSource], builder: BatchBuilder, plan: BatchPlan, share: Share, seed: Sequence[int]
    ) -> None:
        self._sources, self._builder, self._plan = sources, builder, plan
        self._share, self._seed = share, list(seed)

    def __getitem__(self, number: int) -> TrainingBatch:
        """Build the batch with this number."""
        step, part = divmod(number, self._share.accumulation)
        source, indices = self._plan.at(step)
        places = self._share.places(part)
        # Places count over the whole batch, so that the number of processes changes no sample.
        randoms = [np.random.default_rng([*self._seed, step, place]) for place in places]
        samples = [
            self._sources[source].draw(int(indices[place]), random)
            for place, random in zip(places, randoms, strict=True)
        ]
        return self._builder.build(samples, randoms)

    def iterate(self, first_step: int, steps: int, workers: int = 0) -> Iterator[TrainingBatch]:
        """Yield the batches of updates `first_step` to `steps - 1`; the same for any number of workers."""
        numbers = range(first_step * self._share.accumulation, steps * self._share.accumulation)
        options: dict[str, Any] = {}
        if workers:
            options = {**_WORKERS, "worker_init_fn": _one_thread}
            # The fork server imports torch and transformers once, instead of every worker of every stage.
            _CONTEXT.set_forkserver_preload([__name__])
        yield from DataLoader(
            self,
            batch_size=None,  # items are batches already
            sampler=numbers,
            num_workers=workers,
            collate_fn=_as_it_is,
            **options,
        )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _as_it_is(batch: Any) -> Any:
    return batch
