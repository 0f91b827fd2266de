"""One file that does not answer costs its own images, and no other file's; nor its own for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.images.prefetch import ByteBudget, Loading
from pipelines.labeling.shard import LabelConfig, LabelJob, load_images
from pipelines.sources import parquet_values
from pipelines.sources.parquet_values import read_value
from pipelines.types import Image, ImagePrediction, ImageRef, Reason
from tests.support.containers import parquet_bytes, picture

pytestmark = pytest.mark.timeout(60)


class Stalling:
    """Reading of a file whose name holds "stalled" does not go on until it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, times: int | None = None) -> None:
        self.let_go, self.begun = threading.Event(), threading.Event()
        self._left = times
        unfold = parquet_values._OpenFile._unfold

        def stalled(file: Any, table: pq.ParquetFile, *args: Any) -> Any:
            if "stalled" in Path(file.uri).name and (self._left is None or self._left > 0):
                self._left = None if self._left is None else self._left - 1
                self.begun.set()
                self.let_go.wait(30)
            return unfold(file, table, *args)

        monkeypatch.setattr(parquet_values._OpenFile, "_unfold", stalled)


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_values, "_CACHE", parquet_values._Cache())


def write(path: Path, rows: int = 6) -> Path:
    path.write_bytes(parquet_bytes({"jpg": [picture(number) for number in range(rows)]}, row_group_size=2))
    return path


def test_a_stalled_read_does_not_keep_others_from_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, healthy = write(tmp_path / "stalled.parquet"), write(tmp_path / "healthy.parquet")
    stalling = Stalling(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        hung = pool.submit(read_value, str(stalled), None, "jpg", 0)
        assert stalling.begun.wait(10)
        assert pool.submit(read_value, str(healthy), None, "jpg", 3).result(timeout=10) == picture(3)
        assert not hung.done()
        stalling.let_go.set()
        assert hung.result(timeout=10) == picture(0)


def test_images_of_other_files_are_labeled_while_one_file_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = []
    for name in ("healthy-a", "stalled", "healthy-b"):
        path = write(tmp_path / f"{name}.parquet")
        refs += [ImageRef(image_id=f"{name}{row}", uri=f"{path}#column=jpg&row={row}") for row in range(2)]
    stalling = Stalling(monkeypatch)
    job = LabelJob(run_id="r", prompts=(), config=LabelConfig(fetch_timeout_s=0.5, load_threads=2))
    outcomes = {}
    for loaded in load_images(refs, job):
        value = loaded.value
        outcomes[loaded.ref.image_id] = value.reason if isinstance(value, ImagePrediction) else type(value)
        loaded.release()
    stalling.let_go.set()
    assert {name: outcome for name, outcome in outcomes.items() if outcome is not Image} == {
        "stalled0": Reason.FETCH_TIMEOUT,
        "stalled1": Reason.FETCH_TIMEOUT,
    }


def test_a_file_whose_reader_hangs_is_opened_anew_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_values, "_STALLED_S", 0.2)
    path = write(tmp_path / "stalled.parquet")
    stalling = Stalling(monkeypatch, times=1)
    with ThreadPoolExecutor(2) as pool:
        hung = pool.submit(read_value, str(path), None, "jpg", 0)
        assert stalling.begun.wait(10)
        assert read_value(str(path), None, "jpg", 5) == picture(5)
        stalling.let_go.set()
        assert hung.result(timeout=10) == picture(0)


def test_who_waits_for_room_does_not_hold_the_file_meanwhile(tmp_path: Path) -> None:
    """The image that the consumer waits for may be one of the same file."""
    path = write(tmp_path / "a.parquet")
    budget = ByteBudget(10)
    budget.reserve(0, 10)
    late, awaited = (Loading(ImageRef(image_id="x", uri=""), position, budget) for position in (5, 0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read_value, str(path), None, "jpg", 2, reserve=late.reserve)
        time.sleep(0.1)
        assert read_value(str(path), None, "jpg", 3, reserve=awaited.reserve) == picture(3)
        assert not waiting.done()
        budget.await_position(5)
        assert waiting.result(timeout=10) == picture(2)


def test_files_are_closed_and_opened_again_while_many_threads_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_values, "_HELD_FILES", 2)
    monkeypatch.setattr(parquet_values, "_HELD_BYTES", 1000)
    paths = [write(tmp_path / f"{number}.parquet") for number in range(6)]

    def read(number: int) -> bool:
        row = number % 6
        return read_value(str(paths[number % 5]), None, "jpg", row) == picture(row)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(300)))
