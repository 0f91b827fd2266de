"""A storage client and a network that do to an output what real ones do on a bad day."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec.exceptions import FSTimeoutError

from tests.reliability.dying import Mortal


class _ServiceError(OSError):
    """An error of a storage service, with its code where botocore puts it."""

    def __init__(self, code: str) -> None:
        super().__init__(errno.EIO, code)
        self.response = {"Error": {"Code": code}}


# Nothing happens, and the client says so.
_ERRORS: Mapping[str, Callable[[], Exception]] = {
    "slow down": lambda: _ServiceError("SlowDown"),
    "timeout": FSTimeoutError,
    "disk full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "conflict": lambda: _ServiceError("ConditionalRequestConflict"),
    "refused": lambda: _ServiceError("PreconditionFailed"),
}
ON_EFFECTS = (*_ERRORS, "lost answer", "twice", "late", "death before", "death after")
ON_READINGS = ("slow down", "timeout", "cut short", "stale")


@dataclass
class Faulty(Mortal):
    """A Watcher with faults.

    Attributes:
        on_effects, on_readings: which fault befalls an effect or a reading, by its number from 0.
        late: writes that are on their way, as functions that let them land.
        recent: objects that were created lately: a stale listing does not show the last of them.
        happened: the faults that took place.
    """

    on_effects: Mapping[int, str]
    on_readings: Mapping[int, str]
    late: list[Callable[[], Any]] = field(default_factory=list)
    recent: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    _effects: int = 0
    _readings: int = 0

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        self._check()
        fault = self.on_effects.get(self._effects)
        self._effects += 1
        verb, _, path = name.partition(" ")
        # Only an object that must not exist can be refused.
        if fault is None or (fault in ("conflict", "refused") and verb != "create"):
            return self._do(do, path)
        self.happened.append(f"{fault}: {name}")
        if fault == "death before":
            self._die()
        if fault in _ERRORS:
            raise _ERRORS[fault]()
        if fault == "late":
            self.late.append(do)
            raise FSTimeoutError
        self._do(do, path)
        if fault == "death after":
            self._die()
        # The client asks again, of its own accord. What it created itself is in its way then.
        return do()

    def reading(self, name: str, do: Callable[[], Any]) -> Any:
        self._check()
        fault = self.on_readings.get(self._readings)
        self._readings += 1
        verb = name.partition(" ")[0]
        if fault is None or (fault == "cut short" and verb != "read") or (fault == "stale" and verb != "find"):
            return do()
        self.happened.append(f"{fault}: {name}")
        if fault in _ERRORS:
            raise _ERRORS[fault]()
        answer = do()
        if fault == "cut short":
            return answer[: len(answer) // 2]
        return {path: info for path, info in answer.items() if path not in self.recent[-3:]}

    def land(self) -> None:
        """Let all writes that are on their way arrive, in whatever order they have."""
        while self.late:
            # What was there before it, or has no source any more, does not land.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                self.late.pop()()

    def _do(self, do: Callable[[], Any], path: str) -> Any:
        answer = do()
        self.recent.append(path)
        return answer
