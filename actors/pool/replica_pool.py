"""Labels shards on replicas in processes: a bound on shards in flight, retries, a watchdog for hung ones, a budget.

The driver owns every retry, wherever the processes run. Only shard references and receipts travel between driver and
replicas."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from queue import Empty
from types import TracebackType
from typing import Self

from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt, Drain, ShardQueue, attempt_ids
from actors.pool.replica import LabelerError
from actors.pool.replicas import Flight, Member, News, ReplicaSet
from actors.pool.runner import (
    ClusterLostError,
    EventKind,
    FailureKind,
    OnEvent,
    ShardFailure,
    summarize_error,
)
from actors.pool.workers import Answer, WorkerEndedError, Workers
from pipelines.types import CrashHistory, Shard, ShardReceipt

# How often the clocks and stop() are checked; results are handled as soon as they arrive.
_TICK_S = 0.25

_Outcome = ShardReceipt | ShardFailure


class ReplicaPool:
    """A ShardRunner on replicas in processes of their own.

    Args:
        workers: where the replicas run.
        config: number of replicas, and limits.
    """

    def __init__(self, workers: Workers, config: PoolConfig) -> None:
        self._config = config
        self._workers = workers
        self._replicas = ReplicaSet(workers, config)
        self._in_flight: OrderedDict[Future[Answer], Member] = OrderedDict()  # the one begun first comes first
        self._ids = attempt_ids()
        self._stopping = False
        self._budget_since: float | None = None

    def __enter__(self) -> Self:
        """Connect to where replicas run; see ShardRunner. They begin to load their models, and nothing waits for it."""
        self._workers.open()
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
        last = config.replicas if config.replicas > 1 else 0
        queue = ShardQueue(shards, self._ids, room, config.max_attempts_per_shard, hold_back=last)
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
        put_back: list[News] = []
        while self._replicas.facts is None:
            self._check_lost()
            self._replicas.start_missing()
            for member, answer in self._news():
                if answer is member.worker.ready:
                    self._settle_start(member)
                else:
                    put_back.append((member, answer))
            self._replicas.give_up_slow_starts()
        for news in put_back:
            self._replicas.news.put(news)
        return dict(self._replicas.facts)

    def stop(self) -> None:
        """Hand out no more shards; may be called from a signal handler."""
        self._stopping = True

    @property
    def is_stopped(self) -> bool:
        """See ShardRunner."""
        return self._stopping

    def close(self) -> None:
        """Kill the replicas, and free what they ran on."""
        if self._workers.lost:
            # Nothing is left that would answer a request to kill replicas; they end by themselves.
            self._replicas.members.clear()
        else:
            self._replicas.close()
        self._workers.close()

    def _goes_on(self, queue: ShardQueue, drain: Drain) -> bool:
        """Return whether the map call still has shards to start or to wait for."""
        self._check_lost()
        in_flight = len(self._in_flight)
        if drain.update(stopped=self._stopping):
            self._replicas.emit("draining", f"{drain.reason}; {in_flight} shards in flight may finish")
        if drain.reason:
            return in_flight > 0 and not drain.over
        return in_flight > 0 or queue.has_more()

    def _check_lost(self) -> None:
        if lost := self._workers.lost:
            # Nothing in flight can be waited for or killed any more, so the cleanup of map() must find nothing to do.
            for member in self._in_flight.values():
                member.flights.clear()
            self._in_flight.clear()
            raise ClusterLostError(f"{lost}; the same command resumes the run, on a new one")

    def _submit(self, queue: ShardQueue) -> None:
        """Hand shards to replicas that have room, idle ones first."""
        for flights in range(self._config.shards_in_flight_per_replica):
            while (member := self._replicas.with_room(flights)) is not None:
                attempt = queue.take(idle=not flights)
                if attempt is None:
                    break
                answer = member.worker.label(attempt.shard, attempt.attempt_id, self._crash_history(attempt))
                member.flights[answer] = Flight(attempt, time.monotonic())
                member.attempts += 1
                self._in_flight[answer] = member
                self._replicas.watch(member, answer)
                self._replicas.changed(member)

    def _land(self, answer: Future[Answer]) -> Attempt:
        """Take an attempt off its replica, and return it."""
        member = self._in_flight.pop(answer)
        attempt = member.flights.pop(answer).attempt
        self._replicas.changed(member)
        return attempt

    def _news(self) -> list[News]:
        """Wait up to a tick for answers, and return all that are there."""
        news: list[News] = []
        try:
            news.append(self._replicas.news.get(timeout=_TICK_S))
            while True:
                news.append(self._replicas.news.get_nowait())
        except Empty:
            return news

    def _crash_history(self, attempt: Attempt) -> CrashHistory | None:
        # Only attempts that follow a crash report what they do, which may be a round trip before every batch.
        if not attempt.alone:
            return None
        report = self._workers.report_of(attempt.attempt_id)
        return CrashHistory(report_in_progress=report, suspects=attempt.suspects, fatal=attempt.fatal)

    def _poll(self, queue: ShardQueue) -> list[_Outcome]:
        """Wait up to a tick for finished calls, and settle all of them before any outcome is yielded.

        Nothing is yielded between collecting results and checking the watchdog's clock. A caller that takes long over
        an outcome therefore does not make a replica look hung.
        """
        outcomes: list[_Outcome | None] = []
        for member, answer in self._news():
            if answer in self._in_flight:
                outcomes.append(self._settle(member, answer, queue))
            elif answer is member.worker.ready:
                self._settle_start(member)
            elif answer is member.worker.ended and member.ready:
                self._replicas.settle_end(member)
        outcomes += self._kill_hung(queue)
        self._replicas.give_up_slow_starts()
        return [outcome for outcome in outcomes if outcome is not None]

    def _settle_start(self, member: Member) -> None:
        if member.starting:  # not one that was given up meanwhile
            self._replicas.settle_start(member)

    def _settle(self, member: Member, answer: Future[Answer], queue: ShardQueue) -> _Outcome | None:
        """Return the outcome of a finished flight, or None if its shard will be tried again."""
        attempt = self._land(answer)
        try:
            result = answer.result()
        except WorkerEndedError as error:
            death = self._replicas.died(member, error)
            return self._failed(queue, attempt, "replica_died", death, charged=not member.blameless)
        except Exception as error:  # noqa: BLE001 - of passing arguments or the result: the labeler's are returned
            return self._failed(queue, attempt, "error", summarize_error(error))
        if isinstance(result, LabelerError):
            if not result.replica_unusable:
                return self._failed(queue, attempt, "error", result.error)
            self._kill(member, "replica_died", f"its labeler calls it unusable: {result.error}")
            return self._failed(queue, attempt, "replica_died", result.error)
        assert isinstance(result, ShardReceipt)
        queue.done()
        return result

    def _kill_hung(self, queue: ShardQueue) -> list[_Outcome | None]:
        """Kill replicas with an overdue flight, and settle that flight without waiting for the replica's death."""
        limit_s = self._config.shard_timeout_s
        if limit_s is None:
            return []
        outcomes: list[_Outcome | None] = []
        while self._in_flight:
            answer, member = next(iter(self._in_flight.items()))
            if time.monotonic() - member.flights[answer].since <= limit_s:
                break
            # Taken off first: its answer will fail too when the replica dies, and must not be settled twice.
            attempt = self._land(answer)
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
        # Only attempts that ran alone report; a replica that was killed for another's sake proves nothing.
        ended_here = charged and kind != "error" and attempt.alone
        under_way = self._workers.in_progress(attempt.attempt_id) if ended_here else ()
        failure = queue.failed(attempt, kind, error, charged=charged, under_way=under_way)
        if failure is None:
            summary = error.partition("\n")[0]
            message = f"{attempt.shard.shard_id} after attempt {attempt.number} ({kind}): {summary}"
            self._replicas.emit("shard_requeued", message)
        return failure

    def _give_up_the_rest(self, queue: ShardQueue, reason: str) -> Iterator[ShardFailure]:
        for answer, member in self._in_flight.items():
            yield queue.give_up(
                member.flights[answer].attempt, "unfinished", f"{reason}, and it did not finish in time"
            )
        yield from queue.give_up_waiting(reason)

    def _abandon_in_flight(self) -> None:
        """Kill replicas that work on shards nobody waits for any more, so that the next map call finds free ones."""
        while self._in_flight:
            _, member = self._in_flight.popitem()
            member.flights.clear()
            self._replicas.retire(member)
            self._replicas.changed(member)  # it may have been retired before
