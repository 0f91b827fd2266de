from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import SourceError
from pipelines.sources import parquet_values
from pipelines.sources.fetch import FetchError
from pipelines.sources.listing import list_images
from pipelines.sources.parquet_values import read_value
from pipelines.types import ImageRef, Reason
from tests.support.containers import content, listed, parquet_bytes

PICTURES = [f"image {number}".encode() * (number + 1) for number in range(10)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(columns, **options))
    return path


def structs(paths: list[str | None]) -> pa.Array:
    return pa.array([{"bytes": PICTURES[i], "path": path} for i, path in enumerate(paths)], STRUCT)


def test_rows_are_named_by_id_column_else_path_else_row_and_carry_other_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image_id": ["x", "y"], "image": structs(["p", "q"]), "label": [1, None]})
    write(tmp_path / "b.parquet", {"image": structs(["p.jpg", None]), "mask": pa.array([b"1", b"2"])})
    write(tmp_path / "c.parquet", {"jpg": PICTURES[:2], "caption": ["a", "b"], "other": [b"-", b"-"]})
    refs = listed(tmp_path / "a.parquet")
    assert {name: ref.source_columns for name, ref in refs.items()} == {
        "x": '{"image": {"path": "p"}, "label": 1}',
        "y": '{"image": {"path": "q"}}',
    }
    assert list(listed(tmp_path / "b.parquet")) == ["p.jpg", "b.parquet#00000001"]
    assert list(listed(tmp_path / "c.parquet")) == ["c.parquet#00000000", "c.parquet#00000001"]
    assert list(listed(tmp_path / "c.parquet", image_id_column="caption")) == ["a", "b"]
    for name in ("a", "b", "c"):
        assert [content(ref) for ref in list_images(str(tmp_path / f"{name}.parquet"))] == PICTURES[:2]


def dictionary(values: list[Any], kind: pa.DataType | None = None) -> pa.DictionaryArray:
    """These values, by a dictionary of them."""
    return pa.DictionaryArray.from_arrays(pa.array(range(len(values)), pa.int32()), pa.array(values, kind))


