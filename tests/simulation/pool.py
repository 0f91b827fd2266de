"""A pool of simulated replicas: processes on machines of their own, which may outlive their driver.

Handing out, trying again and draining are the product's own (actors.pool.dispatch); so is all that a replica does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty
from typing import Any, Self

from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt, Drain, ShardQueue, attempt_ids
from actors.pool.runner import OnEvent, ShardFailure, summarize_error
from pipelines.types import Shard, ShardReceipt
from tests.simulation.seams import SEAMS, SimulatedQueue, SimulatedTime
from tests.simulation.world import Death, Process

_TICK_S, _LONGEST_TICK_S = 0.25, 600.0


@dataclass(eq=False)
class Replica:
    """One replica, as its driver sees it."""

    process: Process
    tasks: SimulatedQueue = field(default_factory=SimulatedQueue)
    flights: dict[str, Attempt] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    is_gone: bool = False


class SimulatedPool:
    """A ShardRunner.

    Attributes:
        is_calm: whether nothing befalls replicas.

    Args:
        labeler_factory: builds the labeler in the replica.
        config: how many replicas, tries, and the budget.
    """

    is_calm = False

    def __init__(self, labeler_factory: Any, config: PoolConfig) -> None:
        self._factory, self._config = labeler_factory, config
        self._world = SEAMS.world
        self._driver = self._world.current.process  # type: ignore[union-attr]
        self._replicas: list[Replica] = []
        self._news = SimulatedQueue()
        self._tick_s = _TICK_S
        self._ids = attempt_ids()
        self._stopping = False
        self._budget_since: float | None = None

    def __enter__(self) -> Self:
        self._driver.at_end.append(self._orphan)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, shards: Iterable[Shard], on_event: OnEvent | None = None) -> Iterator[ShardReceipt | ShardFailure]:
        config = self._config
        room = config.replicas * config.shards_in_flight_per_replica
        last = config.replicas if config.replicas > 1 else 0
        queue = ShardQueue(shards, self._ids, room, config.max_attempts_per_shard, hold_back=last)
        self._budget_since = self._budget_since or SimulatedTime.monotonic()
        drain = Drain(config, self._budget_since)
        try:
            while True:
                drain.update(stopped=self._stopping)
                in_flight = sum(len(replica.flights) for replica in self._replicas)
                if (not in_flight or drain.over) if drain.reason else not (in_flight or queue.has_more()):
                    break
                if not drain.reason:
                    self._submit(queue)
                yield from self._poll(queue)
            if drain.reason:
                for replica in self._replicas:
                    yield from (
                        queue.give_up(flight, "unfinished", drain.reason) for flight in replica.flights.values()
                    )
                yield from queue.give_up_waiting(drain.reason)
        finally:
            for replica in self._replicas:
                if replica.flights:
                    replica.flights.clear()
                    self._kill(replica)

    def describe(self) -> Mapping[str, str]:
        return {"device": "simulated"}

    @property
    def is_stopped(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        self._stopping = True
        self._news.put(None)

    def close(self) -> None:
        for replica in self._replicas:
            self._kill(replica)

    def _submit(self, queue: ShardQueue) -> None:
        self._replicas = [replica for replica in self._replicas if not replica.is_gone]
        while len(self._replicas) < self._config.replicas:
            self._replicas.append(self._start())
        for _ in range(self._config.shards_in_flight_per_replica):
            for replica in self._replicas:
                busy = len(replica.flights)
                is_alone = any(attempt.alone for attempt in replica.flights.values())
                if is_alone or busy >= self._config.shards_in_flight_per_replica:
                    continue
                if (attempt := queue.take(idle=not busy)) is not None:
                    replica.flights[attempt.attempt_id] = attempt
                    replica.since[attempt.attempt_id] = self._world.now
                    replica.tasks.put(attempt)

    def _start(self) -> Replica:
        process = self._world.process(f"{self._driver.name}/replica{len(self._world.processes)}")
        process.is_earlier = self._driver.is_earlier
        self._draw_fate(process)
        replica, labeler = Replica(process), self._factory
        news = self._news

        def work() -> None:
            loaded = labeler()
            while (attempt := replica.tasks.get()) is not None:
                try:
                    outcome: Any = loaded.label(attempt.shard, attempt.attempt_id)
                except Exception as error:
                    outcome = error
                news.put((replica, attempt, outcome))

        def told() -> None:
            replica.tasks.put(None)
            self._world.at(self._world.random.uniform(0.1, 5.0), lambda: news.put((replica, None, Death())))

        process.at_end.append(told)
        for _ in range(self._config.shards_in_flight_per_replica):
            process.spawn(work)
        return replica

    def _draw_fate(self, process: Process) -> None:
        """Draw what becomes of its machine: another time of day, a death, a while in which it does not go on."""
        draw = self._world.random
        process.clock_ahead_s = draw.choice((0.0, 0.0, 3600.0, -86400.0))
        if not self.is_calm and draw.random() < 0.15:
            self._world.at(0.02 * 3000 ** draw.random(), process.kill)
        if not self.is_calm and draw.random() < 0.15:
            seconds = 0.5 * 5e5 ** draw.random()
            self._world.at(0.02 * 3000 ** draw.random(), lambda: process.stop(seconds))

    def _poll(self, queue: ShardQueue) -> Iterator[ShardReceipt | ShardFailure]:
        try:
            news = self._news.get(timeout=self._tick_s)
        except Empty:
            self._tick_s = min(2 * self._tick_s, self._longest_tick_s())  # nothing but clocks can have changed
            yield from self._kill_hung(queue)
            return
        self._tick_s = _TICK_S
        if news is None:
            return
        replica, attempt, outcome = news
        if attempt is None:
            replica.is_gone = True
            failed = [(flight, "replica_died", "its replica died") for flight in replica.flights.values()]
            replica.flights.clear()
            replica.since.clear()
        elif replica.flights.pop(attempt.attempt_id, None) is None or replica.since.pop(attempt.attempt_id) < 0:
            return
        elif isinstance(outcome, ShardReceipt):
            queue.done()
            yield outcome
            return
        else:
            failed = [(attempt, "error", summarize_error(outcome))]
        for flight, kind, error in failed:
            yield from self._failed(queue, flight, kind, error)

    def _failed(self, queue: ShardQueue, flight: Attempt, kind: Any, error: str) -> Iterator[ShardFailure]:
        failure = queue.failed(flight, kind, error)
        if failure is not None:
            yield failure

    def _kill_hung(self, queue: ShardQueue) -> Iterator[ShardFailure]:
        """Kill replicas with a flight past its time."""
        limit_s, now = self._config.shard_timeout_s, self._world.now
        for replica in self._replicas:
            if limit_s is not None and any(now - since > limit_s for since in replica.since.values()):
                flights = list(replica.flights.values())
                replica.flights.clear()
                replica.since.clear()
                self._kill(replica)
                for flight in flights:
                    yield from self._failed(queue, flight, "timeout", "it was not finished in time")

    def _longest_tick_s(self) -> float:
        """Return how long nothing can happen that depends on a clock alone."""
        is_timed = self._stopping or self._config.budget_s is not None
        return 1.0 if is_timed else _LONGEST_TICK_S

    def _kill(self, replica: Replica) -> None:
        """Have a replica killed: soon, later, or never where its node is cut off; it ends then with its last shard."""
        replica.is_gone = True
        for _ in range(self._config.shards_in_flight_per_replica):
            replica.tasks.put(None)
        draw = self._world.random
        if draw.random() < 0.8:
            self._world.at(0.01 * 10 ** draw.uniform(0, 5), replica.process.end)

    def _orphan(self) -> None:
        for replica in self._replicas:
            self._kill(replica)
