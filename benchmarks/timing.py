"""Loops timed in turn, so that a noisy machine is as unkind to one as to the other; and the memory of a process."""

from __future__ import annotations

import json
import os
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
    """Several loops timed, one entry for each round; round i of one loop ran beside round i of the others.

    Attributes:
        seconds: wall-clock, by loop.
        cpu_seconds: of all threads of this process, by loop.
        others: for each round, how many cores other programs kept busy meanwhile.
    """

    seconds: Mapping[str, list[float]]
    cpu_seconds: Mapping[str, list[float]]
    others: list[float]

    def best(self, name: str) -> float:
        """Return the fewest seconds that a loop took."""
        return min(self.seconds[name])

    def speed_ratios(self, name: str, baseline: str) -> list[float]:
        """Return for each round how many times as fast a loop was as the baseline."""
        return [theirs / ours for ours, theirs in zip(self.seconds[name], self.seconds[baseline], strict=True)]

    def speed_ratio(self, name: str, baseline: str) -> float:
        """Return how many times as fast a loop was as the baseline: the median over the quieter half of the rounds."""
        return self._quiet_median(self.speed_ratios(name, baseline))

    def cpu_ratios(self, name: str, baseline: str) -> list[float]:
        """Return for each round how many times the baseline's processor time a loop took."""
        pairs = zip(self.cpu_seconds[name], self.cpu_seconds[baseline], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def cpu_ratio(self, name: str, baseline: str) -> float:
        """Return how many times the baseline's processor time a loop took: the median as for speed_ratio."""
        return self._quiet_median(self.cpu_ratios(name, baseline))

    def _quiet_median(self, values: list[float]) -> float:
        quietest = sorted(range(len(values)), key=lambda number: self.others[number])[: -(-len(values) // 2)]
        return median(values[number] for number in quietest)

    def say_others(self) -> str:
        """Say how busy other programs kept the machine."""
        return f"{min(self.others):.1f} to {max(self.others):.1f} cores in a round"


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
    timed = Timed({name: [] for name in names}, {name: [] for name in names}, [])
    for number in range(rounds):
        round_started, busy = time.perf_counter(), busy_elsewhere()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            loops[name]()
            timed.seconds[name].append(time.perf_counter() - started)
            timed.cpu_seconds[name].append(time.process_time() - cpu_started)
        elapsed = time.perf_counter() - round_started
        timed.others.append(max(0.0, busy_elsewhere() - busy) / elapsed)
    return timed


def busy_elsewhere() -> float:
    """Return the processor seconds that all other processes of this machine have used; 0 where that is not told."""
    try:
        cpu = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(ticks) for ticks in cpu)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()


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
