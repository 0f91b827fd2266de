"""A simulated object store, and the network between it and a process: a request may be late, lost, repeated or refused.

What a request does, it does at one moment; when that is, whether the answer comes back, and what a listing shows are
drawn from the seed. The store itself is right at every moment, and has a clock of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fsspec.exceptions import FSTimeoutError

from tests.simulation.world import EPOCH, World

ROOT = "sim/out"
URI = f"s3://{ROOT}"
CLIENT_TIMEOUT_S = 60.0


class ServiceError(OSError):
    """An error of a storage service, with its code where botocore puts it."""

    def __init__(self, code: str) -> None:
        super().__init__(errno.EIO, code)
        self.response = {"Error": {"Code": code}}


ERRORS: Mapping[str, Callable[[], Exception]] = {
    "slow down": lambda: ServiceError("SlowDown"),
    "timeout": FSTimeoutError,
    "disk full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "denied": lambda: PermissionError(errno.EACCES, "AccessDenied"),
    "conflict": lambda: ServiceError("ConditionalRequestConflict"),
    "refused": lambda: ServiceError("PreconditionFailed"),
}
ON_WRITES = ("slow down", "timeout", "disk full", "lost answer", "twice", "late", "slow", "early death", "late death")
ON_CREATES = (*ON_WRITES, "conflict", "refused")
ON_DELETES = ("slow down", "timeout", "denied", "lost answer", "twice", "late", "slow", "early death", "late death")
ON_READS = ("slow down", "timeout", "cut short", "slow", "early death")
ON_LISTS = ("slow down", "timeout", "stale", "slow", "early death")
FAULTS: Mapping[str, tuple[str, ...]] = {
    "create": ON_CREATES,
    "write": ON_WRITES,
    "delete": ON_DELETES,
    "read": ON_READS,
    "list": ON_LISTS,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: its bytes, and when they were put."""

    data: bytes
    at: float


@dataclass
class Objects:
    """What the store holds, by path; and what listings that are behind need of the past.

    Attributes:
        gone: objects that were deleted, and when.
        on_change: told of every change after it has happened: verb, path, and when what was deleted had been put.
    """

    held: dict[str, Stored] = field(default_factory=dict)
    gone: dict[str, tuple[Stored, float]] = field(default_factory=dict)
    on_change: Callable[[str, str, float], None] = lambda _verb, _path, _at: None

    def put(self, path: str, data: bytes, now: float, *, create: bool) -> None:
        if create and path in self.held:
            raise FileExistsError(errno.EEXIST, path)
        self.held[path] = Stored(data, now)
        self.on_change("create" if create else "write", path, now)

    def delete(self, path: str, now: float) -> None:
        """Delete; S3 does not say whether there was anything."""
        if (stored := self.held.pop(path, None)) is not None:
            self.gone[path] = (stored, now)
            self.on_change("delete", path, stored.at)

    def get(self, path: str) -> Stored:
        if (found := self.held.get(path)) is None:
            raise FileNotFoundError(errno.ENOENT, path)
        return found

    def below(self, folder: str) -> dict[str, Stored]:
        prefix = f"{folder.rstrip('/')}/"
        return {path: self.held[path] for path in sorted(self.held) if path.startswith(prefix)}


