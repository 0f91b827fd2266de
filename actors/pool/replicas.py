"""Starts, replaces, recycles and kills the replicas of one pool. Knows nothing about queues and retries."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt
from actors.pool.replica import LabelerError, ReplicaFacts
from actors.pool.runner import EventKind, OnEvent, PoolEvent, ReplicaStartError
from actors.pool.workers import Answer, Worker, WorkerEndedError, Workers

# After a start for which there was no memory: how soon another is tried while replicas work.
_LOOK_FOR_ROOM_S = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """An attempt in progress on a replica, and its start on the monotonic clock."""

    attempt: Attempt
    since: float


@dataclass(slots=True, eq=False)
class Member:
    """The driver's view of one replica.

    Attributes:
        number: serial number, for messages.
        worker: its process.
        since: when it was requested, on the monotonic clock.
        facts: None until it is ready.
        flights: attempts in progress, by what will have the outcome.
        attempts: attempts given to it so far.
        retired: True once it is dead or killed; it stays a member until its last flight is settled.
        blameless: True if it was killed for a reason that none of its remaining flights caused.
        has_room_at: the number of its flights while it may be given another shard; None while it may not.
    """

    number: int
    worker: Worker
    since: float
    facts: ReplicaFacts | None = None
    flights: dict[Future[Answer], Flight] = field(default_factory=dict)
    attempts: int = 0
    retired: bool = False
    blameless: bool = False
    has_room_at: int | None = None

    def __str__(self) -> str:
        where = f" (pid {self.facts.pid} on {self.facts.host})" if self.facts else ""
        return f"replica {self.number}{where}"

    @property
    def starting(self) -> bool:
        """Whether it is still waiting for room or loading its model."""
        return self.facts is None and not self.retired

    @property
    def ready(self) -> bool:
        """Whether its model is loaded and it is alive."""
        return self.facts is not None and not self.retired


News = tuple[Member, Future[Answer]]
"""A replica, and an answer of its that is there."""


class ReplicaSet:
    """Keeps config.replicas replicas alive, as far as they can be started.

    What is asked again and again (is one missing, slow, worn, free?) is kept up to date at each change, so that nothing
    here takes longer with more replicas.

    Attributes:
        members: replicas that are starting, ready, or dead with flights still to be settled, by number.
        news: receives answers that are watched once they are there, from other threads.
        on_event: receives the events of replicas; None to drop them.
        facts: the first ready labeler's facts for provenance; None until then.
    """

    def __init__(self, workers: Workers, config: PoolConfig) -> None:
        self.members: dict[int, Member] = {}
        self.news: SimpleQueue[News] = SimpleQueue()
        self.on_event: OnEvent | None = None
        self.facts: Mapping[str, str] | None = None
        self._workers = workers
        self._config = config
        self._started = 0
        self._failures = 0
        self._last_failure = ""
        self._last_end = self._not_before = 0.0
        self._alive = 0
        self._num_ready = 0
        self._starting: OrderedDict[int, Member] = OrderedDict()  # the one asked for first comes first
        self._worn: OrderedDict[int, Member] = OrderedDict()
        self._free: list[OrderedDict[int, Member]] = [OrderedDict() for _ in range(config.shards_in_flight_per_replica)]

    def emit(self, kind: EventKind, message: str) -> None:
        """Pass an event to on_event, if it is set."""
        if self.on_event is not None:
            self.on_event(PoolEvent(kind, message))

    def reset_failed_starts(self) -> None:
        """Reset the failed-start counter: the cause may be gone by now."""
        self._failures = 0

    def start_missing(self) -> None:
        """Request as many replicas as are missing, unless starts keep failing.

        Raises:
            ReplicaStartError: starts keep failing and no replica is left.
        """
        if self._failures >= self._config.max_replica_start_failures:
            if self._alive == 0:
                raise ReplicaStartError(f"no replica could be started ({self._failures} tries): {self._last_failure}")
            return
        if self._alive and time.monotonic() < self._not_before:
            return
        for _ in range(self._config.replicas - self._alive):
            self._start()

    def watch(self, member: Member, answer: Future[Answer]) -> None:
        """Have ``news`` told once an answer is there, whether it is a value or an error."""
        # A callback for each, because waiting for all of them takes longer with each replica.
        answer.add_done_callback(lambda done: self.news.put((member, done)))

    def settle_start(self, member: Member) -> None:
        """Handle a replica that has become ready or has failed to start."""
        try:
            answer = member.worker.ready.result()
        except WorkerEndedError as error:
            # A lost machine ends many starting replicas at once, which is one failed start: only a replica requested
            # after the last such end counts again.
            counted, self._last_end = member.since > self._last_end, time.monotonic()
            if error.blameless:
                self._not_before = time.monotonic() + _LOOK_FOR_ROOM_S
            # Nor is one to blame that was killed to spare memory, while there are others that it was killed for.
            counted &= not (error.blameless and self._alive > 1)
            self._start_failed(member, str(error), counted=counted)
            return
        if isinstance(answer, LabelerError):
            self._start_failed(member, answer.error)
            return
        assert isinstance(answer, ReplicaFacts)
        member.facts = answer
        self._num_ready += 1
        del self._starting[member.number]
        # Not before: while it starts, its death also fails `ready`, and counts as a failed start.
        self.watch(member, member.worker.ended)
        self.changed(member)
        self._failures = 0
        self.facts = self.facts or answer.labeler
        self.emit("replica_started", f"{member} is ready after {time.monotonic() - member.since:.1f} s")

    def settle_end(self, member: Member) -> None:
        """Handle the death of a replica, busy or idle."""
        error = member.worker.ended.exception()
        assert isinstance(error, WorkerEndedError)
        self.died(member, error)

    def died(self, member: Member, error: WorkerEndedError) -> str:
        """Retire a dead replica, unless it is retired already, and return how it died."""
        death = f"{member} died: {error}"
        if not member.retired:
            self.retire(member)
            self.emit("replica_died", death)
        return death

    def give_up_slow_starts(self) -> None:
        """Kill replicas that are not ready within config.replica_start_timeout_s.

        This counts as a failed start only if no other replica is ready: after a node is lost, its replicas wait for
        room until another node joins.
        """
        limit_s = self._config.replica_start_timeout_s
        while self._starting:
            member = next(iter(self._starting.values()))
            if time.monotonic() - member.since <= limit_s:
                break
            free = self._workers.free()
            cause = f"not ready after {limit_s:g} s" + (f"; free: {free}" if free else "")
            self._start_failed(member, cause, counted=not self._num_ready)

    def recycle(self) -> None:
        """Retire idle replicas that have made config.recycle_after_shards attempts."""
        while self._worn:
            member = next(iter(self._worn.values()))
            self.retire(member)
            self.emit("replica_recycled", f"{member} is replaced after {member.attempts} attempts")

    def with_room(self, flights: int) -> Member | None:
        """Return a replica with so many attempts in progress that may be given another shard, if there is one."""
        return next(iter(self._free[flights].values()), None)

    def changed(self, member: Member) -> None:
        """Note that a replica has become ready or was retired, or that its attempts in progress have changed."""
        if member.has_room_at is not None:
            del self._free[member.has_room_at][member.number]
            member.has_room_at = None
        share = self._config.recycle_after_shards
        is_worn = share is not None and member.attempts >= share
        if member.retired:
            self._worn.pop(member.number, None)
            if not member.flights:
                self.members.pop(member.number, None)
        elif is_worn and not member.flights:
            self._worn[member.number] = member
        elif self._takes_more(member) and not is_worn:
            member.has_room_at = len(member.flights)
            self._free[member.has_room_at][member.number] = member

    def _takes_more(self, member: Member) -> bool:
        return (
            member.ready
            and len(member.flights) < self._config.shards_in_flight_per_replica
            and not any(flight.attempt.alone for flight in member.flights.values())
        )

    def retire(self, member: Member) -> None:
        """Kill a replica, unless it is dead already."""
        if not member.retired:
            self._num_ready -= member.ready
            member.retired = True
            self._alive -= 1
            self._starting.pop(member.number, None)
            self.changed(member)
            member.worker.kill()

    def close(self) -> None:
        """Kill all replicas."""
        for member in list(self.members.values()):
            self.retire(member)
        self.members.clear()

    def _start(self) -> None:
        worker = self._workers.start()
        self._started += 1
        self._alive += 1
        member = Member(self._started, worker, time.monotonic())
        self.members[member.number] = self._starting[member.number] = member
        self.watch(member, worker.ready)

    def _start_failed(self, member: Member, cause: str, *, counted: bool = True) -> None:
        self.retire(member)
        self._failures += counted
        self._last_failure = cause
        self.emit("replica_start_failed", f"{member}: {cause}")
