"""Workers on a clock that jumps: they take drawn times for a shard, under the pool's own dispatcher.

What the driver does is the product's code (actors.pool); replaced are the workers, the clock, and the queue at which
the driver waits, so that a run of weeks takes as long as the driver's own work, and the replicas' idle time is exact.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty
from typing import Any
from unittest.mock import patch

from actors.pool import dispatch, replica_pool, replicas
from actors.pool.replica import ReplicaFacts
from actors.pool.workers import WorkerEndedError
from pipelines.types import Shard, ShardReceipt, Status


class VirtualWorkers:
    """A Workers that also stands for the module ``time``, and for the queue of answers.

    Args:
        duration: seconds that a replica takes for a shard; its shards wait for one another, as for a GPU.

    Attributes:
        now: seconds since the beginning.
        busy_s: seconds that all replicas together have worked.
        ended_s: when the last shard was finished.
        started: all that were ever started; ``kill`` is their death.
    """

    def __init__(self, duration: Callable[[Shard], float]) -> None:
        self.now = self.busy_s = self.ended_s = 0.0
        self.started: list[_Worker] = []
        self.duration = duration
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def busy_share(self, replicas: int) -> float:
        """Return the share of the time until the last shard was finished in which so many replicas worked."""
        return self.busy_s / (replicas * self.ended_s)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the clock in actors.pool within the block."""
        with (
            patch.object(replica_pool, "time", self),
            patch.object(replicas, "time", self),
            patch.object(replicas, "SimpleQueue", lambda: _Queue(self)),
            patch.object(dispatch, "time", self),
        ):
            yield

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), what))

    def go_on(self, until: float) -> bool:
        """Let the next event happen; False if there is none until then, and it is then."""
        if not self._events or self._events[0][0] > until:
            self.now = until
            return False
        self.now, _, what = heapq.heappop(self._events)
        what()
        return True

    def monotonic(self) -> float:
        """As in time."""
        return self.now

    lost = ""

    def open(self) -> None:
        """There is nothing to connect to."""

    def start(self) -> _Worker:
        """Start a worker that is ready at once."""
        return _Worker(self)

    def report_of(self, _attempt_id: str) -> Callable[[Sequence[str]], None]:
        """Nothing reports."""
        return lambda _image_ids: None

    def in_progress(self, _attempt_id: str) -> tuple[str, ...]:
        """No image is known to be in progress."""
        return ()

    def free(self) -> str:
        """Nothing is known of room."""
        return ""

    def close(self) -> None:
        """There is nothing to free."""


class _Worker:
    """A replica."""

    def __init__(self, workers: VirtualWorkers) -> None:
        self._workers = workers
        self._free_at = 0.0
        self._pending: set[_Answer] = set()
        workers.started.append(self)
        self.ready, self.ended = self._promised(), self._promised()
        facts = ReplicaFacts(host="virtual", pid=0, labeler={})
        workers.at(0.0, lambda: self._resolve(self.ready, facts))

    def kill(self) -> None:
        for answer in list(self._pending):
            self._resolve(answer, WorkerEndedError("killed"))

    def label(self, shard: Shard, attempt_id: str, _crashes: object) -> _Answer:
        answer, workers = self._promised(), self._workers
        seconds = workers.duration(shard)
        self._free_at = max(workers.now, self._free_at) + seconds
        counts = {Status.OK: len(shard.images)}
        receipt = ShardReceipt(shard_id=shard.shard_id, attempt=attempt_id, status_counts=counts)

        def finish() -> None:
            if answer in self._pending:
                workers.busy_s += seconds
                workers.ended_s = workers.now
                self._resolve(answer, receipt)

        workers.at(self._free_at - workers.now, finish)
        return answer

    def _promised(self) -> _Answer:
        answer = _Answer()
        self._pending.add(answer)
        return answer

    def _resolve(self, answer: _Answer, value: object) -> None:
        if answer in self._pending:
            self._pending.remove(answer)
            answer.resolve(value)


class _Answer:
    """What a Future is, as far as it is used, without its locks."""

    def __init__(self) -> None:
        self._value: object = None
        self._callbacks: list[Callable[[_Answer], None]] | None = []

    def add_done_callback(self, call: Callable[[_Answer], None]) -> None:
        if self._callbacks is None:
            call(self)
        else:
            self._callbacks.append(call)

    def resolve(self, value: object) -> None:
        calls, self._value, self._callbacks = self._callbacks, value, None
        for call in calls or ():
            call(self)

    def exception(self) -> Exception | None:
        return self._value if isinstance(self._value, Exception) else None

    def result(self) -> Any:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class _Queue:
    """A SimpleQueue at which waiting lets time go on."""

    def __init__(self, workers: VirtualWorkers) -> None:
        self._workers = workers
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def get(self, timeout: float) -> Any:
        until = self._workers.now + timeout
        while not self._items and self._workers.go_on(until):
            pass
        return self.get_nowait()
