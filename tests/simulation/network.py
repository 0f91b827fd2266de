"""A simulated object store, and the network between it and a process: a request may be late, lost, repeated or refused.

What a request does, it does at one moment; when that is, whether the answer comes back, and what a listing shows are
drawn from the seed. The store itself is right at every moment, and has a clock of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fsspec.exceptions import FSTimeoutError

from tests.simulation.world import Task, World

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
        num_requests, num_writes: so far.
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
        one = _Request(self, f"{verb} {path.removeprefix(ROOT).lstrip('/')}", effect, *world.ticket())
        fault = self._fault(verb) if self.rates else None
        if fault is None:
            one.reach(one.there)
        else:
            self.happened[fault] = self.happened.get(fault, 0) + 1
            self._befall(one, fault, stale)
        return world.wait()

    def _fault(self, verb: str) -> str | None:
        roll = self.world.random.random()
        for fault in FAULTS[verb]:
            roll -= self.rates.get(fault, 0.0)
            if roll < 0:
                return fault
        return None

    def _befall(self, one: _Request, fault: str, stale: Callable[[float], Any] | None) -> None:
        """Let a fault strike a request."""
        draw = self.world.random
        if fault in ERRORS:
            one.note(f"answered {fault!r}, nothing done")
            one.answer(ERRORS[fault](), one.there)
        elif fault == "slow":
            one.reach(self._late(longest=3 * CLIENT_TIMEOUT_S), note=" (slow)")
        elif fault == "lost answer":
            one.reach(one.there, is_answered=False, note=" (its answer is lost, it is sent again)")
            one.reach(one.there + draw.uniform(0.1, CLIENT_TIMEOUT_S))
        elif fault == "twice":
            one.reach(one.there)
            one.reach(one.there + self._late(), is_answered=False, note=" (the same request again)")
        elif fault == "late":
            if draw.random() < 0.85:
                one.reach(self._late(), is_answered=False, note=" (late)")
            if draw.random() < 0.3:  # the client sends it again, and that one comes through first
                one.reach(CLIENT_TIMEOUT_S + one.there)
            else:
                one.answer(FSTimeoutError(), CLIENT_TIMEOUT_S)
        elif fault == "cut short":
            one.reach(one.there, change=lambda data: data[: len(data) // 2], note=" (cut short)")
        elif fault == "stale":
            behind = self._late(shortest=0.5, longest=3600.0)
            one.effect = partial(stale or one.effect, behind)
            one.reach(one.there, note=f" ({behind:.1f} s behind)")
        else:
            self._die(one, is_sent=fault == "late death")

    def _late(self, shortest: float = 0.05, longest: float | None = None) -> float:
        """Draw a delay of any order of magnitude."""
        ratio = (longest or self.max_late_s) / shortest
        return float(shortest * ratio ** self.world.random.random())

    def _die(self, one: _Request, *, is_sent: bool) -> None:
        """Let the process die before its request is sent, or while it is on its way."""
        if is_sent:
            one.reach(one.there, note=" (its process is dead)")
            if self.world.random.random() < 0.5:
                one.reach(self._late(), note=" (the same request again, of a dead process)")
        self.world.at(0.0, one.task.process.die)


@dataclass
class _Request:
    """One request on its way.

    Attributes:
        what: verb and path.
        effect: what it does, and answers.
        task, token: what waits for the answer.
        there, back: seconds that request and answer take.
    """

    network: Network
    what: str
    effect: Callable[[], Any]
    task: Task
    token: int

    def __post_init__(self) -> None:
        draw = self.network.world.random
        self.there, self.back = draw.uniform(0.001, 0.05), draw.uniform(0.001, 0.05)

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        world = self.network.world
        world.trace.append((world.now, self.task.process.name, f"{self.what}: {what}"))

    def answer(self, value: Any, delay_s: float) -> None:
        """Let an answer come back."""
        self.network.world.wake(self.task, value, delay_s=delay_s + self.back, token=self.token)

    def reach(
        self,
        delay_s: float,
        *,
        is_answered: bool = True,
        change: Callable[[bytes], bytes] | None = None,
        note: str = "",
    ) -> None:
        """Let it take effect later, and be answered or not."""
        world = self.network.world

        def do() -> None:
            world.actor = self.task.process
            try:
                value = self.effect()
            except Exception as error:
                value = error
            world.actor = None
            if change is not None and isinstance(value, bytes):
                value = change(value)
            self.note((type(value).__name__ if isinstance(value, Exception) else "ok") + note)
            if is_answered:
                self.answer(value, 0.0)

        world.at(delay_s, do)
