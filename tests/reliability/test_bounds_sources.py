"""Listings, tables, ground truths and retries take no more memory than their bounds say, however small they look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import bounded_json
from pipelines.bounded_json import BoundsError, JsonGuard, load_json
from pipelines.errors import SourceError
from pipelines.evaluation.ground_truth import InstanceTruth, read_ground_truth
from pipelines.layout import commit_name, data_name
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import write_plan
from pipelines.sources import tabular
from pipelines.sources.image_batches import file_batch, to_batches
from pipelines.sources.listing import list_images
from pipelines.storage.store import open_store
from pipelines.table.commits import parquet_bytes
from pipelines.table.schema import ANNOTATIONS, IMAGES
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import ImageRef, Reason, Status
from tests.reliability import bounded_calls as calls
from tests.support.peak_memory import Peak

Measure = Callable[..., Peak]

DEEP = '{"a":' * 120 + "1" + "}" * 120
NESTED = "[" * 400 + "]" * 400  # no parser minds, but ours and those that come after it do


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(DEEP, "nested more than 100 levels deep", id="objects"),
        pytest.param(NESTED, "nested more than 100 levels deep", id="lists"),
        pytest.param('{"images": [' + '{"file_name": "a.jpg", "x": ' + NESTED + "}]}", "nested", id="in an image"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_is_nested_deeply_is_refused_where_it_is(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=rf"{name}: .*{message}"):
        list(list_images(str(tmp_path / name)))


def test_deep_json_beside_an_image_and_in_a_prompt_and_in_a_truth_costs_only_itself(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "prompt_id": "p", "kind": "point", "coordinates": NESTED}]
    rows += [{"image_id": "a", "prompt_id": "q", "kind": "point", "coordinates": "1 2"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert calls.count_prompts(str(tmp_path / "prompts.jsonl")).startswith("1 coordinates is not JSON: it is nested")
    (tmp_path / "truth.json").write_text(NESTED)
    with pytest.raises(SourceError, match=r"truth\.json: not JSON: it is nested more than 100 levels"):
        calls.read_truth(str(tmp_path / "truth.json"))


def brackets_deep(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(brackets_deep, value.values()), default=0)
    return 1 + max(map(brackets_deep, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, "[[[[", {"b": 'quoted "[{" and \\\\'}], 'c" [': []},
        ["\\", '"', '\\"', [[["]]]]"]]]],
        "[[[",
        [[], {}, [{"": "\\\\"}]],
    ],
)
def test_only_brackets_outside_of_texts_count(monkeypatch: pytest.MonkeyPatch, value: Any, piece: int) -> None:
    data, depth = json.dumps(value).encode(), brackets_deep(value)
    for most in (depth, depth - 1):
        monkeypatch.setattr(bounded_json, "MAX_DEPTH", most)
        guard = JsonGuard()
        try:
            for start in range(0, len(data), piece):
                guard.feed(data[start : start + piece])
            is_passed = True
        except BoundsError:
            is_passed = False
        assert is_passed == (most >= depth)


def test_json_of_any_width_is_parsed_as_ever() -> None:
    value = [{"a": [1, 2, {"b": "\\"}], "ü": "]"}] * 1000
    assert load_json(json.dumps(value)) == value
    assert load_json(json.dumps(value).encode()) == value


def write_long(path: Path, start: bytes, num_bytes: int) -> Path:
    """A file that begins with something and goes on with zeros that take no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(num_bytes)
    return path


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.txt", b"a.jpg\n"),
        ("a.csv", b"uri\na.jpg\n"),
        ("a.tsv", b'uri\n"a.jpg'),
        ("a.jsonl", b'{"uri": "a.jpg"}\n'),
        ("a.json", b'{"images": [{"file_name": "a.jpg"}], "info": "'),
    ],
)
def test_a_line_without_end_is_refused_by_its_number(tmp_path: Path, peak: Measure, name: str, start: bytes) -> None:
    path = write_long(tmp_path / name, start, 800_000_000)
    found = peak(calls.count_listed, str(path))
    assert found.error == "SourceError"
    assert "16,777,216" in found.said or "not a whole JSON document" in found.said
    assert found.mb < 250


