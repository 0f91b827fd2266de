"""How many requests S3 gets for what is read, counted by a server: each takes as long as the way there and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.folder_server import BUCKET, Served, served
from pipelines.storage.store import Store, open_store
from pipelines.table.image_lookup import ImageIndex
from tests.support.labeled import box, mask, named, write_output

NAMES = [f"{number:02}.jpg" for number in range(12)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, prompts = tmp_path_factory.mktemp("bucket"), named("ovseg", "cup")
    write_output(folder / "output", {name: [mask(prompts[0], box(0, 0, 2, 2))] for name in NAMES}, common=prompts)
    (folder / "output" / "note").write_bytes(b"something")
    with served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def store(server: Served) -> Store:
    return open_store(f"s3://{BUCKET}/output", server.options)


def test_an_object_is_read_and_looked_up_with_one_request(server: Served, store: Store) -> None:
    asked = server.requests
    asked.clear()
    assert store.read("note") == b"something"
    assert asked == ["GET output/note"]
    asked.clear()
    assert (store.size("note"), store.exists("note")) == (9, True)
    assert store.modified_at("note") == 1767225600.0
    assert asked == ["HEAD output/note"] * 3
    asked.clear()
    assert (store.size("none"), store.exists("none"), store.modified_at("none")) == (None, False, None)
    assert asked == ["HEAD output/none"] * 3
    asked.clear()
    with pytest.raises(FileNotFoundError):
        store.read("none")
    assert asked == ["GET output/none"]


def test_one_image_of_an_opened_output_takes_three(server: Served, store: Store) -> None:
    index = ImageIndex(store, "run-1")
    assert index.read("annotations", NAMES[:1]).num_rows == 1
    for name in NAMES[5:8]:
        server.requests.clear()
        assert index.read("annotations", [name])["image_id"].to_pylist() == [name]
        assert [request.split()[0] for request in server.requests] == ["HEAD", "GET", "GET"]
