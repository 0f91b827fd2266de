"""Who is told what happens during a run: an interface, and the observer of the run that is under way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from actors.pool import PoolEvent, ShardFailure
from pipelines.coverage import UpdateCounts
from pipelines.manifest import Plan
from pipelines.types import ShardReceipt


class RunObserver(Protocol):
    """Hears of everything that a person watching a run would want to see. Called in the driver's main thread."""

    def on_plan(self, plan: Plan, committed: int) -> None:
        """The plan stands; so many of its shards were committed before."""
        ...

    def on_update(self, update: UpdateCounts) -> None:
        """The listing was compared with what earlier runs have asked."""
        ...

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """A shard was labelled and committed."""
        ...

    def on_failure(self, failure: ShardFailure) -> None:
        """A shard was given up."""
        ...

    def on_event(self, event: PoolEvent) -> None:
        """Something happened to a replica or a shard on the way."""
        ...


class Silent:
    """An observer that shows nothing."""

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Ignore it."""

    def on_update(self, update: UpdateCounts) -> None:
        """Ignore it."""

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Ignore it."""

    def on_failure(self, failure: ShardFailure) -> None:
        """Ignore it."""

    def on_event(self, event: PoolEvent) -> None:
        """Ignore it."""


class Several:
    """Tells several observers."""

    def __init__(self, *observers: RunObserver) -> None:
        self._observers = observers

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_plan(plan, committed)

    def on_update(self, update: UpdateCounts) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_update(update)

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_receipt(receipt)

    def on_failure(self, failure: ShardFailure) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_failure(failure)

    def on_event(self, event: PoolEvent) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_event(event)


_current: ContextVar[RunObserver | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observed_by(observer: RunObserver) -> Iterator[None]:
    """Let an observer hear of the runs inside this block; a flow's parameters cannot carry it."""
    token = _current.set(observer)
    try:
        yield
    finally:
        _current.reset(token)


def current_observer() -> RunObserver:
    """Return the observer of the run that is under way."""
    return _current.get() or Silent()
