"""Load images in threads ahead of the model, in order, with a bound on the bytes held at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.types import ImageRef

T = TypeVar("T")
Reserve = Callable[[int], None]


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


def prefetch(
    refs: Iterable[ImageRef], load: Callable[[ImageRef, Reserve], T], *, threads: int, max_bytes: int
) -> Generator[Loaded[T], None, None]:
    """Yield every image in order, loaded by threads that run ahead of the consumer.

    Args:
        refs: the images.
        load: fetches and decodes one image; calls its second argument with a number of bytes before it allocates them.
        threads: loader threads; at most twice as many images are under way or waiting.
        max_bytes: bytes held by images that are not yet released.

    Raises:
        Whatever ``load`` raises, at that image's turn.
    """
    budget = ByteBudget(max_bytes)
    waiting: deque[tuple[ImageRef, Future[tuple[T, int]]]] = deque()
    numbered = enumerate(refs)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")

    def run(position: int, ref: ImageRef) -> tuple[T, int]:
        held = 0

        def reserve(num_bytes: int) -> None:
            nonlocal held
            budget.reserve(position, num_bytes)
            held += num_bytes

        return load(ref, reserve), held

    def submit_next() -> None:
        if (item := next(numbered, None)) is not None:
            waiting.append((item[1], executor.submit(run, *item)))

    try:
        for _ in range(2 * threads):
            submit_next()
        position = 0
        while waiting:
            budget.await_position(position)
            ref, future = waiting.popleft()
            value, held = future.result()
            submit_next()
            position += 1
            yield Loaded(ref, value, held, budget)
            del value, future
    finally:
        budget.await_position(1 << 62)  # nobody waits any more: let the threads under way run out
        executor.shutdown(wait=True, cancel_futures=True)
