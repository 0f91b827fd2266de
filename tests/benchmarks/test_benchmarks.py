"""Every benchmark runs at a tiny size and reports finite figures. Nothing is timed here."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import peak_memory, plots
from benchmarks.__main__ import NAMES
from benchmarks.photos import write_photos
from benchmarks.pipeline_overhead import RUN_ID
from benchmarks.report import Figure, Report, machine, replace_sections, write_markdown
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("peak_memory", "orchestration")])
def test_runs_at_a_tiny_size_and_writes_its_section(name: str, tmp_path: Path) -> None:
    report = importlib.import_module(f"benchmarks.{name}").run(tiny=True)
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


def test_orchestration_runs_on_a_ray_of_its_own() -> None:
    """In a process of its own: other tests have a Ray with other settings."""
    command = [sys.executable, "-m", "benchmarks", "--only", "orchestration", "--tiny"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the time at work" in done.stdout


def test_peak_memory_labels_what_it_is_told_to(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3, shrink=8)
    peak_memory.label(tmp_path, 2, images_per_shard=1)
    (output,) = tmp_path.glob("output-*")
    assert open_table(open_store(str(output)), "images", RUN_ID).count_rows() == 2
