"""On a file system without hard links a name is still given once, to a whole file."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from pipelines.errors import StorageError
from pipelines.storage import exclusive_names
from pipelines.storage.store import Store, open_store, probe_create_only
from pipelines.storage.targets import Target, write_target
from tests.reliability.small_run import SmallRun, check_no_op, run, write_source


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["no links", "no links and no exclusive rename"])
def poor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel answers on exFAT, and on a network file system that knows even less."""
    monkeypatch.setattr(os, "link", refuse)
    if request.param != "no links":
        monkeypatch.setattr(exclusive_names, "_rename_without_replacing", refuse)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"))


@pytest.mark.usefixtures("poor")
def test_the_second_put_of_a_name_is_refused_and_leaves_the_first(store: Store, tmp_path: Path) -> None:
    assert store.create("commits/a.json", b"first")
    assert not store.create("commits/a.json", b"second")
    assert store.read("commits/a.json") == b"first"
    assert [path.name for path in (tmp_path / "output" / "commits").iterdir()] == ["a.json"]
    probe_create_only(store)


@pytest.mark.usefixtures("poor")
def test_of_many_writers_one_wins_and_nobody_ever_reads_a_part(store: Store) -> None:
    names = [f"commits/{number}.json" for number in range(20)]
    writers = [f"{number}" * 50_000 for number in range(4)]
    won: list[str] = []
    start = threading.Barrier(len(writers))

    def write(text: str) -> None:
        start.wait()
        won.extend(name for name in names if store.create(name, text.encode()))

    threads = [threading.Thread(target=write, args=[text]) for text in writers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for name in names:
            if store.exists(name):
                assert store.read(name).decode() in writers
    assert sorted(won) == sorted(names)
    assert store.unfinished("") == []


@pytest.mark.usefixtures("poor")
def test_a_whole_run_works_and_is_not_repeated(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images"), output=str(tmp_path / "out"))
    assert run(small).ok
    check_no_op(small)


@pytest.mark.usefixtures("poor")
def test_a_file_takes_the_place_of_nothing(tmp_path: Path) -> None:
    write_target(Target(str(tmp_path / "page.html")), b"ours")
    with pytest.raises(StorageError, match="made by another meanwhile"):
        write_target(Target(str(tmp_path / "page.html")), b"again")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("page.html", b"ours")]


def test_the_claim_of_a_writer_that_died_is_named_and_counts_as_unfinished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(exclusive_names, "_rename_without_replacing", refuse)
    claim = tmp_path / "output" / "commits" / ".tmp-claim-a.json"
    claim.parent.mkdir(parents=True)
    claim.touch()
    with pytest.raises(StorageError, match=r"another driver.*\.tmp-claim-a\.json, or run vacuum"):
        store.create("commits/a.json", b"ours")
    assert store.unfinished("commits") == ["commits/.tmp-claim-a.json"]
    claim.unlink()
    assert store.create("commits/a.json", b"ours")
    assert store.find("") == {"commits/a.json": 4}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_other_failures_of_a_link_are_what_they_are(store: Store, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageError):
        store.create("a", b"x")
    assert store.unfinished("") == []
