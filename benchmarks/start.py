"""How long one waits for a command: for one that has nothing to do, for a plan, and for the first committed shard.

``EARLIER=PATH python -m benchmarks --only start`` measures an earlier checkout of this repository as well, in turn,
with the packages of this environment.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.peers.compare import write_images
from benchmarks.peers.job import ROOT, names
from benchmarks.peers.measured import Measured, measure
from benchmarks.report import Figure, Report

NAME = "start"
_PLANNED, _LABELED = 65, 16
_ROUNDS = 3

Case = Mapping[str, Measured]


def run(*, tiny: bool = False) -> Report:
    """Measure this checkout, and the one that EARLIER names."""
    checkouts = {"": ROOT}
    if earlier := os.environ.get("EARLIER"):
        checkouts["earlier, "] = Path(earlier).resolve()
    rounds, taken = 1 if tiny else _ROUNDS, {which: list[Case]() for which in checkouts}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "few", _LABELED)
        write_images(folder / "more", _PLANNED)
        for number in range(rounds):
            for place, (which, checkout) in enumerate(checkouts.items()):
                output = folder / f"{place}-{number}"
                taken[which].append(_measure_all(checkout, folder, output))
    return _report(taken, rounds)


def _measure_all(checkout: Path, folder: Path, output: Path) -> Case:
    """Plan, label a folder, and do so again, when there is nothing to do."""
    log = output.with_suffix(".log")

    def call(command: str, images: str, has_first: Callable[[], object]) -> Measured:
        asked = ("--source", str(folder / images), "--output", str(output), "--categories", ", ".join(names()))
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        environment["PREFECT_HOME"] = str(folder / f"prefect-{checkout.name}")
        options = ("--replicas", "2") if command == "run" else ()
        return measure(
            [sys.executable, "-m", "flows.cli", command, *asked, *options], environment, has_first, log, checkout
        )

    def has_printed() -> bool:
        return log.exists() and log.stat().st_size > 0

    return {
        "plan": call("plan", "more", has_printed),
        "run": call("run", "few", lambda: any(output.glob("_runs/*/commits/*"))),
        "again": call("run", "few", has_printed),
    }


_FIGURES: tuple[tuple[str, Callable[[Case], float]], ...] = (
    ("a run with nothing to do", lambda case: case["again"].seconds),
    ("a run with nothing to do, until its first line", lambda case: case["again"].first_s),
    ("a run with nothing to do, processor time", lambda case: case["again"].cpu_seconds),
    (f"plan of {_PLANNED} files", lambda case: case["plan"].seconds),
    (f"plan of {_PLANNED} files, processor time", lambda case: case["plan"].cpu_seconds),
    (f"a run of {_LABELED} images, until its first shard is committed", lambda case: case["run"].first_s),
    (f"a run of {_LABELED} images", lambda case: case["run"].seconds),
    (f"a run of {_LABELED} images, processor time", lambda case: case["run"].cpu_seconds),
)


def _report(taken: Mapping[str, list[Case]], rounds: int) -> Report:
    figures = []
    for which, cases in taken.items():
        for what, value in _FIGURES:
            values = tuple(value(case) for case in cases)
            figures.append(Figure(what=f"{which}{what}", value=median(values), unit="s", repeats=values))
    if len(taken) > 1:
        for what, value in _FIGURES:
            ratios = tuple(value(then) / value(now) for now, then in zip(*taken.values(), strict=True))
            figures.append(Figure(what=f"{what}, earlier : now", value=median(ratios), unit="x", repeats=ratios))
    return Report(
        name=NAME,
        question="how long does one wait for a command?",
        method=(
            "`xsam-label` as a user starts it, from nothing: `plan`; `run` with two replicas and the embedded Prefect "
            "server; and the same `run` once more, which has nothing to do. Seconds are medians of the rounds; "
            "processor time is that of all processes of a command. The first line is the first that it prints."
        ),
        setup={"images": f"{_LABELED} JPEG files to label, {_PLANNED} to plan", "rounds": str(rounds)},
        figures=tuple(figures),
    )
