"""Every benchmark runs at a tiny size and reports finite figures. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import math
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peak_memory, plots
from benchmarks.__main__ import NAMES
from benchmarks.photos import write_photos
from benchmarks.pipeline_overhead import RUN_ID
from benchmarks.report import Figure, Report, machine, replace_sections, write_markdown
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from tests.support.fork_server import fork_server

REPOSITORY = Path(__file__).resolve().parents[2]
# Their processes are started as `run_child` does: from nothing. Those of the others import torch, or are many.
FROM_NOTHING = ("updates",)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Processes that are forked from one which has imported what the programs measure, but Ray."""
    names = (*("large_image", "memory_curve", "export", "diff", "planning"), "orchestration", "__main__")
    with fork_server("actors.predictor.predictor", *(f"benchmarks.{name}" for name in names)) as server:
        yield server


def run_forked(
    processes: ForkServerContext, environment: Mapping[str, str], module: str, *arguments: str
) -> tuple[int | None, str]:
    """Run ``python -m module arguments`` in a process of its own; its exit code and what it printed."""
    printed, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_run_module, args=(theirs, dict(environment), module, arguments))
    process.start()
    theirs.close()
    with os.fdopen(os.dup(printed.fileno())) as lines:
        text = lines.read()
    process.join()
    return process.exitcode, text


def _run_module(printed: Connection, environment: Mapping[str, str], module: str, arguments: tuple[str, ...]) -> None:
    os.dup2(printed.fileno(), sys.stdout.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("peak_memory", "orchestration")])
def test_runs_at_a_tiny_size_and_writes_its_section(
    name: str, processes: ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(module: str, *arguments: str) -> dict[str, Any]:
        code, text = run_forked(processes, os.environ, module, *arguments)
        assert code == 0, text
        return dict(json.loads(text.strip().splitlines()[-1]))

    benchmark = importlib.import_module(f"benchmarks.{name}")
    if hasattr(benchmark, "run_child") and name not in FROM_NOTHING:
        monkeypatch.setattr(benchmark, "run_child", run_child)
    report = benchmark.run(tiny=True)
    assert report.name == name
    assert report.figures
    assert all(math.isfinite(figure.value) for figure in report.figures)
    write_markdown(tmp_path / "RESULTS.md", [report], machine(), seconds=1.0)
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"## {name}: " in text
    assert all(figure.what in text for figure in report.figures)


def test_a_benchmark_that_is_run_alone_replaces_its_section(tmp_path: Path) -> None:
    def report(name: str, value: float) -> Report:
        figures = (Figure(what="rate", value=value, unit="images/s"),)
        return Report(name=name, question="how fast?", method="By a clock.", setup={}, figures=figures)

    path = tmp_path / "RESULTS.md"
    write_markdown(path, [report("one", 1), report("two", 2)], machine(), seconds=1.0)
    before = path.read_text()
    replace_sections(path, [report("one", 5), report("three", 3)], machine())
    after = path.read_text()
    assert [line for line in after.splitlines() if line.startswith("| rate")] == [
        "| rate | 5.00 | images/s |  |",
        "| rate | 2.00 | images/s |  |",
        "| rate | 3.00 | images/s |  |",
    ]
    assert after.index("## three: ") < after.index("## The full size on a GPU")
    replace_sections(path, [report("one", 1)], machine())
    assert path.read_text().replace(after[after.index("## three") : after.index("## The full")], "") == before


def test_the_picture_is_drawn_from_the_figures_that_are_written(tmp_path: Path) -> None:
    figures = plots.read_figures(REPOSITORY / "benchmarks" / "RESULTS.md")
    assert set(figures) >= set(NAMES)
    plots.draw(figures, tmp_path / "measured.png")
    assert (tmp_path / "measured.png").stat().st_size > 10_000
    with pytest.raises(KeyError, match="no figure is called like"):
        plots.draw({**figures, "rle_rate": {"other": 1.0}}, tmp_path / "measured.png")


def test_orchestration_runs_on_a_ray_of_its_own(processes: ForkServerContext) -> None:
    """In a process of its own: other tests have a Ray with other settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code, text = run_forked(processes, environment, "benchmarks", "--only", "orchestration", "--tiny")
    assert code == 0, text
    assert "of the time at work" in text


def test_peak_memory_labels_what_it_is_told_to(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3, shrink=8)
    peak_memory.label(tmp_path, 2, images_per_shard=1)
    (output,) = tmp_path.glob("output-*")
    assert open_table(open_store(str(output)), "images", RUN_ID).count_rows() == 2
