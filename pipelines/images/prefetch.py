"""Load images in threads ahead of the model, in order, bounded in the bytes held at once and in each one's time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from pipelines.types import ImageRef

T = TypeVar("T")


class ByteBudget:
    """Bytes that may be held at once by images between fetch and the end of their batch.

    The image that the consumer waits for is never made to wait, so the budget cannot deadlock; one image larger than
    the whole budget passes alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._awaited = 0
        self._changed = threading.Condition()

    def reserve(self, position: int, num_bytes: int) -> None:
        """Take bytes for the image at this position; waits until they fit or the consumer waits for just this image."""
        with self._changed:
            self._changed.wait_for(lambda: position <= self._awaited or self._held + num_bytes <= self._max_bytes)
            self._held += num_bytes

    def await_position(self, position: int) -> None:
        """Say which image the consumer needs next."""
        with self._changed:
            self._awaited = position
            self._changed.notify_all()

    def release(self, num_bytes: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._held -= num_bytes
            self._changed.notify_all()


@dataclass(slots=True, eq=False)
class Loading:
    """One image on its way: what its loader is given to say what it is about to do.

    Attributes:
        ref: the image.
        stage: what is being done, e.g. "fetch"; empty before anything is.
        num_bytes: bytes that it holds.
    """

    ref: ImageRef
    position: int
    budget: ByteBudget
    stage: str = ""
    num_bytes: int = 0
    _deadline: float | None = None

    def begin(self, stage: str, timeout_s: float) -> None:
        """Begin a stage that may take so long; the loader need not heed that, for the consumer does."""
        self.stage, self._deadline = stage, time.monotonic() + timeout_s

    def reserve(self, num_bytes: int) -> None:
        """Take bytes before they are allocated; waits until they may be. The stage's time stands still meanwhile."""
        deadline, self._deadline = self._deadline, None
        since = time.monotonic()
        self.budget.reserve(self.position, num_bytes)
        self.num_bytes += num_bytes
        if deadline is not None:
            self._deadline = deadline + time.monotonic() - since

    def settle(self, num_bytes: int) -> None:
        """Say how many bytes it still holds, and give back what it took beyond."""
        given_back, self.num_bytes = self.num_bytes - num_bytes, num_bytes
        self.budget.release(given_back)

    def seconds_left(self) -> float | None:
        """Return how long its stage may still take; None while its time does not run."""
        deadline = self._deadline
        return None if deadline is None else deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """One loaded image: what the loader returned, and the bytes it holds until ``release`` is called."""

    ref: ImageRef
    value: T
    num_bytes: int
    budget: ByteBudget

    def release(self) -> None:
        """Give its bytes back once the value is no longer referenced."""
        self.budget.release(self.num_bytes)


@dataclass(slots=True, eq=False)
class _Task(Generic[T]):
    """An image in the hands of a worker, until it is loaded or given up, whichever is first."""

    loading: Loading
    load: Callable[[Loading], T]
    changed: threading.Condition = field(default_factory=threading.Condition)
    values: list[T] = field(default_factory=list)
    error: BaseException | None = None
    worker: threading.Thread | None = None
    is_done: bool = False
    is_given_up: bool = False

    def run(self) -> bool:
        """Load it; say whether somebody still waits for it."""
        self.worker = threading.current_thread()
        values: list[T] = []
        error = None
        try:
            values.append(self.load(self.loading))
        except BaseException as caught:  # noqa: BLE001 - raised at its turn, in the consumer's thread
            error = caught
        with self.changed:
            self.is_done = True
            if self.is_given_up:
                values.clear()
                self.loading.budget.release(self.loading.num_bytes)
                return False
            self.values, self.error = values, error
            self.changed.notify_all()
            return True

    def wait(self) -> bool:
        """Wait until it is loaded; False if its time is over before, and then nobody will ever have its value."""
        with self.changed:
            while not self.is_done:
                left = self.loading.seconds_left()
                if left is not None and left <= 0:
                    self.is_given_up = True
                    return False
                self.changed.wait(_TICK_S if left is None else min(left, _TICK_S))
            return True


# How often the clock of a stage is looked at; what is loaded is seen as it comes.
_TICK_S = 0.5
# How long threads that are at an image which nobody wants any more are waited for.
_CLOSE_S = 5.0


def prefetch(
    refs: Iterable[ImageRef],
    load: Callable[[Loading], T],
    *,
    threads: int,
    max_bytes: int,
    give_up: Callable[[ImageRef, str], T],
) -> Generator[Loaded[T], None, None]:
    """Yield every image in order, loaded by threads that run ahead of the consumer.

    A thread that is at one image for too long cannot be ended: it is left alone with it, and another takes its place.

    Args:
        refs: the images.
        load: fetches and decodes one image; says so, and reserves bytes, before it does.
        threads: loader threads; at most twice as many images are under way or waiting.
        max_bytes: bytes held by images that are not yet released.
        give_up: returns the value of an image whose stage, named here, took too long.

    Raises:
        Whatever ``load`` raises, at that image's turn.
    """
    budget = ByteBudget(max_bytes)
    tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
    waiting: deque[_Task[T]] = deque()
    workers: set[threading.Thread] = set()
    numbered = enumerate(refs)

    def start_worker() -> None:
        # Daemons, so that a hung one does not keep the process from ending.
        worker = threading.Thread(target=_work, args=(tasks,), name="prefetch", daemon=True)
        workers.add(worker)
        worker.start()

    def submit_next() -> None:
        if (item := next(numbered, None)) is not None:
            waiting.append(_Task(Loading(item[1], item[0], budget), load))
            tasks.put(waiting[-1])

    try:
        for _ in range(threads):
            start_worker()
        for _ in range(2 * threads):
            submit_next()
        while waiting:
            task = waiting.popleft()
            loading = task.loading
            budget.await_position(loading.position)
            if task.wait():
                if task.error is not None:
                    raise task.error
                loaded = Loaded(loading.ref, task.values.pop(), loading.num_bytes, budget)
            else:
                workers -= {task.worker}
                start_worker()
                loaded = Loaded(loading.ref, give_up(loading.ref, loading.stage), 0, budget)
            submit_next()
            yield loaded
            del loaded, task
    finally:
        budget.await_position(1 << 62)  # nobody waits any more: let the threads under way run out
        with contextlib.suppress(Empty):
            while True:
                tasks.get_nowait()
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join(_CLOSE_S)


def _work(tasks: SimpleQueue[_Task[T] | None]) -> None:
    """Load what is handed out, until there is no more, or until a task was given up and another worker took over."""
    while (task := tasks.get()) is not None:
        if not task.run():
            return
        del task
