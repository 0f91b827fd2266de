from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.planning import external_sort
from pipelines.planning.external_sort import sort_batches


def _batches(keys: list[str], size: int) -> list[pa.RecordBatch]:
    table = pa.table({"key": pa.array(keys, pa.string()), "lists": pa.array([[key, None] for key in keys])})
    return table.to_batches(max_chunksize=size)


@settings(deadline=None)  # the first is slow: Arrow imports pandas
@given(st.lists(st.text()), st.integers(1, 9), st.integers(1, 300), st.integers(1, 100), st.integers(2, 4))
def test_every_row_comes_once_and_in_order_however_little_fits_into_memory(
    tmp_path_factory, keys, size, run_bytes, piece_bytes, max_runs
) -> None:
    folder = tmp_path_factory.mktemp("sort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "RUN_BYTES", run_bytes)
        patch.setattr(external_sort, "PIECE_BYTES", piece_bytes)
        patch.setattr(external_sort, "MAX_RUNS", max_runs)
        rows = [row for batch in sort_batches(_batches(keys, size), "key", folder) for row in batch.to_pylist()]
    assert rows == [{"key": key, "lists": [key, None]} for key in sorted(keys)]


def test_what_fits_into_memory_is_not_written(tmp_path: Path) -> None:
    assert sum(map(len, sort_batches(_batches(["b", "a", "c"], 2), "key", tmp_path))) == 3
    assert not list(tmp_path.iterdir())


def test_no_more_files_are_open_than_allowed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(external_sort, "RUN_BYTES", 1)
    monkeypatch.setattr(external_sort, "MAX_RUNS", 5)
    held: list[int] = []
    keys = [f"{number:03}" for number in range(100)]
    assert sum(map(len, sort_batches(_watched(_batches(keys, 1), tmp_path, held), "key", tmp_path))) == 100
    assert max(held) == 4, "the runs that wait for the next one"


def _watched(batches, folder: Path, held: list[int]):
    for batch in batches:
        held.append(len(list(folder.iterdir())))
        yield batch


def test_a_full_disk_is_an_error_with_its_number(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(external_sort, "RUN_BYTES", 1)
    (tmp_path / "run-00000.arrow").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        list(sort_batches(_batches(["b" * 100_000, "a"], 1), "key", tmp_path))
    assert caught.value.errno == errno.ENOSPC
