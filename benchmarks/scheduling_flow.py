"""How busy are replicas in a whole run? Prefect's flow, Ray's actors, commits; the model sleeps for drawn times.

``python -m benchmarks.scheduling_flow --replicas 64 --cv 0.5`` runs the same work in waves, as it was before, and in
one stream, and prints both; each takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from actors.pool.open import open_runner
from actors.pool.runner import PoolEvent, ShardFailure, ShardRunner
from actors.predictor.labeler import RunLabeler
from benchmarks.orchestration import _png
from benchmarks.scheduling import SHARDS_PER_WAVE_AND_REPLICA
from benchmarks.threshold_predictor import ThresholdPredictor
from flows.config import RunConfig, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent, observed_by
from flows.run.waves import ShardStream, cut_waves
from pipelines.labeling.shard import LabelJob
from pipelines.planning import cut
from pipelines.types import Answer, Image, Prompt

IMAGES = 8
"""Images of a full shard: each stands for 62 of a real one's 500."""


class Sleeping(ThresholdPredictor):
    """Takes a drawn time for a shard, one after the other as a GPU does, and notes from when until when."""

    def __init__(self, folder: str, mean_s: float, cv: float) -> None:
        self._notes = Path(folder) / f"{os.uname().nodename}-{os.getpid()}"
        self._mean_s, self._sigma = mean_s, math.sqrt(math.log(1 + cv**2))
        self._turn = threading.Lock()

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """See pipelines.types.Predictor."""
        drawn = random.Random(images[0].ref.image_id).lognormvariate(-(self._sigma**2) / 2, self._sigma)
        with self._turn:
            begun = time.time()
            time.sleep(self._mean_s * drawn * len(images) / IMAGES)
            with self._notes.open("a") as notes:
                notes.write(f"{begun} {time.time()}\n")
        return super().predict(images, prompts)


@dataclass(frozen=True)
class Labelers:
    """Builds a replica's labeler."""

    job: LabelJob
    output: str
    notes: str
    mean_s: float
    cv: float

    def __call__(self) -> RunLabeler:
        """Build it."""
        return RunLabeler(Sleeping(self.notes, self.mean_s, self.cv), self.job, self.output)


class Ready(Silent):
    """Notes when replicas became ready."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_event(self, event: PoolEvent) -> None:
        """Note it."""
        if event.kind == "replica_started":
            self.times.append(time.time())


def in_waves(
    config: RunConfig, run: planning.PlannedRun, runner: ShardRunner, *others: object, **_: object
) -> list[ShardFailure]:
    """Label as before: a wave begins when the last shard of the one before is done."""
    due, failures = run.due.commits, list[ShardFailure]()
    for shard_ids in cut_waves(list(due), config):
        wave = {shard_id: due[shard_id] for shard_id in shard_ids}
        stream = ShardStream(planning.open_output(config), run.plan, wave, [shard_ids])
        failures += engine.label_shards(runner, stream, *others)  # type: ignore[arg-type]
    return failures


def busy_share(replicas: int, rounds: int, mean_s: float, cv: float, policy: str) -> float:
    """Run the flow; return the share of their time that replicas worked, from when all were ready to the last shard."""
    from flows import label_collection

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "photo.png").write_bytes(_png())
        lines = (f"{number:07},photo.png" for number in range(replicas * rounds * IMAGES))
        (Path(folder) / "photos.csv").write_text("\n".join(["image_id,uri", *lines]))
        (notes := Path(folder) / "notes").mkdir()
        sizes = {"plan": {"images_per_shard": IMAGES}} if policy == "waves" else {}
        pool = {"replicas": replicas, "num_cpus_per_replica": 0.01, "replica_start_timeout_s": 1800}
        places = {"source": f"{folder}/photos.csv", "output": f"{folder}/out"}
        config = parse_config(
            {**places, **sizes, "categories": ["thing"], "label": {"batch_size": IMAGES}, "pool": pool}
        )

        def runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> ShardRunner:
            job = LabelJob(run_id=run_id, prompts=prompts, config=config.label)
            return open_runner(Labelers(job, f"{folder}/out", str(notes), mean_s, cv), config.pool)

        label = in_waves if policy == "waves" else engine.label_in_waves
        with (
            patch.object(cut, "MOST", IMAGES),
            patch.object(cut, "LEAST", 1),
            patch.object(planning, "open_run_runner", runner),
            patch.object(engine, "label_in_waves", label),
            observed_by(ready := Ready()),
        ):
            label_collection.label_collection(config)
        spans = [tuple(map(float, line.split())) for file in notes.iterdir() for line in file.read_text().splitlines()]
        begun, ended = max(ready.times[:replicas]), max(until for _, until in spans)
        worked = sum(max(0.0, until - max(since, begun)) for since, until in spans)
        return worked / (replicas * (ended - begun))


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling_flow", description=__doc__)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--cv", type=float, default=0.5)
    parser.add_argument("--mean-s", type=float, default=5.0, help="seconds of a full shard")
    parser.add_argument("--rounds", type=int, default=20 * SHARDS_PER_WAVE_AND_REPLICA, help="full shards of a replica")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for policy in ("waves", "stream"):
        share = busy_share(arguments.replicas, arguments.rounds, arguments.mean_s, arguments.cv, policy)
        print(f"{policy}: {share:.3f} of the time at work; load average {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
