"""The hash of a model folder is computed once on a machine, and again as soon as a file may be another."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.storage import content_hash as module
from pipelines.storage.content_hash import content_hash


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was read, by this process or by a later one: its memory is emptied by `later`."""
    read: list[str] = []
    original = module._hash

    def watched(fs: object, path: str, names: list[str]) -> str:
        read.append(path)
        return original(fs, path, names)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_hash", watched)
    monkeypatch.setattr(module, "_hashed", {})
    monkeypatch.setattr(module, "KEPT_FROM_BYTES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return read


def write(path: Path, text: str, age_s: float = 3600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)


def later(folder: Path, monkeypatch: pytest.MonkeyPatch, *, in_s: float = 3600) -> str:
    """Hash as another process does, so much later."""
    monkeypatch.setattr(module, "_hashed", {})
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time", lambda: now + in_s)
        return content_hash(str(folder))


def test_a_later_process_reads_no_file_that_is_the_same(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write(folder / "a.safetensors", "weights")
    write(folder / "config.json", "{}")
    first = later(folder, monkeypatch)
    assert later(folder, monkeypatch) == first == content_hash(str(folder))
    assert len(hashed) == 1


@pytest.mark.parametrize("change", ["contents", "another file", "contents and times", "a new file"])
def test_what_may_have_changed_is_read_again(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder, weights = tmp_path / "model", tmp_path / "model" / "a.safetensors"
    write(weights, "weights")
    write(folder / "config.json", "{}")
    first, before = later(folder, monkeypatch), weights.stat()
    if change == "another file":  # moved into its place, with its size and times
        write(tmp_path / "other", "WEIGHTS")
        (tmp_path / "other").replace(weights)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "a new file":
        write(folder / "b.json", "[]")
    else:
        write(weights, "WEIGHTS")
        if change == "contents and times":
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert later(folder, monkeypatch) != first
    assert len(hashed) == 2


def test_nothing_is_kept_of_what_is_new_small_or_damaged(
    hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    write(folder / "a.safetensors", "weights")
    first = later(folder, monkeypatch, in_s=0)  # it may change again, within the grain of its times
    assert not cache.exists()
    monkeypatch.setattr(module, "KEPT_FROM_BYTES", 100)
    later(folder, monkeypatch)
    assert not cache.exists()
    monkeypatch.setattr(module, "KEPT_FROM_BYTES", 4)
    later(folder, monkeypatch)
    (kept,) = (path for path in cache.rglob("*") if path.is_file())
    for damage in (b"", b"\xff" * 64, b"0" * 63):
        kept.write_bytes(damage)
        assert later(folder, monkeypatch) == first
        assert kept.read_text() == first
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("no folder")
    assert later(folder, monkeypatch) == first
