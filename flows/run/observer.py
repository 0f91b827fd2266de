"""Who is told what happens during a run: an interface, and the observer of the run that is under way."""

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
    """Tells several observers. One that raises is not worth a run: it is spoken of once, and told on."""

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
            # Whatever an observer of anyone's raises; rich ends the process where it finds a pipe closed.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                if number not in self._raised:
                    self._raised.add(number)
                    self._tell_of(number, error)

    def _tell_of(self, number: int, error: BaseException) -> None:
        """Say that an observer raised: to the others, and where there is none to the log."""
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
    """Let an observer hear of the runs inside this block; a flow's parameters cannot carry it."""
    token = _current.set(observer)
    try:
        yield
    finally:
        _current.reset(token)


def current_observer() -> RunObserver:
    """Return the observer of the run that is under way."""
    return _current.get() or Silent()
