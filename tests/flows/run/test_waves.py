"""What waves see of the stream of shards, and what they may ask of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.pool.config import PoolConfig
from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ShardFailure
from flows.config import LimitsConfig
from flows.process.signals import Termination
from flows.run import waves as waves_module
from flows.run.breaker import CircuitBreaker
from flows.run.engine import label_shards
from flows.run.observer import Silent
from flows.run.waves import ShardStream, Wave
from pipelines.layout import shard_name
from pipelines.planning.draft import PlanConfig
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef, Shard, ShardReceipt
from tests.support.labeled import RUN, plan_run

WAVES = [[shard_name(0), shard_name(1)], [shard_name(2), shard_name(3)]]
Outcome = tuple[list[ShardFailure], int]


class Labeler:
    """Labels what it is told to, and counts."""

    def __init__(self, behave: Callable[[str, int], object]) -> None:
        self.calls: Counter[str] = Counter()
        self._behave = behave

    def label(self, shard: Shard, attempt: str, _crashes: object = None) -> ShardReceipt:
        self.calls[shard.shard_id] += 1
        self._behave(shard.shard_id, self.calls[shard.shard_id])
        return ShardReceipt(shard_id=shard.shard_id, attempt=attempt, status_counts={"ok": 1})


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Store, Plan]:
    store = open_store(str(tmp_path))
    refs = [ImageRef(image_id=f"{n}", uri=f"/p/{n}.jpg") for n in range(4)]
    return store, plan_run(store, RUN, refs, PlanConfig(images_per_shard=1))[0]


def label(
    planned: tuple[Store, Plan],
    behave: Callable[[str, int], object],
    watch: Callable[[Wave], object] | None = None,
    sigterm: Termination | None = None,
    **pool: float,
) -> tuple[list[str], Counter[str]]:
    """Label four shards in two waves; return those that failed, and how often each was tried."""
    store, plan = planned
    labeler = Labeler(behave)
    config = PoolConfig(runner="in_process", shards_in_flight_per_replica=1, max_attempts_per_shard=1, **pool)
    stream = ShardStream(store, plan, dict.fromkeys(plan.shard_ids(), 0), WAVES, watch)
    with InProcessRunner(lambda: labeler, config) as runner:
        breaker = CircuitBreaker(LimitsConfig())
        failures = label_shards(runner, stream, Silent(), breaker, sigterm or Termination())
    return [failure.shard_id for failure in failures], labeler.calls


def fail_once(shard_id: str) -> Callable[[str, int], None]:
    def behave(labeled: str, tries: int) -> None:
        if labeled == shard_id and tries == 1:
            raise OSError("no luck")

    return behave


@pytest.mark.parametrize("number", [0, 3])
def test_a_wave_that_asks_again_has_its_failed_shards_alone_tried_again(
    planned: tuple[Store, Plan], number: int
) -> None:
    seen: dict[str, list[Outcome]] = {"1/2": [], "2/2": []}

    def watch(wave: Wave) -> None:
        seen[wave.label].append(wave.outcome())
        if seen[wave.label][0][0]:
            seen[wave.label].append(wave.outcome())

    failed, calls = label(planned, fail_once(shard_name(number)), watch)
    assert failed == []
    assert calls == {shard_name(n): 1 + (n == number) for n in range(4)}
    (first, _), again = seen["1/2" if number < 2 else "2/2"]
    assert [failure.shard_id for failure in first] == [shard_name(number)]
    assert again == ([], 0)


def test_shards_of_the_next_wave_are_labeled_while_a_wave_waits_for_its_last(planned: tuple[Store, Plan]) -> None:
    """The first wave asks again only once the second has ended."""
    second_ended = threading.Event()

    def watch(wave: Wave) -> None:
        failures, _ = wave.outcome()
        if wave.label == "2/2":
            second_ended.set()
        elif failures:
            assert second_ended.wait(30)
            wave.outcome()

    failed, calls = label(planned, fail_once(shard_name(0)), watch)
    assert failed == []
    assert calls[shard_name(0)] == 2


def test_a_failure_that_nobody_asks_about_again_is_the_runs(planned: tuple[Store, Plan]) -> None:
    failed, _ = label(planned, fail_once(shard_name(1)), watch=None)
    assert failed == [shard_name(1)]


def test_what_another_driver_has_committed_meanwhile_is_not_labeled(
    planned: tuple[Store, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, int]] = [{}, {shard_name(2): 0}]
    monkeypatch.setattr(waves_module, "held_commits", lambda _store, _run_id: held.pop(0))
    ends: list[Outcome] = []
    failed, calls = label(planned, lambda _shard_id, _tries: None, lambda wave: ends.append(wave.outcome()))
    assert (failed, sorted(calls)) == ([], [shard_name(n) for n in (0, 1, 3)])
    assert ends == [([], 0), ([], 0)]


def test_a_run_that_stops_tries_nothing_again_and_says_what_is_left(planned: tuple[Store, Plan]) -> None:
    sigterm, ends = Termination(), list[Outcome]()

    def behave(shard_id: str, _tries: int) -> None:
        if shard_id == shard_name(3):
            sigterm.reason = "stopped"
            raise OSError("no luck")

    def watch(wave: Wave) -> None:
        ends.append(wave.outcome())
        if ends[-1][0]:
            threading.Event().wait(0.5)  # as Prefect does before it tries again
            ends.append(wave.outcome())

    failed, calls = label(planned, behave, watch, sigterm)
    assert (failed, calls[shard_name(3)]) == ([shard_name(3)], 1)
    assert [num_left for _, num_left in ends] == [0, 0, 0]


def test_a_spent_budget_leaves_the_rest_and_wakes_the_waves(planned: tuple[Store, Plan]) -> None:
    ends = list[Outcome]()
    failed, calls = label(planned, lambda *_: None, lambda wave: ends.append(wave.outcome()), budget_s=1e-9)
    assert (failed, calls.total(), ends) == ([], 0, [])


def test_an_error_of_the_runner_wakes_the_waves(planned: tuple[Store, Plan]) -> None:
    ends, ended = list[Outcome](), threading.Event()

    def watch(wave: Wave) -> None:
        ends.append(wave.outcome())
        ended.set()

    def behave(_shard_id: str, _tries: int) -> None:
        raise KeyboardInterrupt

    store, plan = planned
    stream = ShardStream(store, plan, dict.fromkeys(plan.shard_ids(), 0), WAVES, watch)

    class Broken(InProcessRunner):
        def map(self, shards, on_event=None):
            next(iter(shards))
            raise RuntimeError("the cluster is gone")
            yield

    with Broken(lambda: Labeler(behave), PoolConfig(runner="in_process")) as runner, pytest.raises(RuntimeError):
        label_shards(runner, stream, Silent(), CircuitBreaker(LimitsConfig()), Termination())
    assert ended.wait(30)
    assert ends == [([], 2)]
