from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import fsspec
import pytest

from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.listing import list_images
from pipelines.storage.spellings import other_spellings, path_of_url
from pipelines.types import ImageRef, Reason


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b.jpg", "/a/b.jpg"),
        ("FILE:///a%20b.jpg", "/a%20b.jpg"),
        ("file://localhost/a.jpg", "/a.jpg"),
        ("file:/a.jpg", "/a.jpg"),
        ("file://server/share/a.jpg", None),
        ("file:a.jpg", None),
        ("/a.jpg", None),
        ("s3://b/a.jpg", None),
    ],
)
def test_a_file_url_names_a_path_of_this_machine(uri: str, path: str | None) -> None:
    assert path_of_url(uri) == path


def test_plain_paths_have_one_spelling() -> None:
    assert list(other_spellings("bkt/2024/IMG_0001 (2)+.jpg")) == []
    assert list(other_spellings("bkt/100%.jpg")) == []


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("photos\\2024\\a.jpg", "photos/2024/a.jpg"),
        ("..\\m\\a.jpg", "a.jpg"),
        ("a%20b%2Bc.jpg", "a b+c.jpg"),
        ("a+b%2Cc.jpg", "a b,c.jpg"),
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg")),
        (unicodedata.normalize("NFD", "ü.jpg"), unicodedata.normalize("NFC", "ü.jpg")),
    ],
)
def test_an_object_is_found_by_another_spelling_but_as_written_first(
    memory: fsspec.AbstractFileSystem, written: str, key: str
) -> None:
    memory.pipe_file(f"/m/{key}", b"one")
    memory.pipe_file("/m/l.txt", written.encode())
    (ref,) = list_images("memory://m/l.txt")
    assert ref.image_id == written
    assert fetch(ref, options=None, max_bytes=10, timeout_s=10) == b"one"
    memory.pipe_file(memory._strip_protocol(ref.uri), b"as written")
    assert fetch(ref, options=None, max_bytes=10, timeout_s=10) == b"as written"


def test_what_is_there_under_no_spelling_is_missing_as_it_was_written(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/m/b.jpg", b"one")
    with pytest.raises(FetchError, match=r"memory://m/x\\é%20a\.jpg: not found") as refused:
        fetch(ImageRef(image_id="a", uri="memory://m/x\\é%20a.jpg"), options=None, max_bytes=10, timeout_s=10)
    assert refused.value.reason == Reason.NOT_FOUND


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
