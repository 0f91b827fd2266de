"""How much of their time replicas work: the flow's own waves and the pool's own dispatcher, on a clock that jumps."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from actors.pool.config import PoolConfig
from actors.pool.replica_pool import ReplicaPool
from benchmarks.virtual_workers import VirtualWorkers
from flows.config import parse_config
from flows.process.signals import Termination
from flows.run import engine
from flows.run.breaker import CircuitBreaker
from flows.run.observer import Silent
from flows.run.planning import PlannedRun, draft_run
from flows.run.waves import Wave
from pipelines.planning.draft import PlanConfig
from pipelines.storage.store import open_store
from pipelines.table.repairs import Due
from pipelines.types import ImageRef
from tests.reliability.small_run import SmallRun, as_driver, write_source
from tests.support.fakes import BrightPredictor
from tests.support.labeled import RUN, plan_run

REPLICAS, SHARDS_PER_REPLICA = 2, 160  # twenty waves


def log_normal(cv: float) -> Any:
    """Seconds of a shard, drawn with a mean of 5 and this coefficient of variation."""
    sigma = math.sqrt(math.log(1 + cv**2))
    return lambda shard: random.Random(shard.shard_id).lognormvariate(math.log(5) - sigma**2 / 2, sigma)


@pytest.mark.parametrize("cv", [0.5, 1.0])
def test_no_replica_waits_for_the_last_shard_of_a_wave(tmp_path: Path, cv: float) -> None:
    store = open_store(str(tmp_path))
    refs = [ImageRef(image_id=f"{n:05}", uri=f"/p/{n}.jpg") for n in range(REPLICAS * SHARDS_PER_REPLICA)]
    plan, _ = plan_run(store, RUN, refs, PlanConfig(images_per_shard=1))
    pool = {"replicas": REPLICAS}
    config = parse_config({"source": "/p", "output": {"uri": str(tmp_path)}, "categories": ["a"], "pool": pool})
    workers = VirtualWorkers(log_normal(cv))
    with workers.in_place(), ReplicaPool(workers, config.pool) as runner:
        run = PlannedRun(plan, runner, None, Due(dict.fromkeys(plan.shard_ids(), 0)), started=0.0)
        failures = engine.label_in_waves(
            config, run, runner, Silent(), CircuitBreaker(config.limits), Termination(), watch=Wave.problem
        )
    assert failures == []
    assert workers.busy_share(REPLICAS) >= 0.97


@pytest.mark.parametrize(
    ("images_per_shard", "replicas", "told"),
    [
        pytest.param(500, 2, ["1 of 2 replicas have nothing to do; ask for fewer, or lower plan.images"], id="fixed"),
        pytest.param(None, 2, [], id="shards-for-two"),
        pytest.param(None, 8, ["3 of 8 replicas have nothing to do; ask for fewer"], id="fewer-images-than-replicas"),
    ],
)
def test_replicas_that_no_shard_is_left_for_are_told(
    tmp_path: Path, images_per_shard: int | None, replicas: int, told: list[str]
) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 5), output=str(tmp_path / "out"))
    config = small.config().replace(
        pool=PoolConfig(replicas=replicas), plan=PlanConfig(images_per_shard=images_per_shard)
    )
    with as_driver(BrightPredictor()), draft_run(config) as draft:
        notes = [note for note in draft.notes if "nothing to do" in note]
    assert len(notes) == len(told)
    assert all(part in note for part, note in zip(told, notes, strict=True))
