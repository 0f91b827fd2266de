"""Runs a command, and tells what it and all processes that it started took: seconds, processor time, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.05
_WEIGH_EVERY_S = 0.5
# How long processes that a command leaves behind may take to end.
_LEFT_S = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: from its start to its exit.
        cpu_seconds: of it and its descendants, including those that outlived it for a moment.
        first_s: seconds until the first result was seen; ``seconds`` if it never was.
        peak_mb: the most proportional set size (PSS) that all of them held at once, of 10**6 bytes, looked at twice a
            second.
    """

    seconds: float
    cpu_seconds: float
    first_s: float
    peak_mb: float


def measure(
    command: Sequence[str], environment: Mapping[str, str], has_first: Callable[[], object], log: Path, cwd: Path
) -> Measured:
    """Run a command.

    Args:
        command: the command.
        environment: its environment.
        has_first: whether the first result is there.
        log: file for what it prints.
        cwd: its working directory.

    Raises:
        RuntimeError: it fails; with the end of what it printed.
    """
    # Whatever a command leaves behind becomes a child of this process, whose processor time is told when it ends.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begun = time.perf_counter()
    with log.open("wb") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT, cwd=cwd)
        watch = _Watch(process.pid, begun, has_first)
        _pid, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.end()
    cpu_seconds = usage.ru_utime + usage.ru_stime + _reap_the_rest()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return Measured(seconds, cpu_seconds, min(watch.first_s, seconds), watch.peak_mb)


class _Watch:
    """A thread that looks at a process and its descendants."""

    def __init__(self, pid: int, begun: float, has_first: Callable[[], object]) -> None:
        self.first_s = float("inf")
        self.peak_mb = 0.0
        self._pid, self._begun, self._has_first = pid, begun, has_first
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        weighed = self._begun
        while not self._ended.wait(_LOOK_EVERY_S):
            now = time.perf_counter()
            if self.first_s == float("inf") and self._has_first():
                self.first_s = now - self._begun
            if now - weighed < _WEIGH_EVERY_S:
                continue
            weighed = now
            self.peak_mb = max(self.peak_mb, sum(map(_pss_mb, [self._pid, *_descendants(os.getpid(), self._pid)])))


def _descendants(root: int, besides: int) -> list[int]:
    """Return the descendants of a process; those that lost their own parent are its children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = list[int](), [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            if child != besides:
                found.append(child)
    return found


def _pss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _reap_the_rest() -> float:
    """Wait for the processes that were left behind, kill what does not end, and return their processor seconds."""
    seconds, deadline = 0.0, time.monotonic() + _LEFT_S
    while True:
        try:
            pid, _status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return seconds
        if pid:
            seconds += usage.ru_utime + usage.ru_stime
        elif time.monotonic() > deadline:
            for left in _descendants(os.getpid(), 0):
                with contextlib.suppress(OSError):
                    os.kill(left, signal.SIGKILL)
            deadline += _LEFT_S
        else:
            time.sleep(0.05)