FORMS = {
    "large binary": pa.array(PICTURES, pa.large_binary()),
    "binary view": pa.array(PICTURES, pa.binary_view()),
    "dictionary": dictionary(PICTURES, pa.binary()),
    "dictionary of large binary": dictionary(PICTURES, pa.large_binary()),
    "dictionary inside a struct": pa.StructArray.from_arrays(
        [dictionary(PICTURES, pa.binary()), pa.array([None] * len(PICTURES), pa.string())], ["bytes", "path"]
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 3}], ids=str)
def test_bytes_are_images_in_whatever_form_arrow_holds_them(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.parquet", {"image": FORMS[form], "hint": dictionary(["é"] * len(PICTURES))}, **options)
    refs = list(list_images(str(path)))
    assert [ref.source_columns for ref in refs] == ['{"hint": "é"}'] * len(PICTURES)
    assert [content(ref) for ref in refs] == PICTURES


@pytest.mark.parametrize("form", [form for form in FORMS if "struct" not in form])  # a struct is sure to be an image
def test_bytes_beside_a_column_of_uris_stay_behind_in_whatever_form_arrow_holds_them(tmp_path: Path, form: str) -> None:
    uris = [f"{number}.png" for number in range(len(PICTURES))]
    path = write(tmp_path / "a.parquet", {"uri": dictionary(uris), "thumbnail": FORMS[form], "deep": lists(form)})
    assert {name: ref.source_columns for name, ref in listed(path).items()} == dict.fromkeys(uris)


def lists(form: str) -> pa.ListArray:
    """The same values, each in a list."""
    return pa.ListArray.from_arrays(pa.array(range(len(PICTURES) + 1), pa.int32()), FORMS[form])


def test_a_path_without_bytes_is_the_image_at_that_path(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "0.jpg").write_bytes(PICTURES[0])
    values = [("far/0.jpg", None), (str(tmp_path / "far" / "0.jpg"), None), ("in.jpg", PICTURES[1]), ("gone.jpg", None)]
    images = pa.array([{"bytes": data, "path": path} for path, data in values], STRUCT)
    refs = listed(write(tmp_path / "a.parquet", {"image": images}, row_group_size=2))
    assert [content(refs[path]) for path, _ in values[:3]] == [PICTURES[0], PICTURES[0], PICTURES[1]]
    # A row group that holds bytes of others is not read while it is listed.
    with pytest.raises(FetchError, match="has no bytes in column 'image'"):
        content(refs["gone.jpg"])


def test_a_path_that_is_not_the_id_is_carried(tmp_path: Path) -> None:
    for name in "ab":
        write(
            tmp_path / f"{name}.parquet", {"image": structs(["p.jpg", "q.jpg"]), "image_id": [f"{name}1", f"{name}2"]}
        )
    assert listed(tmp_path)["b2"].source_columns == '{"image": {"path": "q.jpg"}}'
    refs = listed(tmp_path, image_id_column="__row__")
    assert list(refs) == [f"{name}.parquet#0000000{row}" for name in "ab" for row in range(2)]
    assert json.loads(refs["b.parquet#00000001"].source_columns or "") == {"image": {"path": "q.jpg"}, "image_id": "b2"}


def test_a_folder_of_parquet_files_is_one_source(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"data/train-{number}.parquet", {"image": PICTURES[number : number + 2]})
    refs = listed(tmp_path)
    assert list(refs) == [f"data/train-{number}.parquet#0000000{row}" for number in range(3) for row in range(2)]
    assert [content(ref) for ref in refs.values()] == [PICTURES[n + row] for n in range(3) for row in range(2)]
    assert next(iter(listed(f"{tmp_path}/data/train-{{1..2}}.parquet"))) == "train-1.parquet#00000000"


def test_hugging_faces_metadata_says_which_column_holds_images(tmp_path: Path) -> None:
    kinds = {"sound": {"_type": "Audio"}, "picture": {"_type": "Image"}}
    table = pa.table({"sound": structs(["s"]), "picture": structs(["p"]), "jpg": [b"thumbnail"]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(listed(tmp_path / "a.parquet")) == ["p"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        pytest.param({"n": [1]}, {}, "no column of URIs", id="no-images"),
        pytest.param({"a": [b"1"], "b": [b"2"]}, {}, r"several columns .*\(a, b\).*image_column", id="two"),
        pytest.param({"jpg": [b"1"], "png": [b"2"]}, {}, r"several columns .*\(jpg, png\)", id="two-usual"),
        pytest.param({"jpg": [b"1"], "url": ["x"]}, {}, r"both images .*jpg\) and URIs .*url\)", id="both"),
        pytest.param({"a": [b"1"]}, {"image_column": "c"}, "no column 'c'; it has a", id="missing"),
        pytest.param({"a": [1]}, {"image_column": "a"}, "column 'a' is int64, no image", id="no-bytes"),
        pytest.param({"a": [b"1"]}, {"image_id_column": "k"}, "no column 'k' for image ids", id="missing-id"),
        pytest.param({"a": pa.array([], pa.binary())}, {}, "no images found inside it", id="no-rows"),
    ],
)
def test_a_table_that_cannot_be_read_in_one_way_says_what_to_do(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], message: str
) -> None:
    with pytest.raises(SourceError, match=rf"a\.parquet: .*{message}"):
        listed(write(tmp_path / "a.parquet", columns), **options)


def test_a_table_of_both_is_read_as_what_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": [b"1"], "url": ["x.jpg"]})
    assert [ref.uri for ref in listed(path, uri_column="url").values()] == [str(tmp_path / "x.jpg")]
    assert [content(ref) for ref in listed(path, image_column="jpg").values()] == [b"1"]


PNG = b"\x89PNG\r\n"
ODD_TYPES: dict[str, tuple[pa.DataType, Any, str]] = {
    "fixed size": (pa.binary(6), PNG, r"write it as binary: column\.cast\(pa\.binary\(\)\)"),
    "list": (pa.list_(pa.uint8()), list(PNG), r"bytes of each picture as binary: pa\.array\(\[bytes\(one\)"),
    "long list": (pa.large_list(pa.int64()), list(PNG), "write the bytes of each picture as binary"),
    "struct": (pa.struct([("bytes", pa.list_(pa.uint8()))]), {"bytes": list(PNG)}, "the bytes of each picture"),
    "pixels": (pa.list_(pa.list_(pa.uint8())), [[0, 1], [1, 0]], "each array of pixels as a picture"),
}


@pytest.mark.parametrize("name", ["image", "photo"])
@pytest.mark.parametrize("form", ODD_TYPES)
def test_images_of_types_that_are_not_read_are_told_with_how_to_write_them(
    tmp_path: Path, form: str, name: str
) -> None:
    kind, value, words = ODD_TYPES[form]
    table = pa.table({name: pa.array([value], kind), "label": ["a"]})
    for path, column in ((tmp_path / "t.parquet", None), (tmp_path / "t.parquet", name), (tmp_path / "t.arrow", None)):
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        with pytest.raises(SourceError, match=rf"{path.name}: .*column '{name}' \(.*\) is meant, .*{words}"):
            list(list_images(str(path), image_column=column))
    # Beside URIs, hashes and embeddings are nothing but further columns.
    pq.write_table(table.append_column("path", pa.array(["a.jpg"])).rename_columns(["x", "label", "path"]), path)
    path.rename(tmp_path / "u.parquet")
    assert [ref.image_id for ref in list_images(str(tmp_path / "u.parquet"))] == ["a.jpg"]


def test_a_parquet_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": PICTURES})
    path.write_bytes(path.read_bytes()[:-20])
    for source in (path, tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(SourceError, match=r"a\.parquet: not a readable Parquet file"):
            listed(source)


def test_values_that_are_long_are_not_carried(tmp_path: Path) -> None:
    columns = {"jpg": [b"1"], "long": ["x" * 70_000], "short": ["y"]}
    (ref,) = listed(write(tmp_path / "a.parquet", columns)).values()
    assert ref.source_columns == '{"short": "y"}'


def test_parquet_beside_image_files_is_passed_over_unless_it_holds_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    write(tmp_path / "metadata.parquet", {"file_name": ["a.jpg"], "label": [1]})
    assert list(listed(tmp_path)) == ["a.jpg"]
    for columns in ({"image": [b"1"]}, {"first": [b"1"], "second": [b"2"]}):
        write(tmp_path / "data.parquet", columns)
        with pytest.raises(SourceError, match=r"holds image files, and 2 \.parquet files with images inside"):
            listed(tmp_path)


def test_several_kinds_of_files_with_images_are_refused_with_how_to_say_it(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"1"]})
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds 1 \.\w+ file and 1 \.\w+ file: say which with a pattern"):
        listed(tmp_path)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.binary(max_size=500), min_size=1, max_size=40),
    group=st.integers(1, 15),
    has_struct=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_fetched_bytes_are_exactly_the_values(tmp_path: Path, values, group, has_struct, order) -> None:
    column = pa.array([{"bytes": value} for value in values], pa.struct([("bytes", pa.binary())]))
    path = write(
        tmp_path / "a #%?.parquet",
        {"x": list(range(len(values))), "odd #&=name": column if has_struct else values},
        row_group_size=group,
    )
    refs = list(list_images(str(path), image_column="odd #&=name"))
    places = list(range(len(refs)))
    order.shuffle(places)
    assert all(content(refs[place]) == values[place] for place in places)