def test_a_row_of_csv_is_bounded_however_many_lines_and_fields_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabular, "MAX_ROW_CHARS", 1000)
    path = tmp_path / "a.csv"
    path.write_text("uri,note\n" + 'a.jpg,"x\n"\n' * 500)
    assert len(list(list_images(str(path)))) == 500
    path.write_text('uri,note\na.jpg,"' + "x\n" * 600 + '"\n')
    with pytest.raises(SourceError, match=r"a\.csv: line \d+ makes a row of more than 1,000 characters"):
        list(list_images(str(path)))


def test_an_entry_of_a_coco_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(40_000)]
    path.write_text(json.dumps({"images": images}))
    monkeypatch.setattr(bounded_json, "MAX_ENTRY_BYTES", 400_000)
    assert len(list(list_images(str(path)))) == 40_000
    path.write_text(json.dumps({"images": [{"file_name": "a.jpg", "x": [[1] * 3] * 200_000}]}))
    with pytest.raises(SourceError, match=r"a\.json: it holds an entry of more than 400,000 bytes"):
        list(list_images(str(path)))


def repeated(path: Path, value: str, rows: int, **columns: Any) -> Path:
    """A Parquet file with one long text in many rows, stored once."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    table = pa.table({**columns, "note": texts})
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=2**30)
    return path


@pytest.mark.parametrize("kind", ["uri", "image"])
def test_a_long_text_that_many_rows_share_is_not_held_for_each(tmp_path: Path, peak: Measure, kind: str) -> None:
    rows = 120
    column = {"uri": [f"{n}.jpg" for n in range(rows)], "image": [b"%d" % n for n in range(rows)]}[kind]
    path = repeated(tmp_path / "a.parquet", "x" * 4_000_000, rows, **{kind: column})
    assert path.stat().st_size < 1_000_000
    found = peak(calls.plan, str(path))
    assert (found.said, found.error) == ("120", None)
    assert found.mb < 300


def test_names_that_no_name_is_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"uri": "x" * 70_000}))
    with pytest.raises(SourceError, match=r"image 0 \(from 0\) has an id or a URI of more than 65,536 characters"):
        list(list_images(str(path)))


def test_of_further_columns_the_long_ones_are_left_out_and_the_others_stay(tmp_path: Path) -> None:
    row = {"uri": "a.jpg", "long": "x" * 70_000, "short": "y", **{f"c{n}": "z" * 60_000 for n in range(9)}}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (ref,) = list_images(str(path))
    assert sorted(json.loads(ref.source_columns or "")) == ["c0", "c1", "c2", "c3", "short"]


def test_a_batch_of_images_ends_where_its_characters_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.image_batches.BATCH_CHARS", 1000)
    refs = [ImageRef(image_id=f"{number}", uri="x", source_columns="y" * 300) for number in range(10)]
    assert [batch.num_rows for batch in to_batches(refs)] == [4, 4, 2]
    assert [batch.num_rows for batch in to_batches([])] == [0]


RUN = "r"


def write_quarantined(uri: str, shards: int, per_shard: int) -> None:
    """A run all of whose images are quarantined."""
    store = open_store(uri)
    names = [f"{number:08d}.jpg" for number in range(shards * per_shard)]
    nothing = [None] * len(names)
    with draft_plan([file_batch("/p/", names, nothing, nothing)], PlanConfig(images_per_shard=per_shard)) as draft:
        write_plan(store, RUN, draft, fingerprint={}, facts={}, driver_id="d")
    for number in range(shards):
        shard_id = f"shard-{number:05d}"
        ids = names[number * per_shard : (number + 1) * per_shard]
        values = {"image_id": ids, "uri": ids, "status": Status.QUARANTINED.value, "reason": Reason.TRUNCATED.value}
        values |= {"attempts": 0, "num_annotations": 0, "run_id": RUN, "shard_id": shard_id, "attempt": "d-0"}
        columns = [pa.array(_column(values.get(f.name), f, per_shard), f.type) for f in IMAGES]
        tables = {"images": pa.Table.from_arrays(columns, schema=IMAGES), "annotations": ANNOTATIONS.empty_table()}
        files = {}
        for kind, table in tables.items():
            data = parquet_bytes(table, kind, {})
            store.write(data_name(kind, RUN, shard_id, "d-0"), data)
            name = data_name(kind, RUN, shard_id, "d-0")
            files[kind] = DataFile(name=name, num_bytes=len(data), sha256="", rows=table.num_rows)
        commit = ShardCommit(
            run_id=RUN,
            shard_id=shard_id,
            attempt="d-0",
            **files,
            status_counts={Status.QUARANTINED.value: per_shard},
            reason_counts={},
        )
        store.create(commit_name(RUN, shard_id), commit.to_json())


def _column(value: Any, field: pa.Field, rows: int) -> list[Any]:
    if isinstance(value, list):
        return value
    return [([] if pa.types.is_list(field.type) and not field.nullable else None) if value is None else value] * rows


def test_a_retry_holds_no_more_of_many_images_than_of_few(tmp_path: Path, peak: Measure) -> None:
    def measured(shards: int) -> Iterator[Peak]:
        """Again and again: how many threads read at once, each of which keeps some memory, differs."""
        output = str(tmp_path / str(shards))
        write_quarantined(output, shards, 2500)
        while True:
            yield peak(calls.count_quarantined, output, RUN)

    # With fewer shards, some threads would have none to read.
    few = min(islice(measured(50), 3), key=attrgetter("mb"))
    assert few.said == "125000"
    # The least of up to six: on a busy machine one may be a megabyte more than another.
    for number, many in enumerate(measured(100), start=1):
        assert many.said == "250000"
        if many.mb < few.mb + 12 or number == 6:
            break
    assert many.mb < few.mb + 12


def test_regions_of_more_points_than_any_has_are_rejected_alone(tmp_path: Path) -> None:
    rows = [
        {"image_id": "a", "prompt_id": str(number), "kind": "scribble", "coordinates": [1, 2] * count}
        for number, count in enumerate((50_000, 50_001))
    ]
    rows.append({"image_id": "a", "prompt_id": "text", "text": "x" * 70_000})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    said = calls.count_prompts(str(path))
    assert said.startswith("1 100,002 coordinates are more than the 100,000 that a scribble may have")
    assert "the text has 70,000 characters; at most 65,536" in said


def truth(segmentation: Any, size: int = 100) -> dict[str, Any]:
    """A COCO file of one object."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": size, "width": size}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": segmentation}],
    }


