"""From listing to commit for every form of source, with the ids in the rows; on S3 with its requests counted."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.sources.fetch import FetchError
from pipelines.sources.listing import list_images
from tests.support.containers import content, dataset, label_all, listed, parquet_bytes, picture, tar_bytes
from tests.support.seaweed import S3Server

PICTURES = {f"{number:03d}": picture(number) for number in range(8)}


def tars() -> dict[str, bytes]:
    names = list(PICTURES)
    return {f"s-{part}.tar": tar_bytes({f"{name}.png": PICTURES[name] for name in names[part::2]}) for part in range(2)}


def tables() -> dict[str, bytes]:
    columns = {"image_id": list(PICTURES), "image": list(PICTURES.values()), "n": list(range(8))}
    return {"t.parquet": parquet_bytes(columns, row_group_size=3)}


def coco() -> dict[str, bytes]:
    images = [{"id": place, "file_name": f"p/{name}.png"} for place, name in enumerate(PICTURES)]
    files = {f"p/{name}.png": data for name, data in PICTURES.items()}
    return {"instances.json": json.dumps({"images": images}).encode(), **files}


def put_local(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def check_rows(rows: dict[str, dict[str, Any]], ids: dict[str, bytes]) -> None:
    assert {name: row["content_sha256"] for name, row in rows.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in ids.items()
    }
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {name: row["num_bytes"] for name, row in rows.items()} == {name: len(data) for name, data in ids.items()}


@pytest.mark.parametrize(
    ("files", "source"), [(tars, "s-{0..1}.tar"), (tars, ""), (tables, "t.parquet"), (tables, "*.parquet")]
)
def test_a_local_container_is_labeled_image_by_image(
    tmp_path: Path, files: Callable[[], dict[str, bytes]], source: str
) -> None:
    put_local(tmp_path / "in", files())
    rows = label_all(f"{tmp_path}/in/{source}", str(tmp_path / "out"))
    check_rows(rows, PICTURES)
    assert all(row["etag"] and row["uri"].startswith(f"{tmp_path}/in/") for row in rows.values())


def test_a_coco_file_is_labeled_and_a_file_that_it_names_but_is_not_there_is_a_row(tmp_path: Path) -> None:
    put_local(tmp_path / "in", coco())
    (tmp_path / "in/p/003.png").unlink()
    rows = label_all(f"{tmp_path}/in/instances.json", str(tmp_path / "out"))
    missing = rows.pop("p/003.png")
    assert (missing["status"], missing["reason"], missing["stage"]) == ("quarantined", "not_found", "fetch")
    check_rows({**rows}, {f"p/{name}.png": data for name, data in PICTURES.items() if name != "003"})
    assert json.loads(rows["p/007.png"]["source_columns"]) == {"id": 7}


def test_a_saved_dataset_is_labeled_row_by_row(tmp_path: Path) -> None:
    dataset(PICTURES).save_to_disk(tmp_path / "in", num_shards=3)
    rows = label_all(f"{tmp_path}/in", str(tmp_path / "out"))
    check_rows(rows, {f"{name}.png": data for name, data in PICTURES.items()})


def test_a_broken_image_in_a_tar_costs_only_itself(tmp_path: Path) -> None:
    members = {f"{name}.png": data for name, data in PICTURES.items()} | {"bad.png": b"", "cut.png": picture(1)[:40]}
    put_local(tmp_path, {"a.tar": tar_bytes(members)})
    rows = label_all(f"{tmp_path}/a.tar", str(tmp_path / "out"))
    assert {rows.pop(name)["reason"] for name in ("bad", "cut")} == {"zero_bytes", "truncated"}
    check_rows(rows, PICTURES)


@pytest.fixture
def bucket(s3: S3Server) -> tuple[str, Callable[[dict[str, bytes]], None]]:
    prefix = f"bkt/containers-{secrets.token_hex(4)}"

    def put(files: dict[str, bytes]) -> None:
        fs = fsspec.filesystem("s3")
        for name, data in files.items():
            fs.pipe_file(f"{prefix}/{name}", data)

    return f"s3://{prefix}", put


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every request to S3: its operation, and the range asked for."""
    from aiobotocore.client import AioBaseClient

    made: list[tuple[str, str]] = []
    original = AioBaseClient._make_api_call

    async def noted(self: AioBaseClient, operation: str, params: dict[str, Any]) -> Any:
        made.append((operation, params.get("Range", "")))
        return await original(self, operation, params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", noted)
    return made


@pytest.mark.parametrize(("files", "source"), [(tars, "*.tar"), (tables, "t.parquet"), (coco, "instances.json")])
def test_a_container_in_a_bucket_is_labeled_image_by_image(bucket, files, source: str) -> None:
    uri, put = bucket
    put(files())
    rows = label_all(f"{uri}/{source}", f"{uri}/out")
    check_rows(rows, {(f"p/{name}.png" if files is coco else name): data for name, data in PICTURES.items()})
    assert all(row["uri"].startswith(uri) for row in rows.values())


def test_a_tar_of_small_images_is_listed_in_a_few_requests_and_each_image_fetched_in_one(bucket, requests) -> None:
    uri, put = bucket
    members = {f"{number:04d}.jpg": bytes([number % 256]) * 2000 for number in range(1000)}
    put({"a.tar": tar_bytes(members)})
    requests.clear()
    refs = list(list_images(f"{uri}/a.tar"))
    assert len(refs) == 1000
    assert Counter(operation for operation, _ in requests)["GetObject"] <= 8
    requests.clear()
    assert content(refs[500]) == members["0500.jpg"]
    (request,) = requests
    assert request[0] == "GetObject"
    begin, end = map(int, request[1].removeprefix("bytes=").split("-"))
    assert end + 1 - begin == 512 + 2000


def test_large_members_of_a_tar_are_skipped_not_read(bucket, requests) -> None:
    uri, put = bucket
    put({"a.tar": tar_bytes({f"{number}.jpg": bytes(3_000_000) for number in range(6)})})
    requests.clear()
    assert len(list(list_images(f"{uri}/a.tar"))) == 6
    spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for _, span in requests if span]
    assert len(spans) <= 8
    assert sum(end + 1 - begin for begin, end in spans) < 1_000_000


