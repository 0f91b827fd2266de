"""What the driver costs: many replicas with a model of a known service time, and how much of their time they work."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from actors.pool.runner import PoolEvent, ShardFailure
from actors.predictor.labeler import RunLabeler
from benchmarks.photos import synthetic_photo
from benchmarks.report import Figure, Report
from benchmarks.threshold_predictor import ThresholdPredictor
from flows.prompts import named_prompts
from pipelines.labeling.shard import LabelConfig, LabelJob
from pipelines.planning.draft import PlanConfig, plan_shards
from pipelines.types import Answer, Image, ImageRef, Prompt, Shard

NAME = "orchestration"
REPLICAS = (1, 4, 16, 64)
SERVICE_S = 5.0
"""Seconds that the model takes for a shard: 500 images at 100 images a second."""
SHARDS_PER_REPLICA = 8


class FixedTime(ThresholdPredictor):
    """Takes so long for a call, one after the other as a GPU does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Lock()

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        with self._turn:
            time.sleep(self._seconds)
        return super().predict(images, prompts)


@dataclass(frozen=True)
class Labelers:
    """Builds a replica's labeler."""

    output: str
    seconds: float
    batch_size: int

    def __call__(self) -> RunLabeler:
        job = LabelJob(
            run_id="bench",
            prompts=tuple(named_prompts("ovseg", ["thing"])),
            config=LabelConfig(batch_size=self.batch_size),
        )
        return RunLabeler(FixedTime(self.seconds), job, self.output)


def efficiency(replicas: int, *, seconds: float, shards_per_replica: int, images_per_shard: int) -> float:
    """Label with so many replicas; return the share of the time that their models were at work, once all are ready."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photo.png").write_bytes(_png())
        total = replicas * shards_per_replica
        warm_up, shards = _shards(folder, replicas, 2, "warm"), _shards(folder, total, images_per_shard, "timed")
        labelers = Labelers(f"{folder}/out", seconds, images_per_shard)
        # Two cores are plenty for replicas that sleep.
        pool = PoolConfig(replicas=replicas, num_cpus_per_replica=0.01, replica_start_timeout_s=600)
        started: list[str] = []
        with open_runner(labelers, pool) as runner:

            def until_all_are_ready() -> Iterator[Shard]:
                yield from warm_up
                while len(started) < replicas - 1:  # the first one is seen by describe
                    yield from _shards(folder, 1, 2, f"more-{len(started)}-{time.monotonic_ns()}")

            runner.describe()
            list(runner.map(until_all_are_ready(), lambda event: started.extend([event.kind] * _starts(event))))
            begun = time.perf_counter()
            outcomes = list(runner.map(shards))
            elapsed = time.perf_counter() - begun
    assert not any(isinstance(outcome, ShardFailure) for outcome in outcomes)
    return shards_per_replica * seconds / elapsed


def _starts(event: PoolEvent) -> bool:
    return event.kind == "replica_started"


def _shards(folder: str, count: int, size: int, name: str) -> list[Shard]:
    refs = [ImageRef(image_id=f"{name}-{number:07}", uri=f"{folder}/photo.png") for number in range(count * size)]
    return [
        Shard(shard_id=f"{name}-{shard.shard_id}", images=shard.images)
        for shard in plan_shards(refs, PlanConfig(images_per_shard=size))
    ]


def _png() -> bytes:
    buffer = io.BytesIO()
    synthetic_photo(np.random.default_rng(0), 32, 24).save(buffer, "PNG")
    return buffer.getvalue()


def run(*, tiny: bool = False) -> Report:
    """Measure with 1, 4, 16 and 64 replicas."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    replicas, seconds, share = ((2,), 0.1, 2) if tiny else (REPLICAS, SERVICE_S, SHARDS_PER_REPLICA)
    figures = [
        Figure(
            what=f"{count} replica{'s' * (count > 1)}",
            value=efficiency(count, seconds=seconds, shards_per_replica=share, images_per_shard=4),
            unit="of the time at work",
        )
        for count in replicas
    ]
    return Report(
        name=NAME,
        question="how much of their time do replicas work?",
        method=(
            "Ray actors on this one machine, with all that a replica does but a model: in its place something that "
            "sleeps for a fixed time a shard, one shard after the other. Counted from when all replicas are ready "
            "until the last shard is committed; the ideal is the sleep alone. Two shards are in flight on each "
            "replica, so that reading, encoding and committing of one are hidden behind the other's sleep; the first "
            "and the last shard of a replica have nothing to hide behind."
        ),
        setup={
            "shards": f"{share} for each replica, of 4 images of 32 x 24, {seconds:g} s each",
            "output": "local disk",
        },
        figures=tuple(figures),
    )
