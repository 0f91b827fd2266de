"""Labels shards on Ray actors, with a bound on shards in flight, retries, a watchdog for hung replicas and a budget.

The driver owns every retry: Ray restarts no actor and repeats no task. Only shard references and receipts travel
between driver and replicas."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from actors.pool.cluster import connect
from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt, Drain, ShardQueue, attempt_ids
from actors.pool.head_watch import HeadWatch
from actors.pool.replica import LabelerError
from actors.pool.replicas import Flight, Member, ReplicaSet
from actors.pool.runner import (
    ClusterLostError,
    EventKind,
    FailureKind,
    LabelerFactory,
    OnEvent,
    ShardFailure,
    summarize_error,
)
from actors.pool.witness import Witness
from pipelines.types import CrashHistory, Shard, ShardReceipt

# How often the clocks and stop() are checked; results are handled as soon as they arrive.
_TICK_S = 0.25

_Outcome = ShardReceipt | ShardFailure


class ReplicaPool:
    """A ShardRunner on Ray actors.

    Args:
        labeler_factory: builds the labeler in the actor's process; must be picklable.
        config: number of replicas, resources of each, and limits.
    """

    def __init__(self, labeler_factory: LabelerFactory, config: PoolConfig) -> None:
        self._config = config
        self._replicas = ReplicaSet(labeler_factory, config)
        self._witness = Witness()
        self._ids = attempt_ids()
        self._owns_ray = False
        self._head: HeadWatch | None = None
        self._stopping = False
        self._budget_since: float | None = None

    def __enter__(self) -> Self:
        """Connect to Ray; see ShardRunner. Replicas begin to load their models, and nothing waits for them here."""
        self._owns_ray = connect(self._config)
        self._head = HeadWatch()
        self._replicas.start_missing()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def map(self, shards: Iterable[Shard], on_event: OnEvent | None = None) -> Iterator[ShardReceipt | ShardFailure]:
        """Label shards and yield the outcome of each; see ShardRunner.map."""
        config = self._config
        self._replicas.on_event = on_event
        self._replicas.reset_failed_starts()
        room = config.replicas * config.shards_in_flight_per_replica
        queue = ShardQueue(shards, self._ids, room, config.max_attempts_per_shard)
        # The budget covers the whole run, so it counts from the first map call.
        self._budget_since = self._budget_since or time.monotonic()
        drain = Drain(config, self._budget_since)
        try:
            while self._goes_on(queue, drain):
                if not drain.reason:
                    # At the end of the queue a fresh replica would load its model for nothing.
                    if queue.has_more():
                        self._replicas.recycle()
                        self._replicas.start_missing()
                    self._submit(queue)
                yield from self._poll(queue)
            if drain.reason:
                yield from self._give_up_the_rest(queue, drain.reason)
        finally:
            self._abandon_in_flight()

    def describe(self) -> Mapping[str, str]:
        """Return the labeler's facts from the first replica that is ready; see ShardRunner.describe."""
        while self._replicas.facts is None:
            self._check_head()
            self._replicas.start_missing()
            starting = {member.ready_ref: member for member in self._replicas.members if member.starting}
            news, _ = ray.wait(list(starting), timeout=_TICK_S)
            for ref in news:
                self._replicas.settle_start(starting[ref])
            self._replicas.give_up_slow_starts()
        return dict(self._replicas.facts)

    def stop(self) -> None:
        """Hand out no more shards; may be called from a signal handler."""
        self._stopping = True

    def close(self) -> None:
        """Kill the replicas, and shut Ray down if this pool started it."""
        lost = ""
        if self._head is not None:
            self._head.close()
            lost = self._head.lost
        if lost:
            # A head that is gone would never answer the request to kill replicas; they end by themselves.
            self._replicas.members.clear()
        elif ray.is_initialized():
            self._replicas.close()
            self._witness.close()
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    def _goes_on(self, queue: ShardQueue, drain: Drain) -> bool:
        """Return whether the map call still has shards to start or to wait for."""
        self._check_head()
        in_flight = self._num_in_flight()
        if drain.update(stopped=self._stopping):
            self._replicas.emit("draining", f"{drain.reason}; {in_flight} shards in flight may finish")
        if drain.reason:
            return in_flight > 0 and not drain.over
        return in_flight > 0 or queue.has_more()

    def _check_head(self) -> None:
        if self._head is not None and self._head.lost:
            # Nothing in flight can be waited for or killed any more, so the cleanup of map() must find nothing to do.
            for member in self._replicas.members:
                member.flights.clear()
            raise ClusterLostError(f"{self._head.lost}; the same command resumes the run, on a new one")

    def _num_in_flight(self) -> int:
        return sum(len(member.flights) for member in self._replicas.members)

    def _submit(self, queue: ShardQueue) -> None:
        """Hand shards to replicas that have room, idle ones first."""
        # One shard for each replica and round, or the first replica would take all that it can hold of a short queue.
        for _ in range(self._config.shards_in_flight_per_replica):
            for member in sorted(self._replicas.members, key=lambda member: len(member.flights)):
                if not self._replicas.takes_more(member):
                    continue
                attempt = queue.take(idle=not member.flights)
                if attempt is not None:
                    ref = member.actor.label.remote(attempt.shard, attempt.attempt_id, self._crash_history(attempt))
                    member.flights[ref] = Flight(attempt, time.monotonic())
                    member.attempts += 1

    def _crash_history(self, attempt: Attempt) -> CrashHistory | None:
        # Only attempts that follow a crash report to the witness, which is a round trip before every batch.
        if not attempt.alone:
            return None
        report = self._witness.report_of(attempt.attempt_id)
        return CrashHistory(report_in_progress=report, suspects=attempt.suspects, fatal=attempt.fatal)

    def _poll(self, queue: ShardQueue) -> list[_Outcome]:
        """Wait up to a tick for finished calls, and settle all of them before any outcome is yielded.

        Nothing is yielded between collecting results and checking the watchdog's clock. A caller that takes long over
        an outcome therefore does not make a replica look hung.
        """
        owners = {ref: member for member in self._replicas.members for ref in member.flights}
        owners |= {member.ready_ref: member for member in self._replicas.members if member.starting}
        # Only of ready replicas: while one starts, its death also fails ready_ref, and counts as a failed start.
        owners |= {member.end_ref: member for member in self._replicas.members if member.ready}
        refs = list(owners)
        if not refs:
            return []
        # The first call returns as soon as one reference is done, and reports only that; the second collects the rest.
        ray.wait(refs, timeout=_TICK_S)
        news, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        outcomes: list[_Outcome | None] = []
        for ref in news:
            member = owners[ref]
            if ref in member.flights:
                outcomes.append(self._settle(member, ref, queue))
            elif ref == member.ready_ref:
                self._replicas.settle_start(member)
            else:
                self._replicas.settle_end(member)
        outcomes += self._kill_hung(queue)
        self._replicas.give_up_slow_starts()
        return [outcome for outcome in outcomes if outcome is not None]

    def _settle(self, member: Member, ref: Any, queue: ShardQueue) -> _Outcome | None:
        """Return the outcome of a finished flight, or None if its shard will be tried again."""
        attempt = member.flights.pop(ref).attempt
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            # The labeler's own errors return as LabelerError, so this one arose in passing arguments or the result.
            return self._failed(queue, attempt, "error", summarize_error(error))
        except RayError as error:
            death = self._replicas.died(member, error)
            return self._failed(queue, attempt, "replica_died", death, charged=not member.blameless)
        if isinstance(result, LabelerError):
            if not result.replica_unusable:
                return self._failed(queue, attempt, "error", result.error)
            self._kill(member, "replica_died", f"its labeler calls it unusable: {result.error}")
            return self._failed(queue, attempt, "replica_died", result.error)
        queue.done()
        receipt: ShardReceipt = result
        return receipt

    def _kill_hung(self, queue: ShardQueue) -> list[_Outcome | None]:
        """Kill replicas with an overdue flight, and settle that flight without waiting for the replica's death."""
        limit_s = self._config.shard_timeout_s
        if limit_s is None:
            return []
        outcomes: list[_Outcome | None] = []
        for member in self._replicas.members:
            overdue = [ref for ref, flight in member.flights.items() if time.monotonic() - flight.since > limit_s]
            for ref in overdue:
                # Taken off first: the reference will fail too when the replica dies, and must not be settled twice.
                attempt = member.flights.pop(ref).attempt
                message = f"{attempt.shard.shard_id} was not finished after {limit_s:g} s"
                self._kill(member, "replica_hung", message)
                outcomes.append(self._failed(queue, attempt, "timeout", f"{message} on {member}"))
        return outcomes

    def _kill(self, member: Member, kind: EventKind, message: str) -> None:
        """Kill a replica because of one flight; its other flights are not to blame."""
        if not member.retired:
            member.blameless = True
            self._replicas.retire(member)
            self._replicas.emit(kind, f"{member}: {message}")

    def _failed(
        self, queue: ShardQueue, attempt: Attempt, kind: FailureKind, error: str, *, charged: bool = True
    ) -> ShardFailure | None:
        # The witness knows only attempts that ran alone; a replica that was killed for another's sake proves nothing.
        ended_here = charged and kind != "error" and attempt.alone
        under_way = self._witness.in_progress(attempt.attempt_id) if ended_here else ()
        failure = queue.failed(attempt, kind, error, charged=charged, under_way=under_way)
        if failure is None:
            summary = error.partition("\n")[0]
            message = f"{attempt.shard.shard_id} after attempt {attempt.number} ({kind}): {summary}"
            self._replicas.emit("shard_requeued", message)
        return failure

    def _give_up_the_rest(self, queue: ShardQueue, reason: str) -> Iterator[ShardFailure]:
        for member in self._replicas.members:
            for flight in member.flights.values():
                yield queue.give_up(flight.attempt, "unfinished", f"{reason}, and it did not finish in time")
        yield from queue.give_up_waiting(reason)

    def _abandon_in_flight(self) -> None:
        """Kill replicas that work on shards nobody waits for any more, so that the next map call finds free ones."""
        for member in self._replicas.members:
            if member.flights:
                self._replicas.retire(member)
                member.flights.clear()
