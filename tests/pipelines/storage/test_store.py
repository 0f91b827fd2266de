from __future__ import annotations

import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StorageError
from pipelines.storage.client_errors import explain
from pipelines.storage.filesystems import absolute_uri, protocol_of
from pipelines.storage.store import Store, open_store, probe_create_only


def test_an_object_is_read_back_listed_and_deleted(store: Store) -> None:
    store.write("a/b c/ü.bin", b"12345")
    assert store.read("a/b c/ü.bin") == b"12345"
    assert store.find("a") == {"a/b c/ü.bin": 5}
    assert store.folders("") == ["a"]
    store.delete("a/b c/ü.bin")
    store.delete("a/b c/ü.bin")
    assert store.find("") == {}


def test_reading_what_is_missing_says_so(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    assert store.find("nothing") == {}
    assert store.folders("nothing") == []
    assert not store.exists("nothing")


def test_create_keeps_the_first_writer(store: Store) -> None:
    assert store.create("commit", b"first")
    assert not store.create("commit", b"second")
    assert store.read("commit") == b"first"


def test_create_of_the_same_bytes_again_counts_as_ours(store: Store) -> None:
    """A lost answer makes the client repeat its put: the refusal is of our own object."""
    assert store.create("commit", b"mine")
    assert store.create("commit", b"mine")


def test_of_many_racing_writers_one_wins(store: Store) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        if store.create("commit", f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("commit") == f"writer {won[0]}".encode()


def test_probe_passes_and_leaves_nothing(store: Store) -> None:
    probe_create_only(store)
    assert store.find("") == {}


class _Overwriting:
    """A filesystem that ignores create-only, as some S3 look-alikes do."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self._fs.pipe_file(path, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


def test_probe_refuses_a_store_that_overwrites() -> None:
    store = open_store("memory://overwriting")
    careless = Store(uri=store.uri, fs=_Overwriting(store.fs), root=store.root)
    with pytest.raises(StorageError, match=r"ignores conditional writes.*single_driver"):
        probe_create_only(careless)
    assert store.find("") == {}


class _Conflicting:
    """A filesystem whose conditional puts always conflict while no object appears."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self.puts = 0

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self.puts += 1
        cause = Exception()
        cause.response = {"Error": {"Code": "ConditionalRequestConflict"}}  # type: ignore[attr-defined]
        raise OSError(5, "conflict") from cause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


def test_a_store_that_always_conflicts_is_an_error_not_a_loop() -> None:
    store = open_store("memory://conflicting")
    fs = _Conflicting(store.fs)
    with pytest.raises(StorageError, match="refuses a create-only put"):
        Store(uri=store.uri, fs=fs, root=store.root).create("commit", b"mine")
    assert 1 < fs.puts < 10


def test_a_local_write_leaves_no_temporary_file(tmp_path: Any) -> None:
    store = open_store(str(tmp_path / "output"))
    store.write("x", b"1")
    store.create("y", b"2")
    store.create("y", b"3")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["x", "y"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What is told to outlive a power cut: its name or bytes, and the names of a folder at that moment."""
    found: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        folder = place if place.is_dir() else place.parent
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        found.append(("folder" if place.is_dir() else place.read_text(), names))

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up a file by its descriptor")
@pytest.mark.parametrize("how", ["write", "create"])
def test_a_local_write_is_on_the_disk_before_its_name_and_its_name_before_it_returns(
    how: str, tmp_path: Path, synced: list[tuple[str, list[str]]]
) -> None:
    getattr(open_store(str(tmp_path)), how)("commit", b"bytes")
    assert synced == [("bytes", []), ("folder", ["commit"])]


@pytest.mark.parametrize(
    ("uri", "protocol"),
    [("/data", "file"), ("data", "file"), ("file:///data", "file"), ("s3a://b/p", "s3"), ("gcs://b", "gs")],
)
def test_protocols_have_one_name(uri: str, protocol: str) -> None:
    assert protocol_of(uri) == protocol


def test_other_protocols_are_refused() -> None:
    with pytest.raises(StorageError, match="'ftp' is not supported"):
        open_store("ftp://host/folder")


def test_the_root_of_a_file_system_is_no_output() -> None:
    with pytest.raises(StorageError, match="needs a folder name"):
        open_store("/")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket//labels", "an empty folder name"),
        ("s3:///labels", "an empty folder name"),
        ("s3://bucket/a//b/", "an empty folder name"),
        ("gs://bucket//labels", "an empty folder name"),
        ("memory://bucket//labels", "an empty folder name"),
        ("s3://bucket/a/./b", "the folder name '.'"),
        ("s3a://bucket/a/../b", "the folder name '..'"),
        ("s3://bucket/a/..", "the folder name '..'"),
        ("s3://bucket/a\\b", "a backslash"),
        ("s3://bucket/a?versionId=1", "one object's version"),
        ("labels\0", "without null characters"),
        ("labels\udcff", "must be UTF-8"),
        ("s3:/bucket/labels", "did you mean s3://bucket/labels"),
        ("file:/data/labels", "did you mean file:///data/labels"),
    ],
)
def test_an_output_that_would_be_listed_otherwise_than_it_is_written_is_refused(uri: str, words: str) -> None:
    with pytest.raises(StorageError, match=re.escape(words)) as refused:
        open_store(uri)
    assert repr(uri) in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a", "a b ", " c", "d/e/", "f//", "%20", "g?h", "i#j", "k*[l]", "m+n", "\u00e9", "~o"]
)
def test_what_is_written_under_any_other_name_is_listed_under_it(store: Store, name: str) -> None:
    odd = open_store(f"{store.uri}/{name}")
    odd.write("_runs/r/plan.json", b"{}")
    assert odd.find("") == {"_runs/r/plan.json": 2}
    assert odd.folders("_runs") == ["r"]
    assert odd.read("_runs/r/plan.json") == b"{}"


def test_a_protocol_may_be_written_in_capitals(s3: Any) -> None:
    folder = f"bkt/capitals-{secrets.token_hex(4)}"
    open_store(f"S3://{folder}").write("a", b"1")
    assert open_store(f"s3://{folder}").find("") == open_store(f"S3A://{folder}/").find("") == {"a": 1}


def test_a_path_of_this_machine_is_one_place_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store(str(tmp_path / "out")).write("a", b"1")
    for name in (
        "out",
        "./out/",
        "x/../out",
        f"/{tmp_path}//out",
        f"file://{tmp_path}/./out",
        f"file:///{tmp_path}/out",
    ):
        assert absolute_uri(name) == str(tmp_path / "out")
        assert open_store(name).find("") == {"a": 1}


def test_wrong_credentials_are_named_and_not_shown(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"access denied.*check the credentials") as caught:
        open_store("s3://bkt/output").find("")
    assert "canary-secret" not in str(caught.value)


def test_a_dead_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    store = open_store("s3://bkt/output", {"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorageError, match=r"does not answer.*AWS_ENDPOINT_URL"):
        store.read("x")


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("s3://b/p", "AWS_ENDPOINT_URL or storage_options.endpoint_url"),
        ("S3A://b/p", "AWS_ENDPOINT_URL or storage_options.endpoint_url"),
        ("gs://b/p", "storage_options.endpoint_url"),
        ("hf://datasets/a/b", "HF_ENDPOINT"),
        ("https://host/a.png", "the address"),
    ],
)
def test_of_a_server_that_does_not_answer_the_setting_is_named_that_chose_it(uri: str, advice: str) -> None:
    for kind in ("ConnectionError", "ClientConnectorDNSError", "ConnectError"):
        words = explain(type(kind, (OSError,), {})("refused"), uri)
        assert words.endswith(f"does not answer (refused); check {advice} and the network"), words


def test_missing_credentials_are_explained() -> None:
    class NoCredentialsError(Exception):
        pass

    assert "set AWS_ACCESS_KEY_ID" in explain(NoCredentialsError(), "s3://b/p")


def test_a_path_that_goes_through_a_file_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/_runs: a part of this path is a file, not a folder"):
        open_store(str(tmp_path / "file")).folders("_runs")
