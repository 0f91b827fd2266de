"""Ray on a clock that jumps: actors that take drawn times for a shard, under the pool's own dispatcher.

What the driver does is the product's code (actors.pool); replaced are Ray, the clock, and the queue at which the driver
waits, so that a run of weeks takes as long as the driver's own work, and the replicas' idle time is exact.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any
from unittest.mock import patch

from ray.exceptions import RayActorError

from actors.pool import dispatch, ray_pool, replicas
from actors.pool.replica import ReplicaFacts
from pipelines.types import Shard, ShardReceipt, Status


class VirtualRay:
    """Stands for the modules ``ray`` and ``time``, and for the queue of resolved references.

    Args:
        duration: seconds that a replica takes for a shard; its shards wait for one another, as for a GPU.

    Attributes:
        now: seconds since the beginning.
        busy_s: seconds that all replicas together have worked.
        ended_s: when the last shard was finished.
        actors: all that were ever started; ``end`` is their death.
    """

    def __init__(self, duration: Callable[[Shard], float]) -> None:
        self.now = self.busy_s = self.ended_s = 0.0
        self.actors: list[_Actor] = []
        self.duration = duration
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def busy_share(self, replicas: int) -> float:
        """Return the share of the time until the last shard was finished in which so many replicas worked."""
        return self.busy_s / (replicas * self.ended_s)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace Ray and the clock in actors.pool within the block."""
        with (
            patch.object(ray_pool, "ray", self),
            patch.object(ray_pool, "time", self),
            patch.object(ray_pool, "connect", lambda _config: False),
            patch.object(ray_pool, "HeadWatch", _HeadIsThere),
            patch.object(ray_pool, "Witness", _NoWitness),
            patch.object(replicas, "ray", self),
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

    def is_initialized(self) -> bool:
        """As in ray."""
        return True

    def remote(self, _class: type) -> VirtualRay:
        """As in ray, for the one class of actors that there is."""
        return self

    def options(self, **_: object) -> _ActorClass:
        """As in ray."""
        return _ActorClass(self)

    def get(self, ref: _Ref) -> Any:
        """As in ray, of a reference that is resolved."""
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def kill(self, actor: _Actor, *, no_restart: bool) -> None:  # noqa: ARG002
        """As in ray."""
        actor.end()


class _ActorClass:
    def __init__(self, ray: VirtualRay) -> None:
        self._ray = ray

    def remote(self, _factory: object) -> _Actor:
        return _Actor(self._ray)


class _Actor:
    """A replica, with its methods as attributes that have ``remote``."""

    def __init__(self, ray: VirtualRay) -> None:
        self._ray = ray
        self._free_at = 0.0
        self._pending: set[_Ref] = set()
        ray.actors.append(self)
        self.ready, self.stay, self.label = _Method(self._ready), _Method(self._promised), _Method(self._label)

    def end(self) -> None:
        for ref in list(self._pending):
            self._resolve(ref, RayActorError())

    def _promised(self) -> _Ref:
        ref = _Ref()
        self._pending.add(ref)
        return ref

    def _resolve(self, ref: _Ref, value: object) -> None:
        if ref in self._pending:
            self._pending.remove(ref)
            ref.resolve(value)

    def _ready(self) -> _Ref:
        ref = self._promised()
        self._ray.at(0.0, lambda: self._resolve(ref, ReplicaFacts(host="virtual", pid=0, labeler={})))
        return ref

    def _label(self, shard: Shard, attempt_id: str, _crashes: object) -> _Ref:
        ref, ray, seconds = self._promised(), self._ray, self._ray.duration(shard)
        self._free_at = max(ray.now, self._free_at) + seconds
        counts = {Status.OK: len(shard.images)}
        receipt = ShardReceipt(shard_id=shard.shard_id, attempt=attempt_id, status_counts=counts)

        def finish() -> None:
            if ref in self._pending:
                ray.busy_s += seconds
                ray.ended_s = ray.now
                self._resolve(ref, receipt)

        ray.at(self._free_at - ray.now, finish)
        return ref


class _Method:
    def __init__(self, call: Callable[..., _Ref]) -> None:
        self.remote = call


class _Ref:
    """A reference, and its future."""

    def __init__(self) -> None:
        self.value: object = None
        self._callbacks: list[Callable[[_Ref], None]] | None = []

    def future(self) -> _Ref:
        return self

    def add_done_callback(self, call: Callable[[_Ref], None]) -> None:
        if self._callbacks is None:
            call(self)
        else:
            self._callbacks.append(call)

    def resolve(self, value: object) -> None:
        calls, self.value, self._callbacks = self._callbacks, value, None
        for call in calls or ():
            call(self)


class _Queue:
    """A SimpleQueue at which waiting lets time go on."""

    def __init__(self, ray: VirtualRay) -> None:
        self._ray = ray
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def get(self, timeout: float) -> Any:
        until = self._ray.now + timeout
        while not self._items and self._ray.go_on(until):
            pass
        return self.get_nowait()


class _HeadIsThere:
    lost = ""

    def close(self) -> None:
        """There is nothing to close."""


class _NoWitness:
    """Knows of no image in progress."""

    def report_of(self, _attempt_id: str) -> None:
        return None

    def in_progress(self, _attempt_id: str) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """There is nothing to close."""
