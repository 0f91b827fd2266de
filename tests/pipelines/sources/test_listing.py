from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipelines.errors import SourceError
from pipelines.image_formats import IMAGE_EXTENSIONS, LeftOut
from pipelines.sources.fetch import fetch
from pipelines.sources.listing import list_images
from pipelines.types import ImageRef
from tests.support.seaweed import S3Server

ODD_NAMES = [
    "with space.jpg",
    "hash #1.jpg",
    "what?.jpg",
    "100%.jpg",
    "%20.jpg",
    "plus+and&.jpg",
    "[brackets].jpg",
    "star*.jpg",
    "ünïcode-写真.jpg",
    "quote'\".jpg",
    "semi;colon,comma.jpg",
    " leading.jpg",
    "~tilde.jpg",
    "back\\slash.jpg",
]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())


def ids(source: Any, **options: Any) -> list[str]:
    return sorted(ref.image_id for ref in list_images(str(source), **options))


def content(ref: ImageRef) -> str:
    return fetch(ref, options=None, max_bytes=1000, timeout_s=10).decode()


@pytest.fixture
def memory() -> Iterator[Callable[[dict[str, bytes]], None]]:
    fs = fsspec.filesystem("memory")

    def put(files: dict[str, bytes]) -> None:
        for path, data in files.items():
            fs.pipe_file(path, data)

    yield put
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def bucket(s3: S3Server) -> tuple[str, Callable[[dict[str, bytes]], None]]:
    """A prefix of its own in a real bucket, and a way to fill it."""
    prefix = f"bkt/sources-{secrets.token_hex(4)}"

    def put(files: dict[str, bytes]) -> None:
        fs = fsspec.filesystem("s3")
        for name, data in files.items():
            fs.pipe_file(f"{prefix}/{name}", data)

    return f"s3://{prefix}", put


def test_folder_lists_images_below_it_with_ids_relative_to_it(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "deep/er/b.PNG", "notes.txt", "noext", "c.jpg.part"])
    refs = sorted(list_images(str(tmp_path)), key=lambda ref: ref.image_id)
    assert [ref.image_id for ref in refs] == ["a.jpg", "deep/er/b.PNG"]
    assert [ref.uri for ref in refs] == [str(tmp_path / "a.jpg"), str(tmp_path / "deep/er/b.PNG")]


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_every_image_extension_counts_in_any_case(tmp_path: Path, extension: str) -> None:
    fill(tmp_path, [f"a{extension}", f"b{extension.upper()}"])
    assert len(ids(tmp_path)) == 2


def test_a_file_named_like_an_image_is_listed_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>")
    assert ids(tmp_path) == ["empty.jpg", "page.jpg"]


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "{}/."])
def test_a_folder_may_be_written_in_several_ways(tmp_path: Path, form: str) -> None:
    fill(tmp_path, ["sub/a.jpg"])
    (ref,) = list_images(form.format(tmp_path))
    assert (ref.image_id, ref.uri) == ("sub/a.jpg", str(tmp_path / "sub/a.jpg"))


def test_relative_folder_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, ["photos/a.jpg"])
    monkeypatch.chdir(tmp_path)
    (ref,) = list_images("photos")
    assert ref.uri == str(tmp_path / "photos/a.jpg")


