"""Which failed starts of replicas count, and when another is tried."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from actors.pool import replicas
from actors.pool.config import PoolConfig
from actors.pool.replicas import ReplicaSet
from actors.pool.runner import ReplicaStartError
from actors.pool.workers import WorkerEndedError

CONFIG = PoolConfig(runner="processes", replicas=2, max_replica_start_failures=2)


class Started:
    """A worker that becomes ready, or ends, when the test says so."""

    def __init__(self) -> None:
        self.ready: Future[Any] = Future()
        self.ended: Future[Any] = Future()

    def kill(self) -> None:
        """Do nothing."""


class Starts:
    """Starts workers, and keeps them."""

    lost = ""

    def __init__(self) -> None:
        self.started: list[Started] = []

    def start(self) -> Started:
        self.started.append(Started())
        return self.started[-1]


@pytest.fixture
def starts() -> Starts:
    return Starts()


@pytest.fixture
def crew(starts: Starts) -> ReplicaSet:
    crew = ReplicaSet(starts, CONFIG)  # type: ignore[arg-type]
    crew.start_missing()
    return crew


def end_last(crew: ReplicaSet, starts: Starts, *, blameless: bool) -> None:
    starts.started[-1].ready.set_exception(WorkerEndedError("it was killed", blameless=blameless))
    member, _ = crew.news.get(timeout=5)
    crew.settle_start(member)


def test_starts_that_end_for_want_of_memory_do_not_count_while_others_are_there(
    crew: ReplicaSet, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        monkeypatch.setattr(replicas, "_LOOK_FOR_ROOM_S", 0.0 if number < 4 else 60.0)
        end_last(crew, starts, blameless=True)
        crew.start_missing()
    assert len(starts.started) == 6  # the last of them is waited for until there may be room
    crew._not_before = 0.0
    crew.start_missing()
    assert len(starts.started) == 7


def test_starts_that_end_for_want_of_memory_count_when_nobody_else_is_there(starts: Starts) -> None:
    alone = ReplicaSet(starts, CONFIG.replace(replicas=1))  # type: ignore[arg-type]
    for _ in range(2):
        alone.start_missing()
        end_last(alone, starts, blameless=True)
    with pytest.raises(ReplicaStartError, match=r"\(2 tries\): it was killed"):
        alone.start_missing()


def test_other_ends_of_starts_count(crew: ReplicaSet, starts: Starts) -> None:
    for _ in range(2):
        end_last(crew, starts, blameless=False)
        crew.start_missing()
    assert len(starts.started) == 3  # one is alive, and no further one is tried
