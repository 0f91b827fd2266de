"""The pool's dispatcher on a clock that jumps: what a shard costs it, and how it ends a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from actors.pool.config import PoolConfig
from actors.pool.replica_pool import ReplicaPool
from benchmarks.virtual_workers import VirtualWorkers
from pipelines.types import Shard, ShardReceipt


def _shards(count: int) -> list[Shard]:
    return [Shard(shard_id=f"s{number}", images=()) for number in range(count)]


def _calls_of(replicas: int, shards: int) -> int:
    """Count the function calls of a whole run."""
    count = 0

    def look(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    # Short, so that few replicas do not make the driver look at its clocks more often.
    workers = VirtualWorkers(lambda shard: (1 + int(shard.shard_id[1:]) % 7) / 1000)
    with workers.in_place(), ReplicaPool(workers, PoolConfig(replicas=replicas)) as runner:
        sys.setprofile(look)
        try:
            outcomes = list(runner.map(_shards(shards)))
        finally:
            sys.setprofile(None)
    assert len(outcomes) == shards
    return count


def test_a_shard_costs_the_driver_the_same_whatever_the_number_of_replicas() -> None:
    few, many = (_calls_of(replicas, 600) - _calls_of(replicas, 300) for replicas in (4, 60))
    assert many <= 1.05 * few


@pytest.mark.parametrize("known", [True, False])
def test_the_last_shards_wait_for_idle_replicas_if_their_number_is_known(known: bool) -> None:
    """A shard of 10 s, and two of 1 s: the long one's replica is not given another that waits behind it."""
    started: dict[str, float] = {}

    def duration(shard: Shard) -> float:
        started[shard.shard_id] = workers.now
        return 10.0 if shard.shard_id == "s0" else 1.0

    def unknown() -> Iterator[Shard]:
        yield from _shards(3)

    workers = VirtualWorkers(duration)
    with workers.in_place(), ReplicaPool(workers, PoolConfig(replicas=2)) as runner:
        outcomes = list(runner.map(_shards(3) if known else unknown()))
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    assert workers.ended_s == (10.0 if known else 11.0)
    assert started["s2"] == (1.0 if known else 0.0)


def test_replicas_that_die_are_replaced_and_their_shards_are_labeled_elsewhere() -> None:
    workers = VirtualWorkers(lambda _shard: 3.0)
    with workers.in_place(), ReplicaPool(workers, PoolConfig(replicas=3)) as runner:
        outcomes = []
        for outcome in runner.map(_shards(30)):
            if len(outcomes) == 5:
                workers.started[0].kill()
            outcomes.append(outcome)
    assert sorted(outcome.shard_id for outcome in outcomes) == sorted(shard.shard_id for shard in _shards(30))
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    assert len(workers.started) == 4
