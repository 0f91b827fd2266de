from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipelines.images.prefetch import Loading, prefetch
from pipelines.types import ImageRef

pytestmark = pytest.mark.timeout(60)

REFS = [ImageRef(image_id=str(number), uri=str(number)) for number in range(40)]


def never(ref: ImageRef, stage: str) -> Any:
    raise AssertionError(f"{ref.image_id} was given up at {stage}")


def test_images_come_in_order_although_threads_finish_out_of_order() -> None:
    def load(loading: Loading) -> str:
        time.sleep(0.005 if int(loading.ref.image_id) % 3 == 0 else 0)
        return loading.ref.image_id

    items = list(prefetch(REFS, load, threads=4, max_bytes=1, give_up=never))
    assert [item.value for item in items] == [ref.image_id for ref in REFS]


@pytest.mark.parametrize("consumer_batch", [1, 8])
def test_bytes_held_stay_within_the_budget_but_for_the_batch_itself(consumer_batch: int) -> None:
    held, peak, lock = 0, 0, threading.Lock()

    def load(loading: Loading) -> str:
        nonlocal held, peak
        loading.reserve(10)
        with lock:
            held += 10
            peak = max(peak, held)
        return loading.ref.image_id

    batch = []
    for item in prefetch(REFS, load, threads=8, max_bytes=30, give_up=never):
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
    def load(loading: Loading) -> int:
        loading.reserve(1000)
        return 1

    total = 0
    for item in prefetch(REFS, load, threads=4, max_bytes=10, give_up=never):
        total += item.value
        item.release()
    assert total == len(REFS)


def test_a_consumer_that_holds_everything_is_not_deadlocked() -> None:
    def load(loading: Loading) -> int:
        loading.reserve(1000)
        return 1

    assert len(list(prefetch(REFS, load, threads=4, max_bytes=10, give_up=never))) == len(REFS)


def test_a_loaders_error_is_raised_at_its_turn_and_the_threads_end() -> None:
    def load(loading: Loading) -> str:
        if loading.ref.image_id == "5":
            raise RuntimeError("broken loader")
        return loading.ref.image_id

    before = threading.active_count()
    seen = []

    def consume() -> None:
        for item in prefetch(REFS, load, threads=4, max_bytes=10, give_up=never):
            seen.append(item.value)
            item.release()

    with pytest.raises(RuntimeError, match="broken loader"):
        consume()
    assert seen == ["0", "1", "2", "3", "4"]
    assert threading.active_count() == before


def test_a_consumer_that_stops_early_leaves_no_thread_waiting_for_the_budget() -> None:
    def load(loading: Loading) -> str:
        loading.reserve(1000)
        return loading.ref.image_id

    before = threading.active_count()
    stream = prefetch(REFS, load, threads=4, max_bytes=10, give_up=never)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def given_up(ref: ImageRef, stage: str) -> str:
    return f"{ref.image_id} given up at {stage}"


def test_images_whose_loading_hangs_are_given_up_and_all_others_come_in_order() -> None:
    """More of them than there are threads: each thread that hangs has its place taken by another."""
    release = threading.Event()
    hanging = {"3", "4", "5", "6", "7", "20", "39"}

    def load(loading: Loading) -> str:
        loading.reserve(10)
        loading.begin("fetch", 10)
        loading.begin("decode", 0.2)
        if loading.ref.image_id in hanging:
            release.wait(30)
        return loading.ref.image_id

    before = threading.active_count()
    seen = []
    for item in prefetch(REFS, load, threads=2, max_bytes=10, give_up=given_up):
        seen.append(item.value)
        item.release()
    assert seen == [f"{ref.image_id} given up at decode" if ref.image_id in hanging else ref.image_id for ref in REFS]
    assert threading.active_count() == before + len(hanging)
    release.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_hung_image_holds_its_bytes_until_it_really_ends() -> None:
    release, held = threading.Event(), []

    def load(loading: Loading) -> str:
        loading.reserve(100)
        loading.begin("fetch", 0.1)
        if loading.ref.image_id == "0":
            release.wait(30)
        return loading.ref.image_id

    for item in prefetch(REFS[:6], load, threads=2, max_bytes=150, give_up=given_up):
        held.append(item.budget._held)
        item.release()
        if item.ref.image_id == "4":
            release.set()
    assert min(held[1:4]) >= 200


def test_time_spent_waiting_for_room_is_not_the_images_own() -> None:
    def load(loading: Loading) -> str:
        loading.begin("fetch", 0.3)
        loading.reserve(100)
        return loading.ref.image_id

    seen = []
    for item in prefetch(REFS[:4], load, threads=4, max_bytes=100, give_up=never):
        time.sleep(0.5)
        seen.append(item.value)
        item.release()
    assert seen == ["0", "1", "2", "3"]


def test_an_image_that_is_ready_at_its_turn_is_not_given_up_however_late_that_comes() -> None:
    def load(loading: Loading) -> str:
        loading.begin("fetch", 0.05)
        return loading.ref.image_id

    stream = prefetch(REFS[:4], load, threads=4, max_bytes=100, give_up=never)
    next(stream)
    time.sleep(0.2)
    assert [item.value for item in stream] == ["1", "2", "3"]
