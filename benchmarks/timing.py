"""Loops timed in turn, so that a noisy machine is as unkind to one as to the other; and the memory of a process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of several loops, one entry for each round; round i of one loop ran beside round i of the others.

    Attributes:
        seconds: wall-clock.
        cpu_seconds: of all threads of this process.
    """

    seconds: Mapping[str, list[float]]
    cpu_seconds: Mapping[str, list[float]]

    def best(self, name: str) -> float:
        """Return the fewest seconds that a loop took."""
        return min(self.seconds[name])

    def speed_ratios(self, name: str, baseline: str) -> list[float]:
        """Return for each round how many times as fast a loop was as the baseline."""
        return [theirs / ours for ours, theirs in zip(self.seconds[name], self.seconds[baseline], strict=True)]

    def speed_ratio(self, name: str, baseline: str) -> float:
        """Return the median over the rounds of how many times as fast a loop was as the baseline."""
        return median(self.speed_ratios(name, baseline))


def time_in_turn(loops: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True) -> Timed:
    """Run every loop once in each round, each round beginning with another one.

    Args:
        loops: what to time, by name.
        rounds: how often.
        warm_up: run each once before, untimed.
    """
    names = list(loops)
    for name in names if warm_up else ():
        loops[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            loops[name]()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
    return Timed(seconds, cpu_seconds)


def run_child(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module arguments`` and return the JSON object on the last line of what it prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def peak_rss_mb() -> float:
    """Return the most memory that this process has held so far, in MB of 10**6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before the child became its own program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
