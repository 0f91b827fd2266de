from __future__ import annotations

import threading
import time

import pytest

from pipelines.prefetch import prefetch
from pipelines.types import ImageRef

REFS = [ImageRef(image_id=str(number), uri=str(number)) for number in range(40)]


def test_images_come_in_order_although_threads_finish_out_of_order() -> None:
    def load(ref: ImageRef, reserve) -> str:
        time.sleep(0.005 if int(ref.image_id) % 3 == 0 else 0)
        return ref.image_id

    items = list(prefetch(REFS, load, threads=4, max_bytes=1))
    assert [item.value for item in items] == [ref.image_id for ref in REFS]


@pytest.mark.parametrize("consumer_batch", [1, 8])
def test_bytes_held_stay_within_the_budget_but_for_the_batch_itself(consumer_batch: int) -> None:
    held, peak, lock = 0, 0, threading.Lock()

    def load(ref: ImageRef, reserve) -> str:
        nonlocal held, peak
        reserve(10)
        with lock:
            held += 10
            peak = max(peak, held)
        return ref.image_id

    batch = []
    for item in prefetch(REFS, load, threads=8, max_bytes=30):
        batch.append(item)
        if len(batch) == consumer_batch:
            time.sleep(0.002)
            for loaded in batch:
                with lock:
                    held -= 10
                loaded.release()
            batch.clear()
    assert peak <= 30 + 10 * consumer_batch


def test_one_image_larger_than_the_whole_budget_passes() -> None:
    def load(ref: ImageRef, reserve) -> int:
        reserve(1000)
        return 1

    total = 0
    for item in prefetch(REFS, load, threads=4, max_bytes=10):
        total += item.value
        item.release()
    assert total == len(REFS)


def test_a_consumer_that_holds_everything_is_not_deadlocked() -> None:
    def load(ref: ImageRef, reserve) -> int:
        reserve(1000)
        return 1

    assert len(list(prefetch(REFS, load, threads=4, max_bytes=10))) == len(REFS)


def test_a_loaders_error_is_raised_at_its_turn_and_the_threads_end() -> None:
    def load(ref: ImageRef, reserve) -> str:
        if ref.image_id == "5":
            raise RuntimeError("broken loader")
        return ref.image_id

    before = threading.active_count()
    seen = []

    def consume() -> None:
        for item in prefetch(REFS, load, threads=4, max_bytes=10):
            seen.append(item.value)
            item.release()

    with pytest.raises(RuntimeError, match="broken loader"):
        consume()
    assert seen == ["0", "1", "2", "3", "4"]
    assert threading.active_count() == before


def test_a_consumer_that_stops_early_leaves_no_thread_waiting_for_the_budget() -> None:
    def load(ref: ImageRef, reserve) -> str:
        reserve(1000)
        return ref.image_id

    before = threading.active_count()
    stream = prefetch(REFS, load, threads=4, max_bytes=10)
    next(stream)
    stream.close()
    assert threading.active_count() == before
