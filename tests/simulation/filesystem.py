"""A simulated store as an fsspec filesystem: what Store uses of one, over the simulated network."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tests.simulation.network import Network, Stored
from tests.simulation.world import EPOCH


class SimulatedFileSystem:
    """An fsspec filesystem whose every call is a request."""

    protocol = "s3"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.objects = network.objects

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return bytes(self.network.request("read", path, lambda: self.objects.get(path).data[start:end]))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        create, world = mode == "create", self.network.world
        put = partial(self.objects.put, path, value, create=create)
        self.network.request("create" if create else "write", path, lambda: put(now=world.now))

    def rm_file(self, path: str) -> None:
        self.network.request("delete", path, lambda: self.objects.delete(path, self.network.world.now))

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        def entries(held: Mapping[str, Stored]) -> dict[str, dict[str, Any]]:
            return {name: _info(name, stored) for name, stored in held.items()}

        found = self.network.request(
            "list",
            path,
            lambda: entries(self.objects.below(path)),
            lambda behind: entries(self._behind(path, behind)),
        )
        return found if detail else sorted(found)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        found = self.network.request(
            "list", path, lambda: self._children(path, 0.0), lambda behind: self._children(path, behind)
        )
        return found if detail else [entry["name"] for entry in found]

    def exists(self, path: str, **_: Any) -> bool:
        return bool(self.network.request("read", path, lambda: path in self.objects.held))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.network.request("read", path, lambda: _info(path, self.objects.get(path)))
        return found

    def size(self, path: str) -> int:
        return int(self.info(path)["size"])

    def modified(self, path: str) -> datetime:
        found: datetime = self.info(path)["LastModified"]
        return found

    created = modified

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Nothing is kept."""

    def _behind(self, folder: str, behind: float) -> dict[str, Stored]:
        """Return what a listing shows that does not know the last changes, each of which it may know all the same."""
        draw, since = self.network.world.random, self.network.world.now - behind
        shown = {
            path: stored
            for path, stored in self.objects.below(folder).items()
            if stored.at < since or draw.random() < 0.3
        }
        prefix = f"{folder.rstrip('/')}/"
        for path, (stored, at) in self.objects.gone.items():
            is_missed = path not in self.objects.held and at >= since > stored.at
            if path.startswith(prefix) and is_missed and draw.random() < 0.7:
                shown[path] = stored
        return dict(sorted(shown.items()))

    def _children(self, folder: str, behind: float) -> list[dict[str, Any]]:
        prefix = f"{folder.rstrip('/')}/"
        found: dict[str, dict[str, Any]] = {}
        held = self._behind(folder, behind) if behind else self.objects.below(folder)
        for path, stored in held.items():
            first, slash, _ = path.removeprefix(prefix).partition("/")
            name = prefix + first
            found[name] = {"name": name, "size": 0, "type": "directory"} if slash else _info(path, stored)
        if not found:
            raise FileNotFoundError(errno.ENOENT, folder)
        return list(found.values())


def _info(path: str, stored: Stored) -> dict[str, Any]:
    at = datetime.fromtimestamp(EPOCH + stored.at, UTC)
    return {"name": path, "size": len(stored.data), "type": "file", "LastModified": at, "created": at}
