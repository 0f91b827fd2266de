"""Files that hold images, damaged at random: refused, or read; never a crash, never an error of a library."""

from __future__ import annotations

import contextlib
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import SourceError
from pipelines.sources.fetch import FetchError
from pipelines.sources.listing import list_images
from tests.support.containers import content, listed, parquet_bytes, tar_bytes

VALUES = [bytes([number]) * 50 for number in range(8)]
STRUCTS = [{"bytes": value, "path": f"{number}.jpg"} for number, value in enumerate(VALUES)]


def tar() -> bytes:
    names = ["long/" * 30 + "a.jpg", *(f"{number}.jpg" for number in range(1, 8))]
    return tar_bytes({**dict(zip(names, VALUES, strict=True)), "7.json": b'{"a": 1}'})


def arrow() -> bytes:
    table = pa.table({"image": pa.array(STRUCTS), "text": ["ab"] * 8, "number": list(range(8))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


def parquet() -> bytes:
    return parquet_bytes({"image": pa.array(STRUCTS), "text": ["ab"] * 8}, row_group_size=3)


def coco() -> bytes:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(8)]
    return json.dumps({"images": images, "annotations": [{"bbox": [1.5, 2]}]}).encode()


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        changed[chance.randrange(len(data))] = chance.choice([0, 255, 128, chance.randrange(256)])
    return bytes(changed[: chance.randrange(len(data)) if chance.random() < 0.1 else None])


@pytest.mark.parametrize("make", [tar, arrow, parquet, coco])
def test_a_damaged_file_is_refused_or_read_and_costs_no_more_than_its_images(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    path = tmp_path / f"a.{'json' if make is coco else make.__name__}"
    good, chance, refused = make(), random.Random(make.__name__), list[str]()
    num_read = 0
    for _ in range(150):
        path.write_bytes(damaged(good, chance))
        try:
            refs = list(list_images(str(path)))
        except SourceError as error:
            refused.append(str(error))
            continue
        for ref in refs:
            with contextlib.suppress(FetchError):
                content(ref)
        num_read += 1
    assert num_read
    assert refused
    assert all(path.name in message for message in refused)


def test_a_tar_whose_header_claims_a_negative_size_is_refused_not_read_forever(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"1.jpg": b"one"}))
    data[124:136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
    data[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data[:512]))[0]
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar: broken: '1\.jpg' is of -256 bytes"):
        listed(tmp_path / "a.tar")