def test_neighbors_do_not_read_their_row_group_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": PICTURES}, row_group_size=4)
    reads, read = [], pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, **options: Any) -> Iterator[pa.RecordBatch]:
        reads.append((*options["row_groups"], options["columns"]))
        return read(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    refs = list(listed(path).values())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(content, refs * 5)) == PICTURES * 5
    assert sorted(reads) == [(0, ["jpg"]), (1, ["jpg"]), (2, ["jpg"])]


def test_what_is_kept_for_neighbors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_values, "_HELD_BYTES", 3000)
    monkeypatch.setattr(parquet_values, "_HELD_FILES", 2)
    monkeypatch.setattr(parquet_values, "_CACHE", parquet_values._Cache())
    for name in "abc":
        write(tmp_path / f"{name}.parquet", {"jpg": [bytes([i]) * 500 for i in range(20)]}, row_group_size=2)
    for ref in listed(tmp_path).values():
        assert len(content(ref)) == 500
        assert sum(chunk.nbytes for chunk in parquet_values._CACHE.chunks.values()) <= 3000
        assert len(parquet_values._CACHE.files) <= 2


def test_a_row_group_too_large_to_read_one_image_from_is_refused_before_anything_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": [bytes([i]) * 1000 for i in range(20)]}, row_group_size=10)
    (ref, *_) = listed(path).values()
    monkeypatch.setattr(parquet_values, "MAX_CHUNK_BYTES", 5000)
    monkeypatch.setattr(parquet_values, "_CACHE", parquet_values._Cache())
    with pytest.raises(SourceError, match=r"row group 0 holds .* bytes of images.*row_group_size=100"):
        listed(path)
    with pytest.raises(FetchError, match="row group 0 holds") as caught:
        content(ref)
    assert caught.value.reason == Reason.TOO_MANY_BYTES


def test_an_image_over_the_limit_or_missing_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": [bytes(2000), None]})
    large, missing = listed(path).values()
    for ref, reason in ((large, Reason.TOO_MANY_BYTES), (missing, Reason.NOT_FOUND)):
        with pytest.raises(FetchError) as caught:
            content(ref, max_bytes=1000)
        assert caught.value.reason == reason


def test_a_parquet_file_that_was_written_anew_gives_no_image_under_a_wrong_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": PICTURES}, row_group_size=4)
    before = listed(path)
    assert content(before["a.parquet#00000003"]) == PICTURES[3]
    write(path, {"jpg": PICTURES[::-1]}, row_group_size=4)
    with pytest.raises(FetchError, match="has changed since it was listed"):
        content(before["a.parquet#00000004"])
    after = listed(path)
    assert content(after["a.parquet#00000003"]) == PICTURES[6]
    assert all(before[name].etag != after[name].etag for name in before)


@pytest.mark.parametrize("place", ["#column=jpg&row=10", "#column=nix&row=0"])
def test_a_place_that_is_not_there_is_a_reason_not_a_crash(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": PICTURES})
    with pytest.raises(FetchError) as caught:
        content(ImageRef(image_id="x", uri=f"{path}{place}"))
    assert caught.value.reason == Reason.FETCH_FAILED


def test_threads_that_read_different_files_agree(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.parquet", {"jpg": [p + bytes([n]) for p in PICTURES]}) for n in range(4)]
    barrier = threading.Barrier(4)

    def read(number: int) -> list[bytes | None]:
        barrier.wait()
        return [read_value(str(paths[number]), None, "jpg", row) for row in range(10)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [[p + bytes([n]) for p in PICTURES] for n in range(4)]
