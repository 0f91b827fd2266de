"""Many rows at once give what one by one gives."""

from __future__ import annotations

import datetime
import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut
from pipelines.sources import tabular
from pipelines.sources.in_columns import chunks
from pipelines.sources.in_columns.column_json import columns_json_of_rows
from pipelines.sources.in_columns.plain_uris import plain_uris
from pipelines.sources.listing import list_images
from pipelines.sources.tabular import columns_json
from pipelines.sources.uri_lists import list_listed, resolve_uri

BASE64 = "iVBORw0KGgo" + "A" * 60
URIS = [
    "a.jpg", "a/b.jpg", "photos 2026/a b.jpg", "a", "a/b", "a,b;c.jpg", "50%.jpg", "%41.jpg", "a?b.jpg", "b#1.jpg",
    "=+@.jpg", "", " ", ".", "..", ".a.jpg", "./a.jpg", "../a.jpg", "a/../b.jpg", "a/./b.jpg", "a//b.jpg", "a.jpg/",
    "a/.b.jpg", "a./b.jpg", "~/a.jpg", "~a.jpg", "#1.jpg", "a\\b.jpg", "C:\\a.jpg", "C:/a.jpg", "\\\\host\\a.jpg",
    "a:b.jpg", "e\u0301.jpg", "é.jpg", "猫/1.jpg", "/a.jpg", "/a/../b.jpg", "//a.jpg", "/a\\b.jpg", "/é.jpg", "/a",
    "/9j/" + "A" * 60, "/9j/" + "A" * 60 + ".jpg", BASE64, "a\nb.jpg", "a\x00.jpg", "s3://b/a.jpg", "s3a://b/é.jpg",
    "gs://b/a?b#c", "s3://user:pw@b/a.jpg", "s3://b", "s3://b/a@b.jpg", "S3://b/a.jpg",
    "hf://datasets/u/n@main/a.jpg", "https://h/a.jpg", "https://h:80/a.jpg", "http://h/a.jpg?X-Amz-Signature=1",
    "https://h/a.jpg#sig=1", "https://u:p@h/a.jpg", "ftp://u@h/a.jpg", "file:///a.jpg", "file:/a.jpg",
    "file://localhost/a.jpg", "file:///a%20b.jpg", "data:image/png;base64,AAAA", "DATA:,", "/a/data:b.jpg",
    "x\t.jpg",
]  # fmt: skip


@pytest.mark.parametrize("folder", ["/data", "/", "/dätä", "/da\\ta", "s3://b/x", "s3://b/ü", "s3://b", "memory://x"])
def test_what_is_plain_is_made_absolute_as_one_by_one(folder: str) -> None:
    prefix = resolve_uri("x.jpg", folder, "place").removesuffix("x.jpg")
    uris, is_plain = plain_uris(pa.array([*URIS, None], pa.string()), prefix)
    assert not is_plain[-1]
    plain = dict(itertools.compress(zip(URIS, uris.to_pylist(), strict=False), is_plain))
    assert plain == {uri: resolve_uri(uri, folder, "place") for uri in plain}
    assert {"s3://b/a.jpg", "https://h/a.jpg", "/a.jpg"} <= set(plain)
    assert ("photos 2026/a b.jpg" in plain) == ((folder.isascii() and "\\" not in folder) or "://" in folder)


def test_many_rows_have_the_json_that_each_has() -> None:
    values: list[Any] = [
        "x",
        'q"',
        "\\",
        "\x1f\n",
        "\x7f\u2028é🌙",
        "",
        None,
        0,
        -1,
        2**70,
        True,
        False,
        0.1,
        1e300,
        -0.0,
    ]
    values += [float("nan"), float("inf"), [1, {"b": 1, "a": float("nan")}], {}, [], Decimal("1.5"), "y" * 70_000]
    values += [
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        b"x",
        {"k": None},
        "z" * 50_000,
    ]
    names = ["b", "a", 'n"', "é"]
    rows = [
        dict(zip(names, row, strict=True))
        for row in itertools.product(values, ["t", None, "z" * 50_000], [1, None], [None, 0.5])
    ]
    columns = {name: [row[name] for row in rows] for name in names}
    expected = [columns_json(row) for row in rows]
    assert columns_json_of_rows(columns, len(rows)).to_pylist() == expected
    for value in values:
        same = [value, None, value]
        assert columns_json_of_rows({"a": same}, 3).to_pylist() == [columns_json({"a": one}) for one in same]
    arrow = {"a": pa.array(["x", None, 'q"', "z" * 70_000]), "b": [None, None, 1, 2]}
    assert columns_json_of_rows(arrow, 4).to_pylist() == ['{"a": "x"}', None, '{"a": "q\\"", "b": 1}', '{"b": 2}']
    assert columns_json_of_rows({}, 2).to_pylist() == [None, None]


