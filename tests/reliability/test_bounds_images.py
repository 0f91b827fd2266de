"""Fetching and decoding one image takes no more memory than its limits say, whatever is at its place by then."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from pipelines.images.decode import decoding_bytes
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage.filesystems import open_filesystem
from pipelines.types import ImageRef, Reason
from tests.reliability import bounded_calls as calls
from tests.support.peak_memory import Peak
from tests.support.seaweed import S3Server

Measure = Callable[..., Peak]


def sparse(path: Path, num_bytes: int) -> Path:
    """A file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(num_bytes)
    return path


def test_the_measure_is_true(peak: Measure) -> None:
    assert 95 <= peak(calls.take, 100_000_000).mb <= 130


@pytest.mark.parametrize("listed", [1000, None])
def test_a_file_that_grew_after_it_was_listed_is_read_no_further_than_allowed(
    tmp_path: Path, peak: Measure, listed: int | None
) -> None:
    path = sparse(tmp_path / "a.jpg", 2_000_000_000)
    found = peak(calls.fetch_bytes, str(path), listed, 10_000_000)
    assert found.error == "FetchError"
    assert "max_image_bytes" in found.said
    assert found.mb < 60


def test_an_object_that_grew_after_it_was_listed_is_read_no_further_than_allowed(s3: S3Server, peak: Measure) -> None:
    uri = f"s3://bkt/{secrets.token_hex(4)}.jpg"
    fs, path = open_filesystem(uri)
    fs.pipe_file(path, bytes(100_000_000))
    small = f"s3://bkt/{secrets.token_hex(4)}.jpg"
    fs.pipe_file(small.removeprefix("s3://"), bytes(1000))
    usual = peak(calls.fetch_bytes, small, 1000, 5_000_000)
    found = peak(calls.fetch_bytes, uri, 1000, 5_000_000)
    assert (usual.said, found.error) == ("1000", "FetchError")
    assert found.mb < usual.mb + 40


@pytest.mark.parametrize("protocol", ["local", "memory", "s3"])
@pytest.mark.parametrize("listed", [None, 10, 1000, 5_000_000])
def test_what_is_there_now_is_what_is_read_as_far_as_it_is_allowed(
    request: pytest.FixtureRequest, tmp_path: Path, protocol: str, listed: int | None
) -> None:
    if protocol == "s3":
        request.getfixturevalue("s3")
    base = {"local": str(tmp_path), "memory": "memory://grown", "s3": "s3://bkt"}[protocol]
    reserved: list[int] = []
    for size in (0, 1, 1000, 5_000_000):
        uri, data = f"{base}/{secrets.token_hex(4)}.jpg", os.urandom(size)
        fs, path = open_filesystem(uri)
        fs.pipe_file(path, data)
        ref = ImageRef(image_id="x", uri=uri, num_bytes=listed)
        reserved.clear()
        found = fetch(ref, options=None, max_bytes=5_000_000, timeout_s=30, reserve=reserved.append)
        assert found == data
        assert sum(reserved) >= size
        fs.pipe_file(path, bytes(5_000_001))
        with pytest.raises(FetchError, match="more than max_image_bytes") as caught:
            fetch(ref, options=None, max_bytes=5_000_000, timeout_s=30)
        assert caught.value.reason == Reason.TOO_MANY_BYTES


class Web(BaseHTTPRequestHandler):
    """Says how much it sends, or does not; packs what nobody asked to be packed."""

    def do_GET(self) -> None:
        size = int(self.path.rpartition("/")[2])
        self.send_response(200)
        if self.path.startswith("/said/"):
            self.send_header("Content-Length", str(size))
        self.end_headers()
        try:
            for _ in range(0, size, 2**16):
                self.wfile.write(bytes(min(size, 2**16)))
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("how", ["said", "unsaid"])
def test_a_web_server_is_heard_no_further_than_allowed(peak: Measure, how: str) -> None:
    with web() as url:
        whole = peak(calls.fetch_bytes, f"{url}/{how}/{2**23}", None, 10_000_000)
        assert (whole.said, whole.error) == (str(2**23), None)
        found = peak(calls.fetch_bytes, f"{url}/{how}/{2**30}", None, 10_000_000)
    assert found.error == "FetchError"
    assert found.mb < whole.mb + 40


PICTURE_BYTES = 4_000_000


