"""hf:// as a source: huggingface_hub's own file system against a small Hub on the loopback address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SourceError, StorageError
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.listing import list_images
from pipelines.storage.store import open_store
from pipelines.types import Reason
from tests.support.containers import label_all, listed, parquet_bytes, picture, tar_bytes
from tests.support.hub import Hub, running

REPO = "hf://datasets/user/name"
PICTURES = {f"{number:03d}": picture(number) for number in range(6)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    names = list(PICTURES)
    files = {
        "README.md": b"# name",
        "photos/a b#1.jpg": picture(1),
        "photos/sub/c.png": picture(2),
        "data/t-0.parquet": parquet_bytes({"image_id": names[:3], "image": [PICTURES[name] for name in names[:3]]}),
        "data/t-1.parquet": parquet_bytes({"image_id": names[3:], "image": [PICTURES[name] for name in names[3:]]}),
        "wds/s.tar": tar_bytes({f"{name}.png": data for name, data in PICTURES.items()}),
    }
    with running(Hub("user/name", files)) as hub:
        yield hub


def options(hub: Hub) -> dict[str, Any]:
    return {"storage_options": {"endpoint": hub.endpoint}}


@pytest.mark.parametrize("place", ["data", "data/*.parquet", "data/t-{0..1}.parquet", "wds/s.tar", "wds", "**/*.tar"])
def test_images_inside_files_of_a_dataset_are_labeled_where_they_lie(hub: Hub, tmp_path: Path, place: str) -> None:
    rows = label_all(f"{REPO}/{place}", str(tmp_path / "out"), **options(hub))
    assert {name: (row["status"], row["num_bytes"]) for name, row in rows.items()} == {
        name: ("ok", len(data)) for name, data in PICTURES.items()
    }
    assert all(row["uri"].startswith(f"{REPO}/") and row["etag"] for row in rows.values())


def test_image_files_of_a_dataset_are_listed_and_labeled(hub: Hub, tmp_path: Path) -> None:
    refs = listed(f"{REPO}/photos", **options(hub))
    assert {name: ref.num_bytes for name, ref in refs.items()} == {
        "a b#1.jpg": len(picture(1)),
        "sub/c.png": len(picture(2)),
    }
    rows = label_all(f"{REPO}/photos", str(tmp_path / "out"), **options(hub))
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_an_image_of_a_tar_takes_one_request_for_just_its_bytes(hub: Hub) -> None:
    ref = listed(f"{REPO}/wds/s.tar", **options(hub))["003"]
    hub.requests.clear()
    assert fetch(ref, options={"endpoint": hub.endpoint}, max_bytes=10**6, timeout_s=9) == PICTURES["003"]
    begin, end = map(int, hub.requests[-1][2].removeprefix("bytes=").split("-"))
    assert end + 1 - begin == 512 + len(PICTURES["003"])
    assert len([path for _, path, _, _ in hub.requests if "/resolve/" in path]) == 1


def test_a_private_dataset_is_read_with_the_machines_token_which_is_written_nowhere(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_canary"
    with pytest.raises(SourceError, match=f"{REPO}/data") as refused:
        listed(f"{REPO}/data", **options(hub))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError, match=f"{REPO}/data") as wrong:
        listed(f"{REPO}/data", **options(hub))
    assert "hf_" not in str(refused.value) + str(wrong.value)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    rows = label_all(f"{REPO}/data", str(tmp_path / "out"), **options(hub))
    assert {row["status"] for row in rows.values()} == {"ok"}
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written
    assert not any(b"hf_canary" in data for data in written)


def test_a_dataset_that_changed_after_it_was_listed_gives_no_image_under_a_wrong_id(hub: Hub) -> None:
    tar, table = listed(f"{REPO}/wds", **options(hub)), listed(f"{REPO}/data", **options(hub))
    hub.files["wds/s.tar"] = tar_bytes({"9.png": b"x" * 9999})
    hub.files["data/t-0.parquet"] = hub.files["data/t-1.parquet"]
    for ref in (tar["002"], table["001"]):
        with pytest.raises(FetchError, match="has changed since it was listed"):
            fetch(ref, options={"endpoint": hub.endpoint}, max_bytes=10**6, timeout_s=9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{REPO}/nix", "no images found"),
        (f"{REPO}/nix.parquet", "not found"),
        ("hf://datasets/user/other", "not found"),
        (REPO, r"holds image files, and 2 \.parquet files and 1 \.tar file with images inside"),
        ("hf://", "hf://"),
        ("hf://datasets", "hf://datasets"),
    ],
)
def test_a_hub_source_that_cannot_be_read_says_why(hub: Hub, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list(list_images(source, **options(hub)))


def test_an_image_that_is_gone_is_a_row(hub: Hub) -> None:
    refs = listed(f"{REPO}/photos", **options(hub))
    del hub.files["photos/sub/c.png"]
    with pytest.raises(FetchError) as caught:
        fetch(refs["sub/c.png"], options={"endpoint": hub.endpoint}, max_bytes=10**6, timeout_s=9)
    assert caught.value.reason == Reason.NOT_FOUND


def test_the_hub_is_never_an_output() -> None:
    with pytest.raises(StorageError, match="hf:// is only read here"):
        open_store(f"{REPO}/labels")
