"""Load images in threads ahead of the model, in order, within a byte budget and with a timeout for each image."""

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
    """Limits the bytes held at once by images, from their fetch to the end of their batch.

    The image that the consumer waits for never has to wait for the budget, so it cannot deadlock, and a single image
    larger than the whole budget gets through.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._awaited = 0
        self._changed = threading.Condition()

    def reserve(self, position: int, num_bytes: int) -> None:
        """Take bytes for the image at a position; blocks until they fit or the consumer waits for this very image."""
        with self._changed:
            # "<=", not "==": images before the awaited one are already due, e.g. when everything is wound up.
            self._changed.wait_for(lambda: position <= self._awaited or self._held + num_bytes <= self._max_bytes)
            self._held += num_bytes

    def await_position(self, position: int) -> None:
        """Record which image the consumer needs next."""
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
    """One image being loaded; its loader reports stages and reserves bytes through it.

    Attributes:
        ref: the image.
        stage: the current stage, e.g. "fetch"; empty before the first.
        num_bytes: bytes reserved for it.
    """

    ref: ImageRef
    position: int
    budget: ByteBudget
    stage: str = ""
    num_bytes: int = 0
    _deadline: float | None = None

    def begin(self, stage: str, timeout_s: float) -> None:
        """Begin a stage with a time limit, which the consumer enforces; the loader need not watch it."""
        self.stage, self._deadline = stage, time.monotonic() + timeout_s

    def reserve(self, num_bytes: int) -> None:
        """Take bytes from the budget before they are allocated; blocks until they fit.

        The stage's clock stops meanwhile: waiting for other images is no fault of this one.
        """
        deadline, self._deadline = self._deadline, None
        since = time.monotonic()
        self.budget.reserve(self.position, num_bytes)
        self.num_bytes += num_bytes
        if deadline is not None:
            self._deadline = deadline + time.monotonic() - since

    def settle(self, num_bytes: int) -> None:
        """Record how many bytes the image still holds, and give the rest back."""
        given_back, self.num_bytes = self.num_bytes - num_bytes, num_bytes
        self.budget.release(given_back)

    def seconds_left(self) -> float | None:
        """Return the seconds that the stage has left; None while its clock is stopped."""
        deadline = self._deadline
        return None if deadline is None else deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """One loaded image: the loader's return value, and the bytes it holds until ``release`` is called."""

    ref: ImageRef
    value: T
    num_bytes: int
    budget: ByteBudget

    def release(self) -> None:
        """Give its bytes back; to be called once the value is no longer referenced."""
        self.budget.release(self.num_bytes)


@dataclass(slots=True, eq=False)
class _Task(Generic[T]):
    """An image being loaded by a worker, until it is loaded or given up, whichever comes first."""

    loading: Loading
    load: Callable[[Loading], T]
    changed: threading.Condition = field(default_factory=threading.Condition)
    values: list[T] = field(default_factory=list)
    error: BaseException | None = None
    worker: threading.Thread | None = None
    is_done: bool = False
    is_given_up: bool = False

    def run(self) -> bool:
        """Load the image; return whether the consumer still waits for it."""
        self.worker = threading.current_thread()
        values: list[T] = []
        error = None
        try:
            values.append(self.load(self.loading))
        except BaseException as caught:  # noqa: BLE001 - raised at its turn, in the consumer's thread
            error = caught
        with self.changed:
            self.is_done = True
            # Under the lock, so that exactly one side settles the bytes: the consumer has moved on without them.
            if self.is_given_up:
                values.clear()
                self.loading.budget.release(self.loading.num_bytes)
                return False
            self.values, self.error = values, error
            self.changed.notify_all()
            return True

    def wait(self) -> bool:
        """Wait until the image is loaded; False if its time runs out first, and then its value is discarded."""
        with self.changed:
            while not self.is_done:
                left = self.loading.seconds_left()
                if left is not None and left <= 0:
                    self.is_given_up = True
                    return False
                self.changed.wait(_TICK_S if left is None else min(left, _TICK_S))
            return True


# How often a stage's clock is checked while waiting. A finished image wakes the consumer at once.
_TICK_S = 0.5
# How long to wait, when the consumer stops early, for threads that are still loading.
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

    A thread that hangs in one image cannot be killed: it is abandoned with that image, and a new one takes its place.

    Args:
        refs: the images.
        load: fetches and decodes one image; reports its stages and reserves bytes beforehand.
        threads: loader threads; at most twice as many images are being loaded or waiting to be consumed.
        max_bytes: limit on the bytes of images that are not yet released.
        give_up: returns the value of an image whose stage, the second argument, took too long.

    Raises:
        Whatever ``load`` raises, at that image's turn.
    """
    budget = ByteBudget(max_bytes)
    tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
    waiting: deque[_Task[T]] = deque()
    workers: set[threading.Thread] = set()
    numbered = enumerate(refs)

    def start_worker() -> None:
        # Daemon threads, so that a hung one does not keep the process from exiting.
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
        # Twice as many images as threads: threads go on while loaded images wait for their turn.
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
            del loaded, task  # or this frame would keep the pixels until the next image is loaded
    finally:
        budget.await_position(1 << 62)  # beyond any image: lets every thread that waits for bytes go on and finish
        with contextlib.suppress(Empty):
            while True:
                tasks.get_nowait()
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join(_CLOSE_S)


def _work(tasks: SimpleQueue[_Task[T] | None]) -> None:
    """Load images from the queue until it ends, or until this worker's image was given up and another took over."""
    while (task := tasks.get()) is not None:
        if not task.run():
            return
        del task  # while this thread waits in get(), it would keep the last image alive
