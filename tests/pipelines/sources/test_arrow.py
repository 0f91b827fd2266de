from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pyarrow as pa
import pytest

from pipelines.errors import SourceError
from pipelines.sources.fetch import FetchError
from tests.support.containers import content, dataset, listed, picture

if TYPE_CHECKING:
    from datasets import Dataset


def numbered(count: int, *, first: int = 0) -> Dataset:
    rows = range(first, first + count)
    return dataset({str(number): picture(number) for number in rows}, label=list(rows))


def write_arrow(path: Path, columns: dict, *, is_file: bool = False, **options) -> Path:
    table = pa.table(columns)
    new = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def test_a_saved_dataset_is_a_source(tmp_path: Path) -> None:
    numbered(7).save_to_disk(tmp_path / "set", num_shards=2)
    refs = listed(tmp_path / "set")
    assert list(refs) == [f"{number}.png" for number in range(7)]
    assert [content(ref) for ref in refs.values()] == [picture(number) for number in range(7)]
    assert refs["6.png"].source_columns == '{"label": 6}'
    assert refs["6.png"].num_bytes == len(picture(6))


def test_all_splits_of_a_saved_dataset_are_a_source_or_one_of_them(tmp_path: Path) -> None:
    from datasets import DatasetDict

    splits = {"train": numbered(3), "test": numbered(2, first=3)}
    DatasetDict(splits).save_to_disk(tmp_path)
    assert sorted(listed(tmp_path)) == [f"{number}.png" for number in range(5)]
    assert list(listed(tmp_path / "test")) == ["3.png", "4.png"]
    assert list(listed(f"{tmp_path}/{{train,test}}/*.arrow")) == ["3.png", "4.png", "0.png", "1.png", "2.png"]


def test_what_datasets_keeps_beside_a_saved_dataset_is_no_part_of_it(tmp_path: Path) -> None:
    numbered(2).save_to_disk(tmp_path)
    shutil.copy(tmp_path / "data-00000-of-00001.arrow", tmp_path / "cache-1234.arrow")
    shutil.copy(tmp_path / "data-00000-of-00001.arrow", tmp_path / "tmp1234.arrow")
    assert list(listed(tmp_path)) == ["0.png", "1.png"]
    (tmp_path / "state.json").unlink()
    (tmp_path / "tmp1234.arrow").unlink()
    assert list(listed(tmp_path)) == ["0.png", "1.png"]


def test_a_dataset_written_as_parquet_is_a_source(tmp_path: Path) -> None:
    numbered(5).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    refs = listed(tmp_path)
    assert list(refs) == [f"{number}.png" for number in range(5)]
    assert [content(ref) for ref in refs.values()] == [picture(number) for number in range(5)]


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_arrow_streams_and_files_with_plain_values_are_read_from_their_bytes(
    tmp_path: Path, is_file: bool, kind: pa.DataType
) -> None:
    values = [picture(number) for number in range(8)]
    column = pa.array([None, b"", *values], kind)[2:]
    path = write_arrow(tmp_path / "a.arrow", {"n": list(range(8)), "image": column}, is_file=is_file)
    refs = listed(path)
    assert list(refs) == [f"a.arrow#{row:08d}" for row in range(8)]
    assert [content(ref) for ref in refs.values()] == values


def test_a_remote_dataset_gives_the_same_images(tmp_path: Path) -> None:
    numbered(7).save_to_disk(tmp_path / "set", num_shards=2)
    fs = fsspec.filesystem("memory")
    try:
        fs.put(str(tmp_path / "set"), "/remote/", recursive=True)
        local, remote = listed(tmp_path / "set"), listed("memory://remote")
        assert list(remote) == list(local)
        assert [content(ref) for ref in remote.values()] == [content(ref) for ref in local.values()]
    finally:
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]


def test_a_row_that_has_only_a_path_is_the_image_there_and_one_without_either_is_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"inside", "path": None}, {"bytes": None, "path": "x.png"}]
    path = write_arrow(tmp_path / "a.arrow", {"image": pa.array(rows, kind)})
    (tmp_path / "x.png").write_bytes(b"outside")
    assert [content(ref) for ref in listed(path).values()] == [b"inside", b"outside"]
    write_arrow(path, {"image": pa.array([*rows, None], kind)})
    with pytest.raises(SourceError, match=r"row 2 \(from 0\) holds no image"):
        listed(path)


@pytest.mark.parametrize("cut", [1, 8, 20, 200, 1000])
def test_an_arrow_file_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_arrow(tmp_path / "a.arrow", {"image": [picture(number) for number in range(9)]})
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(SourceError, match=r"a\.arrow: .*cut short"):
        listed(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "cut short", id="empty"),
        pytest.param(b"<html></html>" * 9, "not a readable Arrow file", id="html"),
    ],
)
def test_what_is_no_arrow_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\.arrow: {message}"):
        listed(tmp_path / "a.arrow")


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize(
    "values",
    [pa.array([b"a", b"b"], pa.binary_view()), pa.array([b"a", b"b"]).dictionary_encode()],
    ids=["binary view", "dictionary"],
)
def test_images_that_lie_in_no_one_place_of_an_arrow_file_are_refused(
    tmp_path: Path, values: pa.Array, is_struct: bool
) -> None:
    column = pa.StructArray.from_arrays([values], ["bytes"]) if is_struct else values
    path = write_arrow(tmp_path / "a.arrow", {"image": column})
    with pytest.raises(SourceError, match=r"a\.arrow: .*write it as Parquet"):
        listed(path)


def test_a_compressed_arrow_file_is_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = write_arrow(tmp_path / "a.arrow", {"image": [b"x" * 9999] * 3}, options=options)
    with pytest.raises(SourceError, match=r"a\.arrow: compressed, .* write it without compression"):
        listed(path)


def test_a_dataset_without_a_column_of_images_or_a_broken_state_says_so(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"n": [1]}).save_to_disk(tmp_path)
    with pytest.raises(SourceError, match="no column of images; it has n"):
        listed(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(SourceError, match="indices mapping; save it again"):
        listed(tmp_path)
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(SourceError, match=r"state\.json: not the state of a saved dataset"):
        listed(tmp_path)


def test_an_arrow_file_that_was_written_anew_gives_no_image_under_a_wrong_id(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", {"image": [b"one", b"two"]})
    before = listed(path)
    write_arrow(path, {"image": [b"two", b"one"]})
    with pytest.raises(FetchError, match="has changed since it was listed"):
        content(before["a.arrow#00000000"])