def test_local_size_and_etag_come_from_the_file_and_change_with_it(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg"])
    (before,) = list_images(str(tmp_path))
    assert before.num_bytes == (tmp_path / "a.jpg").stat().st_size
    assert list(list_images(str(tmp_path))) == [before]
    os.utime(tmp_path / "a.jpg", ns=(0, 0))
    (after,) = list_images(str(tmp_path))
    assert before.etag != after.etag == f"0-{before.num_bytes:x}"


def test_one_image_file_is_a_source(tmp_path: Path) -> None:
    fill(tmp_path, ["only.jpg", "other.jpg"])
    (ref,) = list_images(str(tmp_path / "only.jpg"))
    assert (ref.image_id, ref.uri) == ("only.jpg", str(tmp_path / "only.jpg"))


def test_odd_names_survive_listing_and_fetching_locally(tmp_path: Path) -> None:
    fill(tmp_path, ODD_NAMES)
    refs = list(list_images(str(tmp_path)))
    assert {ref.image_id for ref in refs} == set(ODD_NAMES)
    assert all(content(ref) == f"content of {ref.image_id}" for ref in refs)


def test_names_that_are_not_utf8_are_named_in_the_error(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(SourceError, match=r"caf.*not UTF-8"):
        list(list_images(str(tmp_path)))


def test_linked_folders_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    fill(tmp_path, ["data/a.jpg", "elsewhere/b.jpg"])
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/up").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    assert ids(tmp_path / "data") == ["a.jpg", "link/b.jpg"]
    assert ids(tmp_path / "alias") == ["a.jpg", "link/b.jpg"]


def test_folders_that_are_linked_into_each_other_are_walked_once(tmp_path: Path) -> None:
    fill(tmp_path, ["one/1.jpg", "two/2.jpg"])
    (tmp_path / "one/over").symlink_to(tmp_path / "two")
    (tmp_path / "two/back").symlink_to(tmp_path / "one")
    assert ids(tmp_path / "one") == ["1.jpg", "over/2.jpg"]


def test_a_dangling_link_is_listed_so_that_it_is_reported(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (ref,) = list_images(str(tmp_path))
    assert (ref.image_id, ref.num_bytes, ref.etag) == ("gone.jpg", None, None)


def test_a_bucket_of_several_pages_is_listed_whole(bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, put = bucket
    names = [f"{folder}/{number}.jpg" for folder in ("a", "b") for number in range(4)]
    put(dict.fromkeys([*names, "a/notes.txt"], b"1"))
    calls, call = [], S3FileSystem.call_s3

    def two_keys_a_page(self: S3FileSystem, method: str, **request: Any) -> Any:
        calls.append(method)
        return call(self, method, **request, MaxKeys=2)

    monkeypatch.setattr(S3FileSystem, "call_s3", two_keys_a_page)
    assert ids(uri) == names
    assert len(calls) >= 5


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/c.jpg"]),
        ("**", ["a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png"]),
        ("x/*.jpg", ["b.jpg"]),
        ("*/*.jpg", ["x/b.jpg"]),
        ("x/**/?.png", ["y/d.png"]),
        ("x/y/[ab]*.jpg", []),
        ("x/y/[cd].*", ["c.jpg", "d.png"]),
        ("x/{b,y/c}.jpg", ["b.jpg", "y/c.jpg"]),
        ("{x,nix}/**/*.{jpg,png}", ["x/b.jpg", "x/y/c.jpg", "x/y/d.png"]),
    ],
)
def test_glob_matches_alike_everywhere(
    place: str, pattern: str, expected: list[str], tmp_path: Path, memory, request: pytest.FixtureRequest
) -> None:
    names = ["a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", "x/y/e.txt"]
    if place == "local":
        fill(tmp_path, names)
        base = str(tmp_path)
    elif place == "memory":
        memory({f"/glob/{name}": b"1" for name in names})
        base = "memory://glob"
    else:
        base, put = request.getfixturevalue("bucket")
        put(dict.fromkeys(names, b"1"))
    if expected:
        assert ids(f"{base}/{pattern}") == expected
    else:
        with pytest.raises(SourceError, match="no images found"):
            ids(f"{base}/{pattern}")


def test_a_folder_whose_name_holds_wildcards_is_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, ["trip [2019]*/a.jpg", "trip 2/b.jpg", "{a,b}/c.jpg", "a/d.jpg"])
    assert ids(tmp_path / "trip [2019]*") == ["a.jpg"]
    assert ids(tmp_path / "{a,b}") == ["c.jpg"]


def test_memory_prefix_lists_and_fetches(memory) -> None:
    memory({"/m/a.jpg": b"one", "/m/s/b #?.jpg": b"two", "/mm/c.jpg": b"three"})
    refs = {ref.image_id: ref for ref in list_images("memory://m")}
    assert {name: content(ref) for name, ref in refs.items()} == {"a.jpg": "one", "s/b #?.jpg": "two"}
    assert refs["a.jpg"].num_bytes == 3


def test_s3_prefix_gives_ids_sizes_and_etags_and_odd_keys_survive(bucket) -> None:
    prefix, put = bucket
    names = [name for name in ODD_NAMES if "\\" not in name]  # this server turns a backslash into a slash
    put({f"odd/{name}": f"content of {name}".encode() for name in names})
    put({"odd2/a.jpg": b"not below the prefix"})
    refs = list(list_images(f"{prefix}/odd"))
    assert {ref.image_id for ref in refs} == set(names)
    for ref in refs:
        data = f"content of {ref.image_id}".encode()
        assert ref.uri == f"{prefix}/odd/{ref.image_id}"
        assert content(ref) == data.decode()
        assert ref.num_bytes == len(data)
        assert ref.etag == hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("name", ["/odd", "a//odd", "a/./odd", "a\\odd"])
def test_a_prefix_that_the_server_takes_for_another_is_refused(bucket, name: str) -> None:
    prefix, put = bucket
    put({"odd/x.jpg": b"1", "a/odd/x.jpg": b"1"})
    with pytest.raises(SourceError, match="which stores take differently: leave it out"):
        ids(f"{prefix}/{name}")


def test_a_prefix_whose_keys_come_under_another_name_gives_no_wrong_ids(bucket) -> None:
    prefix, put = bucket
    put({"x.jpg": b"1"})
    with pytest.raises(SourceError, match=r"the store lists 'sources-.*/x\.jpg'; it holds an empty folder name"):
        ids(prefix.replace("s3://bkt/", "s3://bkt//"))


def test_s3_listing_is_one_request_not_one_for_each_file(bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiobotocore.client import AioBaseClient

    prefix, put = bucket
    put({f"{i % 4}/{i}.jpg": b"1" for i in range(40)})
    requests = []
    original = AioBaseClient._make_api_call

    async def counted(self: AioBaseClient, operation: str, params: dict[str, Any]) -> Any:
        requests.append(operation)
        return await original(self, operation, params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    assert len(ids(prefix)) == 40
    assert requests == ["ListObjectsV2"]


def test_hidden_files_and_exports_are_left_out_of_every_store_alike(bucket, tmp_path: Path, memory) -> None:
    clutter = ["._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg/x.jpg", "__MACOSX/a.jpg", "x/._t.tar"]
    exported = [
        "to/.xsam-label-export",
        "to/data.yaml",
        "to/images/train/a.jpg",
        "x/to/.xsam-label-export",
        "x/to/1.png",
    ]
    names = ["a.jpg", "to.jpg", "to/b.jpg.txt", "x/_1.jpg", *clutter, *exported, "scan.dcm"]
    prefix, put = bucket
    put(dict.fromkeys(names, b"1"))
    fill(tmp_path, names)
    memory({f"/hidden/{name}": b"1" for name in names})
    for source in (prefix, tmp_path, "memory://hidden"):
        left_out = LeftOut()
        assert ids(source, left_out=left_out) == ["a.jpg", "to.jpg", "x/_1.jpg"]
        assert (left_out.hidden, left_out.exported, left_out.formats) == (4, 2, {".dcm": 1})
        assert ids(f"{source}/**/*.jpg") == ["a.jpg", "to.jpg", "x/_1.jpg"]
    # An export is a source as well as any other folder, if it is named.
    assert ids(f"{prefix}/to") == ids(tmp_path / "to") == ids("memory://hidden/to") == ["images/train/a.jpg"]


def test_archived_objects_are_listed_and_counted(bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, put = bucket
    put(dict.fromkeys(["a.jpg", "b.jpg", "c.txt", "d.jpg"], b"1"))
    classes = {"a.jpg": "GLACIER", "b.jpg": "GLACIER_IR", "c.txt": "GLACIER", "d.jpg": "DEEP_ARCHIVE"}
    call = S3FileSystem.call_s3

    def archived(self: S3FileSystem, method: str, **request: Any) -> Any:
        page = call(self, method, **request)
        for item in page["Contents"]:
            item["StorageClass"] = classes[item["Key"].rpartition("/")[2]]
        return page

    monkeypatch.setattr(S3FileSystem, "call_s3", archived)
    left_out = LeftOut()
    assert ids(prefix, left_out=left_out) == ["a.jpg", "b.jpg", "d.jpg"]
    assert left_out.archived == 2
    assert "2 images are archived" in left_out.say()[0]


def test_s3_listing_is_never_stale(bucket) -> None:
    prefix, put = bucket
    put({"a.jpg": b"1"})
    assert ids(prefix) == ["a.jpg"]
    put({"b.jpg": b"1"})
    assert ids(prefix) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("s3://no-such-bucket/x", r"no-such-bucket.*not found.*NoSuchBucket", id="missing-bucket"),
        pytest.param("s3://bkt/nothing-here", r"no images found.*\.jpg.*0 other files", id="empty-prefix"),
        pytest.param("s3://", r"names no bucket", id="no-bucket-named"),
        pytest.param("s3://bkt/none.txt", r"none.txt: not found", id="missing-list"),
        pytest.param("ftp://host/x", r"protocol 'ftp' is not supported", id="protocol"),
    ],
)
def test_unusable_remote_source_says_what_is_wrong(s3: S3Server, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(list_images(source))


@pytest.mark.parametrize("source", ["s3://bkt/x", "s3://bkt/x/*.jpg", "s3://bkt/list.txt"])
def test_wrong_secret_is_a_source_error(s3: S3Server, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(SourceError, match=r"access denied.*check the credentials"):
        list(list_images(source))


def test_endpoint_that_does_not_answer_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    options = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(SourceError, match="does not answer"):
        list(list_images("s3://photos/x", storage_options=options))


@pytest.mark.parametrize("name", ["list.txt", "table.csv", "table.jsonl"])
def test_a_signed_uri_is_refused_by_its_place_and_not_shown(tmp_path: Path, name: str) -> None:
    signed = "https://photos.s3.amazonaws.com/b.jpg?X-Amz-Signature=hunter2"
    text = {
        "list.txt": f"a.jpg\n{signed}\n",
        "table.csv": f"uri\na.jpg\n{signed}\n",
        "table.jsonl": f'{{"uri": "a.jpg"}}\n{{"uri": "{signed}"}}\n',
    }[name]
    (tmp_path / name).write_text(text)
    place = "line 2" if name == "list.txt" else r"row 1 \(from 0\)"
    with pytest.raises(SourceError, match=f"{name}: {place}: the URI carries a signature or token") as refused:
        list(list_images(str(tmp_path / name)))
    assert "hunter2" not in str(refused.value)


def test_missing_folder_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere.*not found"):
        list(list_images(str(tmp_path / "nowhere")))


def test_folder_without_images_says_what_was_looked_for_and_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path, ["a.dcm", "b/c.txt"])
    with pytest.raises(
        SourceError, match=r"no images found: looked for \.jpg.*2 other files are there; 1 \.dcm left out"
    ) as caught:
        list(list_images(str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_subfolder_is_an_error_never_a_silent_gap(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jpg", "locked/b.jpg"])
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(SourceError, match="access denied"):
            list(list_images(str(tmp_path)))
    finally:
        (tmp_path / "locked").chmod(0o755)


def test_limit_stops_early_and_does_not_read_on(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\na.jpg\n")
    assert ids(tmp_path / "list.txt", limit=2) == ["a.jpg", "b.jpg"]


def test_list_file_keeps_uris_as_ids_and_resolves_relative_ones_from_its_folder(tmp_path: Path) -> None:
    lines = ["# a comment", "", "a b.jpg", "  sub/../c#1.jpg  ", "/abs/d.jpg", "s3://bkt/e?.jpg", "./#f.jpg", "g.dat"]
    (tmp_path / "list.lst").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    refs = list(list_images(str(tmp_path / "list.lst")))
    assert [(ref.image_id, ref.uri) for ref in refs] == [
        ("a b.jpg", str(tmp_path / "a b.jpg")),
        ("sub/../c#1.jpg", str(tmp_path / "c#1.jpg")),
        ("/abs/d.jpg", "/abs/d.jpg"),
        ("s3://bkt/e?.jpg", "s3://bkt/e?.jpg"),
        ("./#f.jpg", str(tmp_path / "#f.jpg")),
        ("g.dat", str(tmp_path / "g.dat")),
    ]
    assert refs[0].num_bytes is None
    assert refs[0].etag is None


def test_a_line_of_a_list_is_a_comment_unless_a_file_has_that_name(tmp_path: Path) -> None:
    (tmp_path / "#1.jpg").touch()
    (tmp_path / "list.txt").write_text("# data:image/png;base64,AA\n#1.jpg\n#2.jpg\n3.jpg\n")
    assert ids(tmp_path / "list.txt") == ["#1.jpg", "3.jpg"]


def test_list_in_a_bucket_resolves_inside_the_bucket(bucket) -> None:
    prefix, put = bucket
    put({"lists/l.txt": "x é.jpg\n../top.jpg\n".encode()})
    refs = list(list_images(f"{prefix}/lists/l.txt"))
    assert [ref.uri for ref in refs] == [f"{prefix}/lists/x é.jpg", f"{prefix}/top.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"# nothing\n\n", "no images found", id="no-uris"),
        pytest.param(b"a.jpg\ncaf\xe9.jpg\n", "not UTF-8", id="latin-1"),
    ],
)
def test_broken_list_says_where(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(SourceError, match=message):
        list(list_images(str(tmp_path / "list.txt")))


ROWS = [
    {"id": "one", "file": "a #1.jpg", "split": "train", "n": "3"},
    {"id": "two", "file": "s3://bkt/b.jpg", "split": None, "n": None},
]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        cells = [columns, *([str(row.get(name) or "") for name in columns] for row in rows)]
        path.write_text("\n".join(delimiter.join(line) for line in cells) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".CSV"])
def test_table_carries_ids_uris_and_further_columns(tmp_path: Path, extension: str) -> None:
    source = write_table(tmp_path / f"t{extension}", ROWS)
    refs = list(list_images(str(source), image_id_column="id", uri_column="file"))
    assert refs == [
        ImageRef(image_id="one", uri=str(tmp_path / "a #1.jpg"), source_columns='{"n": "3", "split": "train"}'),
        ImageRef(image_id="two", uri="s3://bkt/b.jpg"),
    ]


@pytest.mark.parametrize("column", ["uri", "url", "path", "image", "image_uri", "file_name"])
def test_table_finds_its_columns_by_name(tmp_path: Path, column: str) -> None:
    source = write_table(tmp_path / "t.csv", [{"x": "1", column: "a.jpg"}, {"x": "2", column: "b.jpg"}])
    assert ids(source) == ["a.jpg", "b.jpg"]


def test_table_prefers_uri_and_takes_image_id_by_name(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.csv", [{"file_name": "f", "image_id": "7", "uri": "a.jpg"}])
    (ref,) = list_images(str(source))
    assert (ref.image_id, ref.uri, ref.source_columns) == ("7", str(tmp_path / "a.jpg"), '{"file_name": "f"}')


def test_row_without_an_id_falls_back_to_its_uri(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.jsonl", [{"image_id": 5, "uri": "a.jpg"}, {"image_id": None, "uri": "b.jpg"}])
    assert ids(source) == ["5", "b.jpg"]


def test_csv_quotes_protect_delimiters_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('uri,note\n"a, b.jpg","two\nlines"\n', encoding="utf-8")
    (ref,) = list_images(str(tmp_path / "t.csv"))
    assert ref.image_id == "a, b.jpg"
    assert json.loads(ref.source_columns or "") == {"note": "two\nlines"}


@pytest.mark.parametrize("text", ["a.jpg\nb.jpg\n", "1;/p/a.JPG;cat\n2;/p/b.JPG;dog\n"])
def test_a_table_without_a_first_line_of_names_is_told_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(
        SourceError, match=r"a\.(jpg|JPG)' is no name of a column: write a first line that names the col"
    ):
        list(list_images(str(tmp_path / "t.csv")))


def test_further_columns_of_parquet_become_plain_json_and_pixels_stay_behind(tmp_path: Path) -> None:
    row = {
        "uri": "a.jpg",
        "score": 0.5,
        "nan": float("nan"),
        "when": datetime.datetime(2024, 5, 17, 12, 30),
        "tags": ["ü", None],
        "nested": {"b": 1, "a": float("inf")},
        "missing": None,
        "pixels": b"\x89PNG",
        "image": {"bytes": b"\x89PNG", "path": "x"},
        "took": datetime.timedelta(seconds=2),
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    (ref,) = list_images(str(tmp_path / "t.parquet"), uri_column="uri")
    assert ref.source_columns == (
        '{"nested": {"a": null, "b": 1}, "score": 0.5, "tags": ["ü", null], "took": "0:00:02", '
        '"when": "2024-05-17T12:30:00"}'
    )


def test_large_parquet_keeps_its_order_over_many_batches(tmp_path: Path) -> None:
    uris = [f"{i}.jpg" for i in range(10_000)]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "t.parquet", row_group_size=999)
    assert [ref.image_id for ref in list_images(str(tmp_path / "t.parquet"))] == uris


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        pytest.param("t.csv", b"a,b\n1,2\n", {}, r"no column of URIs \(uri, url.*it has a, b", id="no-uri-column"),
        pytest.param("t.csv", b"uri\nx\n", {"uri_column": "link"}, "no column 'link'.*it has uri", id="given-uri"),
        pytest.param("t.csv", b"uri\nx\n", {"image_id_column": "key"}, "no column 'key' for image ids", id="given-id"),
        pytest.param("t.csv", b"uri,n\nx,1\n,2\n", {}, "row 1 .* has no URI", id="empty-uri"),
        pytest.param("t.csv", b"uri\n", {}, "table has no rows", id="header-only"),
        pytest.param("t.csv", b"", {}, "table has no rows", id="empty-file"),
        pytest.param("t.csv", b"uri,n\nx,1,2\n", {}, "line 2 has 3 fields, the header 2", id="too-many-fields"),
        pytest.param("t.csv", b"uri,uri\nx,y\n", {}, "occurs twice in the header", id="column-twice"),
        pytest.param("t.csv", b'uri\n"x\n', {}, "line 2: .*", id="open-quote"),
        pytest.param("t.csv", b"uri\ncaf\xe9\n", {}, "not UTF-8", id="latin-1"),
        pytest.param("t.jsonl", b'{"uri": "x"}\n{"uri": \n', {}, "line 2 is not JSON", id="bad-json"),
        pytest.param("t.jsonl", b'{"uri": "x", "n": "\\ud800"}\n', {}, "line 1 is not JSON.*surrogate", id="half-pair"),
        pytest.param("t.jsonl", b'["x"]\n', {}, "line 1 holds list, not an object", id="json-list"),
        pytest.param("t.jsonl", b'{"uri": "x"}\n{"url": "y"}\n', {}, "row 1 .* has no URI", id="json-key-missing"),
        pytest.param("t.jsonl", b'{"uri": {"a": 1}}\n', {}, "row 0 .* has no URI", id="json-uri-not-text"),
        pytest.param("t.parquet", b"not parquet", {}, "not a readable Parquet file", id="not-parquet"),
    ],
)
def test_broken_table_says_what_and_where(
    tmp_path: Path, name: str, text: bytes, options: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(SourceError, match=message) as caught:
        list(list_images(str(tmp_path / name), **options))
    assert name in str(caught.value)


LONG = "long " * 20_000


@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        ("t.jsonl", [{"uri": [LONG]}], {}),
        ("t.jsonl", [{"uri": {"a": [LONG] * 9}}], {}),
        ("t.jsonl", [{LONG: 1}], {}),
        ("t.jsonl", [{"uri": "a", LONG: 1}], {"image_id_column": "id"}),
        ("t.csv", [{f"column {number}": "1" for number in range(20_000)}], {}),
        ("t.parquet", [{LONG: "1"}], {}),
        ("t.parquet", [{"image": f"{LONG}{number}".encode()} for number in range(3)], {"uri_column": "image"}),
    ],
)
def test_what_a_table_holds_is_quoted_short(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    path = write_table(tmp_path / name, rows)
    with pytest.raises(SourceError) as refused:
        list(list_images(str(path), **options))
    assert len(str(refused.value)) < 2000 + len(str(path))


def test_missing_table_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"t\.csv: not found"):
        list(list_images(str(tmp_path / "t.csv")))


def test_nothing_is_read_before_the_first_image_is_asked_for(tmp_path: Path) -> None:
    refs = list_images(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError):
        next(refs)