def test_a_truth_whose_polygon_goes_far_around_is_left_out_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(truth([[0, 0, 90, 0, 90, 90]])))
    assert calls.read_truth(str(path), "a.jpg") == "1"
    for far, words in (
        ([[0, 0, 3_000_000, 0, 0, 90]], r"annotation 7 of a\.jpg \(polygon has a vertex at 3e\+06, beyond any image"),
        ([[0, 0, 90_000, 0, 0, 90] * 40], r"annotation 7 of a\.jpg \(its polygons have an outline of 7,203,600"),
    ):
        path.write_text(json.dumps(truth(far)))
        read = read_ground_truth(str(path))
        assert isinstance(read, InstanceTruth)
        assert read.objects("a.jpg") == []
        assert re.search(words, str(read.left_out))


def test_an_empty_or_ragged_mask_of_a_large_image_takes_no_dense_one(tmp_path: Path, peak: Measure) -> None:
    runs = {"size": [20_000, 20_000], "counts": [5, 0, 1, 400_000_000 - 6]}
    for segmentation, objects in (([], "0"), (runs, "1")):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(truth(segmentation, 20_000)))
        found = peak(calls.read_truth, str(path), "a.jpg")
        assert (found.said, found.error) == (objects, None)
        assert found.mb < 60


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_arrow_file_is_refused_before_it_is_unpacked(
    tmp_path: Path, peak: Measure, compression: str
) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"image": [bytes(300_000_000)]})
    with pa.OSFile(str(path), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(file, table.schema, options=options) as stream:
            stream.write_table(table)
    assert path.stat().st_size < 3_000_000
    found = peak(calls.count_listed, str(path))
    assert "compressed, so that no image in it can be read alone" in found.said
    assert found.mb < 60
