"""The replicas of one pool as Ray actors: started, replaced, recycled, killed. Knows nothing of queues and retries."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt
from actors.pool.replica import LabelerError, Replica, ReplicaFacts
from actors.pool.runner import EventKind, LabelerFactory, OnEvent, PoolEvent, ReplicaStartError
from pipelines.redaction import redacted


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """An attempt that a replica works on, since a time on the monotonic clock."""

    attempt: Attempt
    since: float


@dataclass(slots=True, eq=False)
class Member:
    """The driver's view of one replica.

    Attributes:
        number: running number, for messages.
        actor: its handle.
        ready_ref: resolves to ReplicaFacts once the model is loaded.
        end_ref: never resolves, and fails once its process has ended.
        since: when it was asked for, on the monotonic clock.
        facts: None until it is ready.
        flights: what it works on, by the reference that resolves to the outcome.
        attempts: attempts given to it so far.
        retired: True once it is dead or killed; it stays a member until its last flight is answered for.
        blameless: True if it was killed over something that none of its remaining flights did.
    """

    number: int
    actor: Any
    ready_ref: Any
    end_ref: Any
    since: float
    facts: ReplicaFacts | None = None
    flights: dict[Any, Flight] = field(default_factory=dict)
    attempts: int = 0
    retired: bool = False
    blameless: bool = False

    def __str__(self) -> str:
        where = f" (pid {self.facts.pid} on {self.facts.host})" if self.facts else ""
        return f"replica {self.number}{where}"

    @property
    def starting(self) -> bool:
        """Whether its model is still being loaded."""
        return self.facts is None and not self.retired

    @property
    def ready(self) -> bool:
        """Whether it can work."""
        return self.facts is not None and not self.retired


class ReplicaSet:
    """Keeps config.replicas actors alive, as far as they can be started.

    Attributes:
        members: replicas that are starting, ready, or dead with flights still to be answered for.
        on_event: told what happens to replicas; None for nobody.
        facts: what the first ready labeler says of itself; None until then.
    """

    def __init__(self, labeler_factory: LabelerFactory, config: PoolConfig) -> None:
        self.members: list[Member] = []
        self.on_event: OnEvent | None = None
        self.facts: Mapping[str, str] | None = None
        self._factory = labeler_factory
        self._config = config
        self._started = 0
        self._failures = 0
        self._last_failure = ""
        self._last_end = 0.0

    def emit(self, kind: EventKind, message: str) -> None:
        """Report an event to whoever listens."""
        if self.on_event is not None:
            self.on_event(PoolEvent(kind, message))

    def forgive(self) -> None:
        """Forget earlier failed starts: what was missing may be there by now."""
        self._failures = 0

    def start_missing(self) -> None:
        """Ask for as many replicas as are missing, unless starting them keeps failing.

        Raises:
            ReplicaStartError: it keeps failing and no replica is left.
        """
        self.members = [member for member in self.members if member.flights or not member.retired]
        alive = sum(not member.retired for member in self.members)
        if self._failures >= self._config.max_replica_start_failures:
            if alive == 0:
                raise ReplicaStartError(f"no replica could be started ({self._failures} tries): {self._last_failure}")
            return
        for _ in range(self._config.replicas - alive):
            self._start()

    def settle_start(self, member: Member) -> None:
        """Take in that a replica is ready, or that it failed to start."""
        try:
            answer = ray.get(member.ready_ref)
        except RayError as error:
            # One lost machine ends many at once: it counts once.
            counted, self._last_end = member.since > self._last_end, time.monotonic()
            self._start_failed(member, in_one_line(error), counted=counted)
            return
        if isinstance(answer, LabelerError):
            self._start_failed(member, answer.error)
            return
        member.facts = answer
        self._failures = 0
        self.facts = self.facts or answer.labeler
        self.emit("replica_started", f"{member} is ready after {time.monotonic() - member.since:.1f} s")

    def settle_end(self, member: Member) -> None:
        """Take in that a replica has ended, whether or not it had something to do."""
        try:
            ray.get(member.end_ref)
        except RayError as error:
            self.died(member, error)

    def died(self, member: Member, error: RayError) -> str:
        """Retire a replica that has ended, unless that is known; return how it ended."""
        death = f"{member} died: {in_one_line(error)}"
        if not member.retired:
            self.retire(member)
            self.emit("replica_died", death)
        return death

    def give_up_slow_starts(self) -> None:
        """Kill replicas that are not ready in the time they are given.

        While others work this is no failure: a lost node's replicas wait for room until a node comes back.
        """
        limit_s = self._config.replica_start_timeout_s
        others_work = any(member.ready for member in self.members)
        for member in self.members:
            if member.starting and time.monotonic() - member.since > limit_s:
                cause = f"not ready after {limit_s:g} s; free in the cluster: {_free_resources() or 'nothing'}"
                self._start_failed(member, cause, counted=not others_work)

    def recycle(self) -> None:
        """Retire idle replicas that have done their share of attempts."""
        share = self._config.recycle_after_shards
        for member in self.members:
            if share is not None and member.ready and member.attempts >= share and not member.flights:
                self.retire(member)
                self.emit("replica_recycled", f"{member} is replaced after {member.attempts} attempts")

    def takes_more(self, member: Member) -> bool:
        """Whether a replica may be given another shard."""
        share = self._config.recycle_after_shards
        return (
            member.ready
            and len(member.flights) < self._config.shards_in_flight_per_replica
            and (share is None or member.attempts < share)
            and not any(flight.attempt.alone for flight in member.flights.values())
        )

    def retire(self, member: Member) -> None:
        """Kill a replica, if it is not dead already."""
        if not member.retired:
            member.retired = True
            ray.kill(member.actor, no_restart=True)

    def close(self) -> None:
        """Kill all replicas."""
        for member in self.members:
            self.retire(member)
        self.members.clear()

    def _start(self) -> None:
        config = self._config
        actor_class = ray.remote(Replica).options(
            num_cpus=config.num_cpus_per_replica,
            num_gpus=config.num_gpus_per_replica,
            max_concurrency=config.shards_in_flight_per_replica + 1,  # and one in `stay`
            max_restarts=0,
            max_task_retries=0,
        )
        actor = actor_class.remote(self._factory)
        self._started += 1
        self.members.append(Member(self._started, actor, actor.ready.remote(), actor.stay.remote(), time.monotonic()))

    def _start_failed(self, member: Member, cause: str, *, counted: bool = True) -> None:
        self.retire(member)
        self._failures += counted
        self._last_failure = cause
        self.emit("replica_start_failed", f"{member}: {cause}")


def in_one_line(error: RayError) -> str:
    """Return Ray's explanation of a death, many coloured and indented lines, as one line of at most 1000 characters."""
    return " ".join(redacted(re.sub(r"\x1b\[\d+m", "", str(error))).split())[:1000]


def _free_resources() -> str:
    free = ray.available_resources()
    return ", ".join(f"{free[name]:g} {name}s" for name in ("CPU", "GPU") if name in free)