@dataclass
class Network:
    """Draws what becomes of each request.

    Attributes:
        rates: how likely each fault is, of each request that it can strike; empty for a network without faults.
        max_late_s: how late a request may be.
        num_requests: so far.
        happened: faults, and how often.
    """

    world: World
    objects: Objects
    rates: Mapping[str, float] = field(default_factory=dict)
    max_late_s: float = 3 * 86400.0
    num_requests: int = 0
    num_writes: int = 0
    happened: dict[str, int] = field(default_factory=dict)

    def request(
        self, verb: str, path: str, effect: Callable[[], Any], stale: Callable[[float], Any] | None = None
    ) -> Any:
        """Send a request and wait for its answer.

        Args:
            verb: create, write, delete, read or list.
            path: of the object or folder.
            effect: what it does, and answers; raises what the service would.
            stale: of a listing, what it shows if it is so many seconds behind.
        """
        world = self.world
        if world.current is None:
            return effect()  # of whoever looks at a life from outside
        self.num_requests += 1
        self.num_writes += verb in ("create", "write", "delete")
        fault = self._fault(verb) if self.rates else None
        task, token = world.ticket()
        draw = world.random
        there, back = draw.uniform(0.001, 0.05), draw.uniform(0.001, 0.05)
        what = f"{verb} {path.removeprefix(ROOT).lstrip('/')}"

        def act(*, answered: bool = True, note: str = "") -> Callable[[], None]:
            def do() -> None:
                world.actor = task.process
                value = self._effect(effect)
                world.actor = None
                failed = type(value).__name__ if isinstance(value, Exception) else "ok"
                world.trace.append((world.now, task.process.name, f"{what}: {failed}{note}"))
                if answered:
                    world.wake(task, value, delay_s=back, token=token)

            return do

        if fault is None:
            world.at(there, act())
            return world.wait()
        self.happened[fault] = self.happened.get(fault, 0) + 1
        if fault in ERRORS:
            world.trace.append((world.now, task.process.name, f"{what}: answered {fault!r}, nothing done"))
            world.wake(task, ERRORS[fault](), delay_s=there + back, token=token)
        elif fault == "slow":
            world.at(self._late(longest=3 * CLIENT_TIMEOUT_S), act(note=" (slow)"))
        elif fault == "lost answer":
            world.at(there, act(answered=False, note=" (its answer is lost, it is sent again)"))
            world.at(there + draw.uniform(0.1, CLIENT_TIMEOUT_S), act())
        elif fault == "twice":
            world.at(there, act())
            world.at(there + self._late(), act(answered=False, note=" (the same request again)"))
        elif fault == "late":
            if draw.random() < 0.85:
                world.at(self._late(), act(answered=False, note=" (late)"))
            if draw.random() < 0.3:  # the client sends it again, and that one comes through first
                world.at(CLIENT_TIMEOUT_S + there, act())
            else:
                world.wake(task, FSTimeoutError(), delay_s=CLIENT_TIMEOUT_S, token=token)
        elif fault == "cut short":
            world.at(there, self._cut(act, task, token, effect, back, what))
        elif fault == "stale":
            assert stale is not None
            behind = self._late(shortest=0.5, longest=3600.0)
            world.trace.append((world.now, task.process.name, f"{what}: {behind:.1f} s behind"))
            world.at(there, lambda: world.wake(task, self._effect(lambda: stale(behind)), delay_s=back, token=token))
        else:
            self._die(fault, act, there, task)
        return world.wait()

    def _fault(self, verb: str) -> str | None:
        roll = self.world.random.random()
        for fault in FAULTS[verb]:
            roll -= self.rates.get(fault, 0.0)
            if roll < 0:
                return fault
        return None

    def _late(self, shortest: float = 0.05, longest: float | None = None) -> float:
        """Draw a delay of any order of magnitude."""
        ratio = (longest or self.max_late_s) / shortest
        return float(shortest * ratio ** self.world.random.random())

    def _effect(self, effect: Callable[[], Any]) -> Any:
        try:
            return effect()
        except Exception as error:
            return error

    def _cut(
        self, act: Any, task: Any, token: int, effect: Callable[[], Any], back: float, what: str
    ) -> Callable[[], None]:
        def do() -> None:
            value = self._effect(effect)
            if isinstance(value, bytes):
                value = value[: len(value) // 2]
                self.world.trace.append((self.world.now, task.process.name, f"{what}: cut short"))
            self.world.wake(task, value, delay_s=back, token=token)

        return do

    def _die(self, fault: str, act: Any, there: float, task: Any) -> None:
        """Let the process die before its request is sent, or while it is on its way."""
        process = task.process
        if fault == "late death":
            self.world.at(there, act(note=" (its process is dead)"))
            if self.world.random.random() < 0.5:
                self.world.at(self._late(), act(note=" (the same request again, of a dead process)"))

        def end() -> None:
            self.world.trace.append((self.world.now, process.name, "dies"))
            process.end()

        self.world.at(0.0, end)


class SimulatedFileSystem:
    """What Store uses of an fsspec filesystem, over the network."""

    protocol = "s3"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.objects = network.objects

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return bytes(self.network.request("read", path, lambda: self.objects.get(path).data[start:end]))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        create = mode == "create"
        verb = "create" if create else "write"
        now = self.network.world
        self.network.request(verb, path, lambda: self.objects.put(path, value, now.now, create=create))

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
            if path.startswith(prefix) and path not in self.objects.held and at >= since > stored.at:
                if draw.random() < 0.7:
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
