"""An output whose every side effect passes by a watcher, which may let a process die, pause or fail there."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest

from pipelines.storage import exclusive_names, store
from pipelines.storage.filesystems import open_filesystem


class Watcher(Protocol):
    """Sees what a process does to an output."""

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        """Do something that changes the output, or not."""
        ...

    def reading(self, name: str, do: Callable[[], Any]) -> Any:
        """Read from the output, or not."""
        ...


class WatchedFileSystem:
    """An fsspec filesystem: what Store uses of it, watched; all else as it is."""

    def __init__(self, fs: Any, watcher: Watcher) -> None:
        self._fs, self._watcher = fs, watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def pipe_file(self, path: str, data: bytes, **options: Any) -> Any:
        verb = "create" if options.get("mode") == "create" else "write"
        return self._watcher.effect(f"{verb} {path}", lambda: self._fs.pipe_file(path, data, **options))

    def rm_file(self, path: str) -> Any:
        return self._watcher.effect(f"delete {path}", lambda: self._fs.rm_file(path))

    def cat_file(self, path: str, **part: int) -> Any:
        return self._watcher.reading(f"read {path}", lambda: self._fs.cat_file(path, **part))

    def find(self, path: str, **options: Any) -> Any:
        return self._watcher.reading(f"find {path}", lambda: self._fs.find(path, **options))

    def ls(self, path: str, **options: Any) -> Any:
        return self._watcher.reading(f"ls {path}", lambda: self._fs.ls(path, **options))

    def exists(self, path: str) -> Any:
        return self._watcher.reading(f"exists {path}", lambda: self._fs.exists(path))


class _WatchedOs:
    """The os module as storage uses it for local files."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def link(self, source: str, path: str) -> None:
        self._watcher.effect(f"create {path}", lambda: os.link(source, path))

    def replace(self, source: str, path: str) -> None:
        self._watcher.effect(f"write {path}", lambda: os.replace(source, path))

    def unlink(self, path: str) -> None:
        self._watcher.effect(f"unlink {path}", lambda: os.unlink(path))


@contextmanager
def watched(output: str, watcher: Watcher) -> Iterator[None]:
    """Let every store of an output that is opened in this block be watched; one block at a time."""

    def open_watched(uri: str, options: Any = None) -> tuple[Any, str]:
        fs, root = open_filesystem(uri, options)
        return (WatchedFileSystem(fs, watcher), root) if uri.startswith(output) else (fs, root)

    def open_file(path: str, mode: str) -> Any:
        if mode != "xb":
            return builtins.open(path, mode)
        return watcher.effect(f"begin {path}", lambda: builtins.open(path, mode))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "open_filesystem", open_watched)
        for module in (store, exclusive_names):
            patch.setattr(module, "os", _WatchedOs(watcher))
        patch.setattr(store, "open", open_file, raising=False)
        yield
