"""Observers of a run: the interface, how several are combined, and the observer of the current run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol

from actors.pool.runner import PoolEvent, ShardFailure
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.plan import Plan
from pipelines.redaction import redacted
from pipelines.types import ShardReceipt

_log = logging.getLogger(__name__)
LOUD = frozenset({"alarm", "waiting", "warning"})
"""Kinds of events that a person is to hear of even where a run is to be quiet."""


class RunObserver(Protocol):
    """Is notified of everything that someone watching a run wants to see. Called in the driver's main thread."""

    def on_plan(self, plan: Plan, committed: int) -> None:
        """The run is planned; ``committed`` of its shards were committed before."""
        ...

    def on_update(self, update: UpdateCounts) -> None:
        """An incremental run has compared the listing with what earlier runs asked."""
        ...

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """A shard was labeled and committed."""
        ...

    def on_failure(self, failure: ShardFailure) -> None:
        """A shard was given up."""
        ...

    def on_event(self, event: PoolEvent) -> None:
        """Something else happened to a replica or a shard."""
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
    """Notifies several observers. If one raises, that is reported once; it is still notified, and the run goes on."""

    def __init__(self, *observers: RunObserver) -> None:
        self._observers = observers
        self._raised: set[int] = set()

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Pass it on."""
        self._tell(lambda observer: observer.on_plan(plan, committed))

    def on_update(self, update: UpdateCounts) -> None:
        """Pass it on."""
        self._tell(lambda observer: observer.on_update(update))

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Pass it on."""
        self._tell(lambda observer: observer.on_receipt(receipt))

    def on_failure(self, failure: ShardFailure) -> None:
        """Pass it on."""
        self._tell(lambda observer: observer.on_failure(failure))

    def on_event(self, event: PoolEvent) -> None:
        """Pass it on."""
        self._tell(lambda observer: observer.on_event(event))

    def _tell(self, tell: Callable[[RunObserver], None]) -> None:
        for number, observer in enumerate(self._observers):
            try:
                tell(observer)
            # Any observer may raise anything; rich raises SystemExit when it finds a closed pipe.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                if number not in self._raised:
                    self._raised.add(number)
                    self._tell_of(number, error)

    def _tell_of(self, number: int, error: BaseException) -> None:
        """Report an observer's failure to the others, or to the log if there are none."""
        name = type(self._observers[number]).__name__
        what = redacted(f"{type(error).__name__}: {error}")
        message = f"{name} raised {what}; the run goes on, and is not told of it again"
        heard = False
        for other, observer in enumerate(self._observers):
            if other not in self._raised:
                with contextlib.suppress(Exception, SystemExit):
                    observer.on_event(PoolEvent("observer_failed", message))
                    heard = True
        if not heard:
            _log.warning(message)


_current: ContextVar[RunObserver | None] = ContextVar("observer", default=None)


@contextlib.contextmanager
def observed_by(observer: RunObserver) -> Iterator[None]:
    """Make this the observer of the runs in this block; it cannot be passed as a parameter of the flow."""
    token = _current.set(observer)
    try:
        yield
    finally:
        _current.reset(token)


def current_observer() -> RunObserver:
    """Return the observer of the current run; a silent one if there is none."""
    return _current.get() or Silent()
