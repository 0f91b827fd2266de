"""What the product's modules know of the world, replaced: clocks, threads, queues, random names, and files' bytes.

Its modules are otherwise as they are. What a process has of its own (its driver id, what a signal left behind) changes
with the process whose turn it is.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import queue
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from types import ModuleType
from typing import Any

import pytest

from flows.process import signals
from tests.simulation.world import EPOCH, Process, Task, World

_PACKAGES = ("pipelines", "flows", "actors")


class Seams:
    """Stands between the product's modules and the world of the life that is lived."""

    world: World

    def __init__(self) -> None:
        self._globals: dict[tuple[Any, str], Callable[[Process], Any]] = {}
        self._last: Process | None = None

    def own(self, module: Any, name: str, begin: Callable[[Process], Any]) -> None:
        """Let a global of a module be a process's own."""
        self._globals[module, name] = begin

    def begin(self, world: World) -> None:
        """Live another life."""
        self.world = world
        self._last = None
        world.on_turn = self._on_turn

    def _on_turn(self, process: Process) -> None:
        last = self._last
        if last is process:
            return
        if last is not None:
            for module, name in self._globals:
                last.values[module, name] = getattr(module, name)
        if not process.values:
            process.values = {key: begin(process) for key, begin in self._globals.items()}
        for (module, name), value in process.values.items():
            setattr(module, name, value)
        self._last = process


SEAMS = Seams()


def _process() -> Process:
    task = SEAMS.world.current
    assert task is not None, "the product runs in processes of a life"
    return task.process


class SimulatedTime:
    """The time module."""

    @staticmethod
    def time() -> float:
        current = SEAMS.world.current
        return EPOCH + SEAMS.world.now + (current.process.clock_ahead_s if current else 0.0)

    @staticmethod
    def monotonic() -> float:
        return SEAMS.world.now + 1000.0

    perf_counter = monotonic

    @staticmethod
    def sleep(seconds: float) -> None:
        SEAMS.world.sleep(seconds)


class _EveryDatetime(type):
    """Takes every moment for an instance."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


_datetime = datetime


class SimulatedDatetime(datetime, metaclass=_EveryDatetime):
    """datetime.datetime, whose now is the machine's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(SimulatedTime.time(), tz or UTC)


class SimulatedQueue:
    """queue.SimpleQueue."""

    def __init__(self, maxsize: int = 0) -> None:
        self._items: deque[Any] = deque()
        self._waiting: deque[tuple[Task, int]] = deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self._items.append(item)
        while self._waiting:
            task, token = self._waiting.popleft()
            SEAMS.world.wake(task, None, token=token)

    put_nowait = put

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        world = SEAMS.world
        until = None if timeout is None else world.now + timeout
        while not self._items:
            if not block or (until is not None and world.now >= until):
                raise queue.Empty
            self._waiting.append(world.ticket())
            if until is not None:
                assert world.current is not None
                world.wake(world.current, None, delay_s=until - world.now)
            world.wait()
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items


class SimulatedThread:
    """threading.Thread: another task of the process that starts it."""

    def __init__(
        self,
        target: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Any = None,
        name: str = "",
        daemon: bool = True,
    ) -> None:
        self._run = lambda: target(*args, **(kwargs or {}))
        self._task: Task | None = None
        self.name, self.daemon = name, daemon

    def start(self) -> None:
        self._task = _process().spawn(self._run)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.dead

    def join(self, timeout: float | None = None) -> None:
        until = None if timeout is None else SEAMS.world.now + timeout
        while self.is_alive() and (until is None or SEAMS.world.now < until):
            SEAMS.world.sleep(0.05)


class SimulatedLock:
    """threading.Lock, where only tasks that wait hand over the turn."""

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        while self._is_held:
            if not blocking:
                return False
            SEAMS.world.sleep(0.01)
        self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _SimulatedThreading:
    """The threading module."""

    Thread, Lock, RLock = SimulatedThread, SimulatedLock, SimulatedLock
    _here = object()

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)

    def main_thread(self) -> Any:
        return _process().tasks[0]

    def current_thread(self) -> Any:
        return SEAMS.world.current


class InlineExecutor:
    """ThreadPoolExecutor whose one thread is the caller's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever the real one takes."""

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def shutdown(self, *_: Any, **__: Any) -> None:
        """There is nothing to close."""

    def submit(self, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(do(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done

    def map(self, do: Callable[..., Any], *items: Iterable[Any], **_: Any) -> Iterator[Any]:
        return iter([do(*one) for one in zip(*items, strict=False)])


class _SimulatedSignal:
    """The signal module, of the process whose turn it is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)

    def signal(self, number: int, handler: Any) -> Any:
        process = _process()
        if number != signal.SIGTERM:
            return signal.SIG_DFL
        before, process.on_signal = process.on_signal, handler
        return before

    def raise_signal(self, number: int) -> None:
        handler = _process().on_signal
        assert handler is not None
        handler(number, None)


class _SimulatedSecrets:
    """The secrets module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(secrets, name)

    def token_hex(self, num_bytes: int = 16) -> str:
        return SEAMS.world.token_hex(num_bytes)


_REPLACED: dict[int, Any] = {
    id(time): SimulatedTime,
    id(threading): _SimulatedThreading(),
    id(secrets): _SimulatedSecrets(),
    id(queue.SimpleQueue): SimulatedQueue,
    id(queue.Queue): SimulatedQueue,
    id(concurrent.futures.ThreadPoolExecutor): InlineExecutor,
    id(datetime): SimulatedDatetime,
}


def product_modules() -> list[ModuleType]:
    """Return the product's modules that are imported."""
    return [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] in _PACKAGES and module]


@contextmanager
def replaced() -> Iterator[pytest.MonkeyPatch]:
    """Replace what every module of the product knows of the world, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for module in product_modules():
            for name, value in list(vars(module).items()):
                if id(value) in _REPLACED:
                    patch.setattr(module, name, _REPLACED[id(value)])
                elif name == "DRIVER_ID":
                    patch.setattr(module, name, value)
                    SEAMS.own(module, name, lambda process: process.driver_id)
        patch.setattr(signals, "signal", _SimulatedSignal())
        _own(patch, signals, "_finishing_s", lambda _process: 0.0)
        from actors.pool import dispatch

        _own(patch, dispatch, "_numbers", lambda _process: itertools.count())
        yield patch


def _own(patch: pytest.MonkeyPatch, module: Any, name: str, begin: Callable[[Process], Any]) -> None:
    patch.setattr(module, name, getattr(module, name))
    SEAMS.own(module, name, begin)
