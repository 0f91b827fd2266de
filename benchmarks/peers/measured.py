"""Runs a command, and tells what it and all processes that it started took: seconds, processor time, memory."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
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
        cpu_seconds: of it and its descendants, including those that outlived it for a moment; if what was seen of them
            twice a second adds up to more, that, for a parent that ignores how its children end hides what they took.
        first_s: seconds until the first result was seen; ``seconds`` if it never was.
        peak_mb: the most proportional set size (PSS) that all of them held at once, of 10**6 bytes, looked at twice a
            second.
    """

    seconds: float
    cpu_seconds: float
    first_s: float
    peak_mb: float


def measure(command: Sequence[str], environment: Mapping[str, str], first: str, log: Path, cwd: Path) -> Measured:
    """Run a command.

    It is a child of a process of its own, which becomes the parent of whatever the command leaves behind.

    Args:
        command: the command.
        environment: its environment.
        first: absolute pattern of files; the first result is there once one of them holds something.
        log: file for what it prints.
        cwd: its working directory.

    Raises:
        RuntimeError: it fails; with the end of what it printed.
    """
    order = {
        "command": list(command),
        "environment": dict(environment),
        "first": first,
        "log": str(log),
        "cwd": str(cwd),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.measured"],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    answer = json.loads(done.stdout)
    if answer.pop("code"):
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return Measured(**answer)


def _measure(command: list[str], environment: dict[str, str], first: str, log: str, cwd: str) -> dict[str, float]:
    # Whatever a command leaves behind becomes a child of this process, whose processor time is told when it ends.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begun = time.perf_counter()
    with Path(log).open("wb") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT, cwd=cwd)
        watch = _Watch(process.pid, begun, first)
        _pid, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.end()
    waited_for = usage.ru_utime + usage.ru_stime + _reap_the_rest()
    return {
        "code": process.returncode,
        "seconds": seconds,
        "cpu_seconds": max(waited_for, watch.cpu_seconds),
        "first_s": min(watch.first_s, seconds),
        "peak_mb": watch.peak_mb,
    }


class _Watch:
    """A thread that looks at a process and its descendants."""

    def __init__(self, pid: int, begun: float, first: str) -> None:
        self.first_s = float("inf")
        self.peak_mb = 0.0
        self._cpu_seconds: dict[tuple[int, int], float] = {}
        self._pid, self._begun, self._first = pid, begun, first
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        """What the processes had taken, each when it was last seen."""
        return sum(self._cpu_seconds.values())

    def _look(self) -> None:
        weighed = self._begun
        while not self._ended.wait(_LOOK_EVERY_S):
            now = time.perf_counter()
            if self.first_s == float("inf") and any(map(_holds_something, glob.iglob(self._first))):
                self.first_s = now - self._begun
            if now - weighed < _WEIGH_EVERY_S:
                continue
            weighed = now
            seen = [self._pid, *_descendants(os.getpid(), self._pid)]
            self.peak_mb = max(self.peak_mb, sum(map(_pss_mb, seen)))
            for pid in seen:
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    begun_at, ticks = int(fields[19]), int(fields[11]) + int(fields[12])
                    self._cpu_seconds[pid, begun_at] = ticks / os.sysconf("SC_CLK_TCK")


def _holds_something(file: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.getsize(file) > 0
    return False


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


if __name__ == "__main__":
    print(json.dumps(_measure(**json.load(sys.stdin))))