@pytest.mark.parametrize("block", [1, 3, 2**19])
def test_a_list_is_read_in_blocks_as_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(tabular, "_BLOCK_CHARS", block)
    (tmp_path / "#here.jpg").touch()
    data = "\ufeffa.jpg\r\n\n b 1.jpg \r# c.jpg\n#here.jpg\r\n\r\n/d/é.jpg\n\u2003e.jpg\u00a0\rs3://b/f.jpg"
    (tmp_path / "l.txt").write_bytes(data.encode())
    left_out = LeftOut()
    found = pa.Table.from_batches(list(list_listed(str(tmp_path / "l.txt"), None, left_out)))
    assert found["image_id"].to_pylist() == ["a.jpg", "b 1.jpg", "#here.jpg", "/d/é.jpg", "e.jpg", "s3://b/f.jpg"]
    assert found["uri"][0].as_py() == str(tmp_path / "a.jpg")
    assert left_out.commented == 1
    (tmp_path / "l.txt").write_bytes(data.encode() + b"\n\na.jpg 3\nb.jpg 4")
    with pytest.raises(SourceError, match=r"line 11: holds more than a URI: 'a\.jpg 3'"):
        list(list_listed(str(tmp_path / "l.txt"), None, left_out))


def test_a_line_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "_BLOCK_CHARS", 64)
    monkeypatch.setattr(tabular, "MAX_ROW_CHARS", 1000)
    (tmp_path / "l.txt").write_text("a.jpg\n" + "b" * 995 + ".jpg\n" + "c" * 996 + ".jpg\n")
    with pytest.raises(SourceError, match="line 3 makes a row of more than 1,000 characters"):
        list(list_listed(str(tmp_path / "l.txt"), None, LeftOut()))


@pytest.mark.parametrize("rows", [1, 2, 4096])
def test_of_several_faults_the_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(chunks, "_ROWS", rows)
    long = "x" * 70_000
    for name, text, told in (
        ("a.csv", 'uri,n\na.jpg,1\n,2\n"b', "row 1 "),
        ("b.csv", f"uri,n\n{long},1\n,2\nb,3,4", "image 0 "),
        ("c.csv", "uri,n\nC:\\a.jpg,1\n,2\nb,3,4", "row 0 "),
        ("d.jsonl", f'{{"uri": "a"}}\n{{"uri": "{long}"}}\n{{}}\nx', "image 1 "),
        ("e.jsonl", '{"uri": "a"}\n{"url": 3}\nx', "row 1 .from 0. has no URI in column 'uri' but None"),
        ("f.json", f'{{"images": [{{"file_name": "{long}"}}, {{"file_name": 1}}', "image 0 "),
        ("g.json", '{"images": [{"file_name": "a"}, {"file_name": 1}', "image 1 .from 0. has no file_name"),
        ("h.txt", f"a.jpg\n{long}\nC:\\a.jpg", "image 1 "),
        ("i.txt", f"a.jpg\nC:\\a.jpg\n{long}", "line 2"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=told):
            list(list_images(str(tmp_path / name)))


def test_values_that_many_rows_of_parquet_share_are_listed_in_small_pieces(tmp_path: Path) -> None:
    uris = pa.array([f"s3://b/{number}.jpg" for number in range(800)])
    text = pa.array(["t" * 40_000] * 800)
    pq.write_table(pa.table({"uri": uris, "text": text, "n": pa.array(range(800))}), tmp_path / "t.parquet")
    found = list(chunks.read_chunks(str(tmp_path / "t.parquet")))
    assert max(chunk.columns["text"].nbytes for chunk in found) < 2**24
    assert sum(chunk.num_rows for chunk in found) == 800
    refs = list(list_images(str(tmp_path / "t.parquet")))
    assert [ref.uri for ref in refs] == uris.to_pylist()
    assert refs[7].source_columns == columns_json({"text": "t" * 40_000, "n": 7})


def test_rows_that_may_be_large_by_their_dictionary_are_not_handed_on_in_small_numbers(tmp_path: Path) -> None:
    count = 60_000  # their dictionaries reach the megabyte at which writers go on without, so any value could have it
    columns = {
        "uri": [f"s3://photos/{number:06}/{'name' * 100}.jpg" for number in range(count)],
        "label": ["cup", "moon", None] * (count // 3),
        "id": [f"{number:020}" for number in range(count)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = list(chunks.read_chunks(str(tmp_path / "t.parquet")))
    assert {name: [v for one in found for v in pa.array(one.columns[name]).to_pylist()] for name in columns} == columns
    assert min(one.num_rows for one in found[:-1]) >= 4096 - 64
