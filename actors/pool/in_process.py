"""Runs one replica in this process, on a few threads: for laptops, tests and debuggers. No ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from actors.pool.config import PoolConfig
from actors.pool.dispatch import Attempt, Drain, ShardQueue, attempt_ids
from actors.pool.runner import LabelerFactory, OnEvent, PoolEvent, ReplicaStartError, ShardFailure, summarize_error
from pipelines.types import ReplicaUnusable, Shard, ShardLabeler, ShardReceipt

# How often stop() and the budget are checked while no attempt finishes.
_TICK_S = 0.2
# How long close() waits for threads that are still labeling.
_CLOSE_S = 1.0

_Outcome = tuple[Attempt, ShardReceipt | BaseException]


class InProcessRunner:
    """A ShardRunner with one labeler on threads of this process.

    Threads cannot be killed. An attempt that hangs is abandoned only when the run drains, and a labeler that raises
    ReplicaUnusable ends the map call with a ReplicaStartError.

    Args:
        labeler_factory: builds the labeler.
        config: PoolConfig says which of its settings apply here.
    """

    def __init__(self, labeler_factory: LabelerFactory, config: PoolConfig) -> None:
        self._factory = labeler_factory
        self._config = config
        self._labeler: ShardLabeler | None = None
        self._ids = attempt_ids()
        self._tasks: SimpleQueue[tuple[Attempt, SimpleQueue[_Outcome]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._budget_since: float | None = None

    def __enter__(self) -> Self:
        """Return the runner; the labeler is built on first use."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()

    def map(self, shards: Iterable[Shard], on_event: OnEvent | None = None) -> Iterator[ShardReceipt | ShardFailure]:
        """Label shards and yield the outcome of each; see ShardRunner.map."""
        emit = on_event or (lambda _event: None)
        slots = self._config.shards_in_flight_per_replica
        queue = ShardQueue(shards, self._ids, slots, self._config.max_attempts_per_shard)
        # The budget covers the whole run, so it counts from the first map call.
        self._budget_since = self._budget_since or time.monotonic()
        drain = Drain(self._config, self._budget_since)
        # A queue of this call's own: attempts abandoned by an earlier call must not report to this one.
        outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        running: dict[str, Attempt] = {}
        while True:
            if drain.update(stopped=self._stopping):
                emit(PoolEvent("draining", f"{drain.reason}; {len(running)} shards in flight may finish"))
            if drain.over or not (running or (not drain.reason and queue.has_more())):
                break
            while not drain.reason and len(running) < slots and (attempt := queue.take(idle=not running)):
                self._start(attempt, outcomes, emit)
                running[attempt.attempt_id] = attempt
            try:
                attempt, outcome = outcomes.get(timeout=_TICK_S)
            except Empty:
                continue
            del running[attempt.attempt_id]
            settled = _settle(queue, attempt, outcome, emit)
            if settled is not None:
                yield settled
        # Their threads go on, and may still commit: the next run then finds these shards done.
        yield from (queue.give_up(attempt, "unfinished", drain.reason) for attempt in running.values())
        if drain.reason:
            yield from queue.give_up_waiting(drain.reason)

    def describe(self) -> Mapping[str, str]:
        """Return the labeler's facts, building it first if necessary; see ShardRunner.describe."""
        return dict(self._ready_labeler(lambda _event: None).describe())

    def stop(self) -> None:
        """Hand out no more shards."""
        self._stopping = True

    @property
    def is_stopped(self) -> bool:
        """See ShardRunner."""
        return self._stopping

    def close(self) -> None:
        """Let the threads finish their attempts and end, and release the labeler."""
        for _ in self._threads:
            self._tasks.put(None)
        # A daemon thread that is still inside a C++ library when the interpreter shuts down aborts the process.
        deadline = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()
        self._labeler = None

    def _start(self, attempt: Attempt, outcomes: SimpleQueue[_Outcome], emit: OnEvent) -> None:
        self._ready_labeler(emit)
        while len(self._threads) < self._config.shards_in_flight_per_replica:
            # Daemon threads, so that an abandoned attempt does not keep the process alive.
            thread = threading.Thread(target=self._work, name=f"label-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._tasks.put((attempt, outcomes))

    def _work(self) -> None:
        labeler = self._labeler
        assert labeler is not None
        while (task := self._tasks.get()) is not None:
            attempt, outcomes = task
            try:
                outcomes.put((attempt, labeler.label(attempt.shard, attempt.attempt_id)))
            except BaseException as error:  # noqa: BLE001 - whatever a shard raises is that shard's failure
                outcomes.put((attempt, error))

    def _ready_labeler(self, emit: OnEvent) -> ShardLabeler:
        failures = 0
        while self._labeler is None:
            try:
                self._labeler = self._factory()
            except Exception as error:
                failures += 1
                cause = summarize_error(error)
                emit(PoolEvent("replica_start_failed", f"the labeler could not be built: {cause}"))
                if failures >= self._config.max_replica_start_failures:
                    raise ReplicaStartError(f"the labeler could not be built ({failures} tries): {cause}") from error
            else:
                emit(PoolEvent("replica_started", "the labeler is ready in this process"))
        return self._labeler


def _settle(
    queue: ShardQueue, attempt: Attempt, outcome: ShardReceipt | BaseException, emit: OnEvent
) -> ShardReceipt | ShardFailure | None:
    """Return the outcome of a finished attempt, or None if its shard will be tried again."""
    if isinstance(outcome, ShardReceipt):
        queue.done()
        return outcome
    if isinstance(outcome, ReplicaUnusable):
        # On Ray the replica would be replaced; this process cannot be.
        raise ReplicaStartError(f"this process can do no more work: {summarize_error(outcome)}") from outcome
    error = summarize_error(outcome)
    failure = queue.failed(attempt, "error", error)
    if failure is None:
        summary = error.partition("\n")[0]
        emit(PoolEvent("shard_requeued", f"{attempt.shard.shard_id}: attempt {attempt.number} failed: {summary}"))
    return failure
