"""A tar's headers are believed as far as a header may be true."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import SourceError
from pipelines.sources import tars
from tests.reliability import bounded_calls as calls
from tests.support.containers import content, listed, tar_bytes, write_tar
from tests.support.peak_memory import Peak

LONG_NAME, PAX, GLOBAL, SPARSE = b"L", b"x", b"g", b"S"


def header(kind: bytes, size: int, name: str = "a") -> bytes:
    """A header block of this kind that claims this size."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, abs(size)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")[:512])
    if size < 0:
        block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
    return signed(block)


def signed(block: bytearray) -> bytes:
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    return bytes(block)


def write_sparse(path: Path, start: bytes, num_bytes: int) -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(num_bytes)
    return path


@pytest.mark.parametrize("kind", [LONG_NAME, PAX, GLOBAL])
@pytest.mark.parametrize("size", [150_000_000, -512])
def test_a_header_that_claims_to_be_long_is_refused_unread(
    tmp_path: Path, peak: Callable[..., Peak], kind: bytes, size: int
) -> None:
    path = write_sparse(tmp_path / "a.tar", header(kind, size), 160_000_000)
    found = peak(calls.count_listed, str(path))
    assert found.error == "SourceError"
    assert f"a.tar: not a readable tar: a header of {size:,} bytes" in found.said
    assert found.mb < 30


def test_the_map_of_a_sparse_file_is_not_kept(tmp_path: Path, peak: Callable[..., Peak]) -> None:
    first = bytearray(header(SPARSE, 512, "big.bin"))
    first[482] = 1  # its map goes on
    entries = (b"%011o\0" % 8) * 42
    blocks = [entries + b"\1" + bytes(7)] * 60_000 + [bytes(512)]
    rest = tar_bytes({"1.jpg": b"one"})
    path = tmp_path / "a.tar"
    path.write_bytes(signed(first) + b"".join(blocks) + bytes(512) + rest)
    found = peak(calls.count_listed, str(path))
    assert (found.said, found.error) == ("1", None)
    assert found.mb < 30
    (ref,) = listed(path).values()
    assert content(ref) == b"one"


def test_headers_that_follow_each_other_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes((header(PAX, 0) * 2000) + tar_bytes({"1.jpg": b"one"}))
    with pytest.raises(SourceError, match=r"a\.tar: not a readable tar: header follows header without end"):
        listed(path)


def test_a_map_that_is_cut_short_is_an_error_that_says_so(tmp_path: Path) -> None:
    first = bytearray(header(SPARSE, 512, "big.bin"))
    first[482] = 1
    path = tmp_path / "a.tar"
    path.write_bytes(signed(first))
    with pytest.raises(SourceError, match=r"a\.tar: not a readable tar: it is cut short inside the map"):
        listed(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        pytest.param(b"5 path=a.jpg\n", "longer than it says", id="short"),
        pytest.param(b"1013 path=" + b"1" * 1002 + b"\n", "a number of a thousand digits", id="digits"),
    ],
)
def test_pax_records_that_lead_nowhere_are_refused(tmp_path: Path, record: bytes, message: str) -> None:
    padded = record + bytes(-len(record) % 512)
    path = tmp_path / "a.tar"
    path.write_bytes(header(PAX, len(record)) + padded + tar_bytes({"1.jpg": b"one"}))
    with pytest.raises(SourceError, match=message):
        listed(path)


def test_global_headers_do_not_add_up_without_end(tmp_path: Path) -> None:
    blocks = []
    for number in range(3):
        member = tarfile.TarInfo("g")
        blocks.append(member.create_pax_global_header({f"comment.{number}": "x" * 30_000}))
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(blocks[:1]) + tar_bytes({"1.jpg": b"one"}))
    assert list(listed(path)) == ["1"]
    path.write_bytes(b"".join(blocks) + tar_bytes({"1.jpg": b"one"}))
    with pytest.raises(SourceError, match="global headers hold more than"):
        listed(path)


@pytest.mark.parametrize("version", ["0.1", "1.0"])
def test_an_image_that_is_sparse_by_a_pax_header_is_refused(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.tar"
    extra = {
        "0.1": {"GNU.sparse.size": "9", "GNU.sparse.map": "0,3", "GNU.sparse.numblocks": "1"},
        "1.0": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
    }[version]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("1.jpg")
        data = b"1\n0\n3\n".ljust(512, b"\0") + b"one"
        member.size, member.pax_headers = len(data), extra
        tar.addfile(member, io.BytesIO(data))
    with pytest.raises(SourceError, match="is a link or a sparse file"):
        listed(path)


def test_a_sample_of_more_images_than_any_real_one_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "_MAX_SAMPLE_IMAGES", 3)
    path = write_tar(tmp_path / "a.tar", {f"1.{number}.jpg": b"x" for number in range(4)})
    with pytest.raises(SourceError, match="more than 3 images have the key '1'"):
        listed(path)