def test_a_row_of_a_parquet_file_costs_its_row_groups_column_once(bucket, requests) -> None:
    uri, put = bucket
    images = [bytes([number]) * 50_000 for number in range(40)]
    columns = {"image_id": [f"{n:02d}" for n in range(40)], "image": images, "other": [b"x" * 9_000] * 40}
    put({"a.parquet": parquet_bytes(columns, row_group_size=10, compression="NONE", use_dictionary=False)})
    requests.clear()
    refs = listed(f"{uri}/a.parquet")
    assert sum(_bytes(span) for _, span in requests) < 200_000  # of more than 2 MB
    requests.clear()
    assert content(refs["15"]) == images[15]
    asked = [span for operation, span in requests if operation == "GetObject"]
    assert 500_000 <= sum(map(_bytes, asked)) < 700_000
    requests.clear()
    assert content(refs["16"]) == images[16]
    assert requests == []


def _bytes(span: str) -> int:
    begin, _, end = span.removeprefix("bytes=").partition("-")
    return int(end) + 1 - int(begin) if end else 0


def test_an_object_that_was_put_anew_gives_no_image_under_a_wrong_id(bucket) -> None:
    uri, put = bucket
    put({**tars(), **tables()})
    tar, table = listed(f"{uri}/s-0.tar"), listed(f"{uri}/t.parquet")
    put({"s-0.tar": tars()["s-1.tar"], "t.parquet": parquet_bytes({"image_id": ["000"], "image": [b"other"]})})
    for ref in (tar["002"], table["004"], tar["006"]):
        with pytest.raises(FetchError, match="has changed since it was listed"):
            content(ref)


def test_a_saved_dataset_in_a_bucket_is_read_where_it_lies(bucket, tmp_path: Path) -> None:
    uri, put = bucket
    dataset(PICTURES).save_to_disk(tmp_path / "set")
    put({path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()})
    check_rows(label_all(uri, f"{uri}-out"), {f"{name}.png": data for name, data in PICTURES.items()})
