"""A driver process of the chaos test: labels a source on a Ray cluster, with a model that is a slow fake.

python -m tests.reliability.chaos_driver SOURCE OUTPUT ADDRESS REPLICAS; prints the pool's events as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from actors.pool.runner import PoolEvent, ShardFailure, ShardRunner
from actors.predictor.labeler import RunLabeler
from flows.config import RunConfig
from flows.run import engine
from flows.run.observer import Silent
from pipelines.labeling.shard import LabelJob
from pipelines.types import Answer, Image, Prompt
from tests.reliability.small_run import SmallRun, as_driver_of
from tests.support.fakes import BrightPredictor

_CALL_S = 0.2


class SlowPredictor(BrightPredictor):
    """Takes its time over each call, so that replicas end in the middle of one."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        time.sleep(_CALL_S)
        return super().predict(images, prompts)


@dataclass(frozen=True)
class SlowLabelers:
    """Builds a replica's labeler."""

    job: LabelJob
    output: str

    def __call__(self) -> RunLabeler:
        return RunLabeler(SlowPredictor(), self.job, self.output)


class Printing(Silent):
    """Prints what happens to replicas and shards, each as a line of its own, at once."""

    def __init__(self) -> None:
        self._out = sys.stdout

    def on_event(self, event: PoolEvent) -> None:
        self.tell(event.kind, event.message)

    def on_failure(self, failure: ShardFailure) -> None:
        self.tell("shard_failed", f"{failure.shard_id} ({failure.kind}): {failure.error}")

    def tell(self, kind: str, message: str) -> None:
        print(json.dumps({"kind": kind, "message": message}), file=self._out, flush=True)


def _open_runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> ShardRunner:
    job = LabelJob(run_id=run_id, prompts=prompts, config=config.label)
    return open_runner(SlowLabelers(job, config.output.uri), config.pool)


def main() -> int:
    """Run, or go on with a run that stopped; return the exit code that the command line would."""
    source, output, address, replicas = sys.argv[1:]
    pool = PoolConfig(replicas=int(replicas), num_cpus_per_replica=1, ray_address=address, wait_for_nodes=True)
    config = SmallRun(source, output).config().replace(pool=pool)
    printing = Printing()
    # Ray prints what its nodes log, too.
    with contextlib.redirect_stdout(sys.stderr), as_driver_of(_open_runner):
        summary = engine.run_directly(config, printing)
    for problem in summary.problems:
        printing.tell("problem", problem)
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
