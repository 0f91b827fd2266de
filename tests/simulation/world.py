"""Simulated time, and processes that take turns on it: one real thread, one seed, always the same order of events.

A task is a greenlet that runs real code until it waits: for a request, a queue, a moment. Whatever happens next is the
event with the earliest time, whose time was drawn from the seed.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import greenlet

EPOCH = 1_760_000_000.0  # of the store's clock when a life begins
_MAX_EVENTS = 200_000


class Death(BaseException):
    """The end of a process, in whatever it was doing: what it does then has no effect any more."""


class Task(greenlet.greenlet):
    """One thread of a process."""

    process: Process
    token = 0  # of the wait that it is in
    is_waiting = False
    has_begun = False


class Process:
    """A process on a machine of its own: it can die, be stopped for a while, and be sent signals.

    Attributes:
        clock_ahead_s: of its machine's wall clock.
        values: its own values of module globals, see Seams.
        is_earlier: whether it runs the last released version.
        order: what it was started for; None for replicas.
        has_listed: whether it has listed the source.
        on_signal: what Python's signal handler would be; None where there is none.
    """

    def __init__(self, world: World, name: str, driver_id: str) -> None:
        self.world, self.name, self.driver_id = world, name, driver_id
        self.is_alive = True
        self.stopped_until = 0.0
        self.clock_ahead_s = 0.0
        self.started_at = world.now
        self.order: Any = None
        self.has_listed = False
        self.is_earlier = False
        self.tasks: list[Task] = []
        self.values: dict[Any, Any] = {}
        self.on_signal: Callable[[int, object], object] | None = None
        self.at_end: list[Callable[[], None]] = []

    def spawn(self, run: Callable[[], object]) -> Task:
        """Start a thread; it gets its turn later."""
        task = Task(run, self.world.hub)
        task.process = self
        self.tasks.append(task)
        self.world.wake(task, None)
        return task

    def end(self) -> None:
        """End every thread at once, with no effect on the world; requests on their way stay on it."""
        if not self.is_alive:
            return
        self.is_alive = False
        current = self.world.current
        for task in self.tasks:
            if task and task is not current:
                self.world.throw(task, Death())
        for do in self.at_end:
            do()
        if current is not None and current.process is self:
            raise Death

    def stop(self, seconds: float) -> None:
        """Let it not go on for a while, as SIGSTOP does; requests on their way go on."""
        if self.is_alive:
            self.world.trace.append((self.world.now, self.name, f"is stopped for {seconds:.1f} s"))
            self.stopped_until = max(self.stopped_until, self.world.now + seconds)

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self.is_alive:
            self.world.trace.append((self.world.now, self.name, "gets SIGKILL"))
            self.end()

    def die(self) -> None:
        """End of its own accord: the machine, or the process, crashes."""
        if self.is_alive:
            self.world.trace.append((self.world.now, self.name, "dies"))
            self.end()

    def signal(self, number: int) -> None:
        """Deliver a signal to its main thread."""
        if not self.is_alive or not self.tasks or not self.tasks[0]:
            return
        main = self.tasks[0]
        if self.stopped_until > self.world.now:
            self.world.at(self.stopped_until - self.world.now, lambda: self.signal(number))
            return
        assert self.on_signal is not None
        try:
            with self.world.as_task(main):
                self.on_signal(number, None)
        except BaseException as error:  # raised in the main thread, wherever it is
            self.world.throw(main, error)


class World:
    """The clock, the queue of events, and what has happened so far.

    Attributes:
        seed: everything that is drawn comes of it.
        now: seconds since the life began.
        trace: (time, process, what) of every event worth a line.
        current: the task whose turn it is; None between turns.
        actor: the process whose request takes effect at this moment; None for nobody's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.trace: list[tuple[float, str, str]] = []
        self.current: Task | None = None
        self.actor: Process | None = None
        self.hub = greenlet.getcurrent()
        self.processes: list[Process] = []
        self.errors: list[str] = []
        self.on_turn: Callable[[Process], None] = lambda _process: None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._hex = random.Random(f"hex {seed}")

    def process(self, name: str, driver_id: str = "") -> Process:
        """Begin a process."""
        process = Process(self, name, driver_id)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End every process that has not ended."""
        for process in self.processes:
            process.at_end.clear()
            process.end()

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append((self.now, self.current.process.name if self.current else "-", what))

    def digest(self) -> str:
        """Return the hash of all that happened."""
        return hashlib.sha256(repr(self.trace).encode()).hexdigest()

    def token_hex(self, num_bytes: int = 16) -> str:
        """Return what secrets.token_hex would: never the same twice in a life."""
        return f"{self._hex.getrandbits(8 * num_bytes):0{2 * num_bytes}x}"

    def at(self, delay_s: float, do: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + max(0.0, delay_s), next(self._numbers), do))

    def run(self) -> None:
        """Let everything happen that is to happen."""
        for _ in range(_MAX_EVENTS):
            if not self._events:
                return
            self.now, _, do = heapq.heappop(self._events)
            do()
        raise AssertionError(f"no end after {_MAX_EVENTS} events")

    def wait(self) -> Any:
        """Give up the turn until woken; return what the waker brings. Called in a task."""
        task = self.current
        assert task is not None, "only tasks wait"
        if not task.process.is_alive:
            raise Death
        task.is_waiting = True
        value = self.hub.switch()
        if isinstance(value, BaseException):
            raise value
        return value

    def sleep(self, seconds: float) -> None:
        """Wait for a while."""
        assert self.current is not None
        self.wake(self.current, None, delay_s=seconds)
        self.wait()

    def ticket(self) -> tuple[Task, int]:
        """Return what wakes the current task from its next wait, once."""
        assert self.current is not None
        return self.current, self.current.token

    def wake(self, task: Task, value: Any, *, delay_s: float = 0.0, token: int | None = None) -> None:
        """Let a task go on later, unless something else has woken it by then."""
        expected = task.token if token is None else token
        self.at(delay_s, lambda: self._turn(task, expected, value))

    def _turn(self, task: Task, token: int, value: Any) -> None:
        process = task.process
        if not process.is_alive or task.token != token or task.dead:
            return
        if process.stopped_until > self.now:
            self.at(process.stopped_until - self.now, lambda: self._turn(task, token, value))
            return
        with self.as_task(task):
            task.token += 1
            task.is_waiting = False
            if task.has_begun:
                task.switch(value)
            else:
                task.has_begun = True
                task.switch()

    def throw(self, task: Task, error: BaseException) -> None:
        """Raise an error in a task that waits, now."""
        before = self.current
        with self.as_task(task):
            task.token += 1
            parent, task.parent = task.parent, greenlet.getcurrent()
            try:
                task.throw(error)
            except BaseException:
                if task.process.is_alive:
                    raise
            finally:
                if not task.dead:
                    task.parent = parent
        self.current = before

    def as_task(self, task: Task) -> _Turn:
        """Be a task's process for a while."""
        return _Turn(self, task)

    def story(self, last: int = 40, about: Sequence[str] = ()) -> str:
        """Return the last events, or the last about something, as lines."""
        told = [line for line in self.trace if not about or any(word in line[2] for word in about)]
        return "\n".join(f"{at:12.3f}  {who:<12} {what}" for at, who, what in told[-last:])


class _Turn:
    """Sets the current task, and puts the one before back."""

    def __init__(self, world: World, task: Task) -> None:
        self._world, self._task, self._before = world, task, world.current

    def __enter__(self) -> None:
        self._world.current = self._task
        self._world.on_turn(self._task.process)

    def __exit__(self, *_: object) -> None:
        self._world.current = self._before
        if self._before is not None:
            self._world.on_turn(self._before.process)
