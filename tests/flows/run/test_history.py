"""Updates of an output with many runs before them: as many requests as with few, and nothing is overlooked."""

from __future__ import annotations

import errno
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from flows.run import engine, updates
from flows.run.observer import Silent
from flows.run.retry import runs_to_retry
from flows.run.summary import RunSummary
from pipelines.errors import DamagedError
from pipelines.history import history as module
from pipelines.history.history import newest_history
from pipelines.storage.store import Store, open_store
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.reliability.small_run import as_driver
from tests.support.fakes import BrightPredictor, half_bright, png

_REQUESTS = ("read", "exists", "size", "find", "folders", "files", "create", "write", "delete")


class Nights:
    """A collection that grows by an image a night, and its output."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.output = f"memory://nights-{secrets.token_hex(4)}"
        self.store = open_store(self.output)
        self.count = 0

    def update(self, **output: Any) -> tuple[RunSummary, list[str]]:
        """Label what is new; return the summary and the images that the model saw."""
        values = {
            "source": str(self.source),
            "output": {"uri": self.output, **output},
            "model": {"path": "fake"},
            "categories": ["bright"],
            "incremental": True,
            "label": {"load_threads": 1},
            "pool": {"runner": "in_process"},
        }
        predictor = BrightPredictor()
        with as_driver(predictor):
            summary = engine.run_directly(parse_config(values), Silent())
        return summary, [image for call in predictor.calls for image in call]

    def night(self) -> tuple[RunSummary, list[str]]:
        self.count += 1
        (self.source / f"{self.count:04d}.png").write_bytes(png(half_bright(bright_columns=3)))
        return self.update()


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    monkeypatch.setattr(updates, "GATHERED_AFTER", 3)
    nights = Nights(tmp_path)
    yield nights
    nights.store.fs.rm(nights.store.root, recursive=True)


def counting(name: str, real: Any, counts: Counter[str]) -> Any:
    def call(self: Store, *args: Any) -> Any:
        counts[name] += 1
        return real(self, *args)

    return call


@contextmanager
def requests() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in _REQUESTS:
            patch.setattr(Store, name, counting(name, getattr(Store, name), counts))
        yield counts


def test_after_many_nights_an_update_makes_hardly_more_requests_than_after_few(nights: Nights) -> None:
    found = []
    for number in range(1, 17):
        with requests() as counts:
            summary, seen = nights.night()
        assert (summary.ok, seen) == (True, [f"{number:04d}.png"])
        found.append(counts.total())
    # Every third night what the two before it have planned is gathered; the most of a round stays what it was.
    assert max(found[-3:]) <= max(found[4:7]) + 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "GATHERED_AFTER", 1000)
        for name in nights.store.files("_runs"):
            if name.startswith(".history-"):
                nights.store.delete(f"_runs/{name}")
        with requests() as counts:
            nights.night()
    assert counts.total() > 1.5 * max(found[-3:])


def test_what_was_gathered_is_asked_nothing_again_and_what_has_changed_is(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    history = newest_history(nights.store)
    assert history is not None
    assert len(history.documents) >= 3
    assert nights.update()[1] == []
    (nights.source / "0002.png").write_bytes(png(half_bright(width=40, bright_columns=9)))
    (nights.source / "0001.png").unlink()
    summary, seen = nights.update()
    assert (summary.run_id, seen) == ("update-7", ["0002.png"])
    versions = open_table(nights.store, "images").to_table(columns=["image_id", "image_version"]).to_pylist()
    assert [row["image_version"] for row in versions if row["image_id"] == "0002.png"] == [1, 2]


def test_a_gathered_run_that_has_lost_a_file_is_mended_by_the_next_update(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    history = newest_history(nights.store)
    assert history is not None
    assert "update-2" in history
    (lost,) = nights.store.find("images/update-2")
    nights.store.delete(lost)
    summary, seen = nights.update()
    assert (summary.ok, seen) == (True, ["0002.png"])
    assert verify(nights.store, "update-2").problems == []
    # What it says of that run is not true any more; it is looked at as if it were not there.
    assert nights.update()[1] == []


def test_check_reads_the_files_of_gathered_runs(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    (damaged,) = nights.store.find("annotations/update-2")
    data = bytearray(nights.store.read(damaged))
    data[len(data) // 2] ^= 1
    nights.store.write(damaged, bytes(data))
    assert nights.update()[1] == []
    assert nights.update(check=True)[1] == ["0002.png"]
    assert verify(nights.store, "update-2").problems == []


def test_a_history_that_does_not_fit_into_the_folder_for_temporary_files_ends_no_run(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        nights.night()

    def is_full(*_: object) -> Iterator[Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "sort_batches", is_full)
    for number in (4, 5):
        summary, seen = nights.night()
        assert (summary.ok, seen) == (True, [f"{number:04d}.png"])
        assert "could not be gathered, which does no harm: [Errno 28]" in summary.warnings[0]
    monkeypatch.undo()
    assert [name for name in nights.store.files("_runs") if name.startswith(".history-")] == []


def test_a_run_that_was_removed_is_not_taken_from_the_history(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    history = newest_history(nights.store)
    assert history is not None
    assert "update-2" in history
    for name in nights.store.find(""):
        if "/update-2/" in name:
            nights.store.delete(name)
    summary, seen = nights.update()
    assert (summary.run_id, seen) == ("update-7", ["0002.png"])
    assert nights.update()[1] == []


def test_a_plan_that_is_lost_is_named_though_a_history_holds_it(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    nights.store.delete("_runs/update-2/plan.json")
    with pytest.raises(DamagedError, match=r"_runs/update-2/plan\.json: missing, although"):
        nights.update()


def test_a_history_of_which_a_bit_has_flipped_stops_no_update_and_is_made_again(nights: Nights) -> None:
    for _ in range(6):
        nights.night()
    history = newest_history(nights.store)
    assert history is not None
    name = f"_runs/{history.parts[0].name}"
    data = bytearray(nights.store.read(name))
    data[len(data) // 2] ^= 1
    nights.store.write(name, bytes(data))
    assert nights.update()[1] == []
    for number in range(7, 10):
        summary, seen = nights.night()
        assert (summary.ok, summary.warnings, seen) == (True, [], [f"{number:04d}.png"])
    assert not nights.store.exists(name)
    again = newest_history(nights.store)
    assert again is not None
    num_images = sum(batch.num_rows for batch in again.batches(nights.store))
    assert num_images == len(again.documents) > len(history.documents)


def test_retries_that_were_gathered_are_not_read_again(nights: Nights) -> None:
    (nights.source / "broken.png").write_bytes(b"no image")
    first = nights.night()[0].run_id
    with as_driver(BrightPredictor()):
        for config in runs_to_retry(nights.output, None, [], {}):
            engine.run_directly(config, Silent())
    for _ in range(4):
        nights.night()
    history = newest_history(nights.store)
    assert history is not None
    assert f"{first}-retry-1" in history
    nights.store.write(f"_runs/{first}-retry-1/plan.json", b"not read")
    assert nights.night()[1] == ["0006.png"]