def unfolding(path: Path, *, is_struct: bool, rows: int = 1000, encoding: str = "dictionary") -> Path:
    """A Parquet file of one picture that many rows have, stored once."""
    value = os.urandom(PICTURE_BYTES)
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    options: dict[str, Any] = {"dictionary_pagesize_limit": 2**30}
    if encoding == "delta":
        options = {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}
        values = pa.array([value] * rows)
    column = pa.StructArray.from_arrays([values], ["bytes"]) if is_struct else values
    pq.write_table(pa.table({"image": column, "number": list(range(rows))}), path, store_schema=False, **options)
    assert path.stat().st_size < 2 * PICTURE_BYTES
    return path


@pytest.mark.parametrize("is_struct", [False, True])
def test_a_picture_that_many_rows_share_is_held_once(tmp_path: Path, peak: Measure, is_struct: bool) -> None:
    path = unfolding(tmp_path / "a.parquet", is_struct=is_struct)
    assert peak(calls.count_listed, str(path)).said == "1000"
    found = peak(calls.fetch_all, str(path), "image", 100, 10_000_000)
    assert found.said == str(PICTURE_BYTES)
    assert found.mb < 350


def test_values_that_unfold_and_cannot_be_held_once_are_refused_with_what_to_do(tmp_path: Path, peak: Measure) -> None:
    path = unfolding(tmp_path / "a.parquet", is_struct=False, rows=60, encoding="delta")
    found = peak(calls.fetch_all, str(path), "image", 1, 10_000_000, 50_000_000)
    assert "too_many_bytes: the images of row group 0 unfold to more than 50,000,000 bytes" in found.said
    assert "row_group_size=100" in found.said
    assert found.mb < 350


def test_a_row_group_of_nulls_without_number_is_refused_unread(tmp_path: Path, peak: Measure) -> None:
    path = tmp_path / "a.parquet"
    rows = 70_000_000
    pq.write_table(pa.table({"image": pa.nulls(rows, pa.binary())}), path, row_group_size=rows)
    assert path.stat().st_size < 1_000_000
    found = peak(calls.count_listed, str(path), timeout_s=30)
    assert found.error == "SourceError"
    assert "67,108,864 rows" in found.said
    assert found.mb < 100


SIZE = (3000, 2000)
MODES = {
    "jpg": ["L", "RGB", "CMYK", "progressive RGB", "progressive CMYK"],
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "webp": ["RGB", "RGBA"],
    "tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr", "F"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "gif": ["P", "L"],
}
CASES = [(extension, mode) for extension, modes in MODES.items() for mode in modes]


def write_image(path: Path, mode: str) -> Path:
    """A picture that lies on its side, in a format and mode."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (SIZE[1] // 20, SIZE[0] // 20, 4), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    name = mode.removeprefix("progressive ")
    if name == "I;16":
        image = PILImage.fromarray(blocks[..., 0].astype(np.uint16) * 257)
    else:
        image = PILImage.fromarray(blocks if name in ("RGBA", "LA") else blocks[..., :3]).convert(name)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {} if path.suffix in (".bmp", ".gif") else {"exif": exif}
    if mode != name:
        options |= {"progressive": True, "subsampling": 0}
    image.save(path, **options)
    return path


@pytest.mark.parametrize(("extension", "mode"), CASES)
def test_decoding_takes_what_is_reserved_for_it(tmp_path: Path, peak: Measure, extension: str, mode: str) -> None:
    path = write_image(tmp_path / f"a.{extension}", mode)
    data = path.read_bytes()
    reserved = (len(data) + decoding_bytes(data)) / 1e6
    found = peak(calls.decode, str(path))
    assert found.error is None
    # Half of it at least, or the budget would be spent on nothing; some megabytes are the process's own, as are the
    # libraries' pages, of which kernels map different numbers at once.
    assert reserved / 2 - 10 <= found.mb <= reserved * 1.05 + 10


def test_images_that_are_decoded_ahead_stay_within_their_budget(tmp_path: Path, peak: Measure) -> None:
    """Four threads decode; before, each took 22 bytes a pixel and reserved 3."""
    path = write_image(tmp_path / "a.webp", "RGBA")
    budget = 2 * decoding_bytes(path.read_bytes())
    found = peak(calls.load_all, [str(path)] * 12, budget)
    assert found.said == " ".join(["Image"] * 12)
    assert budget / 2e6 < found.mb < 1.1 * budget / 1e6 + 10  # some megabytes are the process's own
