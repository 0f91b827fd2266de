"""What a benchmark hands back, the machine it ran on, and both as a table on the screen or as RESULTS.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GPU_RESULTS = Path(__file__).with_name("gpu") / "full_size_forward.json"
_GPU_HEADING = "## The full size on a GPU"
_PACKAGES = ("torch", "transformers", "numpy", "pillow", "pyarrow", "pycocotools", "fsspec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        what: what it is, in words that stand alone.
        value: the number.
        unit: its unit; "x" for a ratio of two speeds, above 1 where the first is faster.
        repeats: what each repeat gave, where there were several; ``value`` is then the best of them for a rate, and
            what Timed.speed_ratio makes of them for a ratio.
    """

    what: str
    value: float
    unit: str
    repeats: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The value with three digits that count."""
        return number(self.value)

    @property
    def span(self) -> str:
        """Least and most of the repeats."""
        return f"{number(min(self.repeats))} to {number(max(self.repeats))}" if len(self.repeats) > 1 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one benchmark found.

    Attributes:
        name: the module's name, as ``--only`` takes it.
        question: what it answers.
        method: how, in a paragraph.
        setup: sizes and settings, by name.
        figures: the numbers.
        remarks: what the numbers say and what they do not, one paragraph each.
    """

    name: str
    question: str
    method: str
    setup: Mapping[str, str]
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = field(default=())


def number(value: float) -> str:
    """Return a number with three digits that count, and thousands separated."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def machine() -> dict[str, str]:
    """Return what the figures depend on: hardware, date and versions."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": f"{cpu or platform.processor() or 'unknown'} ({platform.machine()}), {os.cpu_count()} cores",
        "RAM": f"{memory_kb * 1024 / 2**30:.1f} GiB",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def print_reports(reports: Iterable[Report], console: Console) -> None:
    """Print all figures as one table."""
    table = Table(title="benchmarks", title_justify="left")
    for name, justify in (("benchmark", "left"), ("figure", "left"), ("value", "right"), ("unit", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("repeats", overflow="fold")
    for report in reports:
        for row, figure in enumerate(report.figures):
            name = "" if row else report.name
            table.add_row(name, figure.what, figure.text, figure.unit, figure.span, end_section=False)
        table.add_section()
    console.print(table)


def write_markdown(path: Path, reports: Iterable[Report], facts: Mapping[str, str], seconds: float) -> None:
    """Write RESULTS.md: everything in it was measured or is a setting, nothing is typed by hand."""
    reports = list(reports)
    lines = [
        "# Measured",
        "",
        "Written by `python -m benchmarks --write`, every number by the program that measured it. `make bench` repeats",
        f"all of it (here in {seconds / 60:.1f} minutes) and prints the table without touching this file.",
        "",
        "Loops that are compared run in turn within one process, round after round, so that each ratio is between",
        "neighbors in time. The machine is small and shared: a ratio is the median over those rounds, half of all,",
        "in which other programs were least busy, and a rate is the best round's. The rates are this machine's own;",
        "the ratios and the memory say something about another one.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    for report in reports:
        lines += ["", *_section(report, facts["date"])]
    lines += ["", _GPU_HEADING, "", *gpu_lines(GPU_RESULTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def replace_sections(path: Path, reports: Iterable[Report], facts: Mapping[str, str]) -> None:
    """Replace sections of RESULTS.md by what was measured now, and the GPU's by what is kept of it.

    A new one comes before the GPU's.
    """
    parts = path.read_text(encoding="utf-8").rstrip("\n").split("\n## ")
    for report in reports:
        lines = "\n".join(_section(report, facts["date"])).removeprefix("## ") + "\n"
        place = next((i for i, part in enumerate(parts) if part.startswith(f"{report.name}: ")), None)
        if place is None:
            place = next((i for i, part in enumerate(parts) if f"## {part}".startswith(_GPU_HEADING)), len(parts))
            parts.insert(place, lines)
        else:
            parts[place] = lines
    gpu = "\n".join([_GPU_HEADING, "", *gpu_lines(GPU_RESULTS)]).removeprefix("## ")
    parts = [gpu if f"## {part}".startswith(_GPU_HEADING) else part for part in parts]
    path.write_text("\n## ".join(parts).rstrip("\n") + "\n", encoding="utf-8")


def _section(report: Report, date: str) -> list[str]:
    lines = [f"## {report.name}: {report.question}", "", report.method, ""]
    lines += [f"- {name}: {value}" for name, value in {**report.setup, "date": date}.items()]
    lines += [f"- again: `python -m benchmarks --only {report.name}`", ""]
    lines += ["| figure | value | unit | least to most of the repeats |", "|---|---:|---|---|"]
    lines += [f"| {f.what} | {f.text} | {f.unit} | {f.span} |" for f in report.figures]
    for remark in report.remarks:
        lines += ["", remark]
    return lines


def gpu_lines(path: Path) -> list[str]:
    """Return what benchmarks.gpu measured, as far as it was kept: this JSON file, and whole_run.json beside it."""
    command = "`python -m benchmarks.gpu.full_size_forward`"
    if not path.is_file():
        return [
            f"Not measured yet. {command} needs one CUDA device and less than four minutes, downloads nothing, and",
            f"writes {path.name}; kept as benchmarks/gpu/{path.name}, its figures appear here.",
        ]
    document = json.loads(path.read_text())
    facts = document["facts"]
    peak = facts["nominal_peak_tflop_per_second"]
    nominal = f", data sheet {number(peak)}" if peak else ""
    lines = [
        f"{facts['parameters'] / 1e9:.2f} billion random weights in {facts['dtype']} on {facts['device']}, "
        f"{facts['date']}, torch {facts['versions']['torch']}; synthetic images on the 1024 pixel canvas; again: "
        f"{command}. Operations by the formulas in benchmarks/gpu/flops.py; a large matrix product reaches "
        f"{number(facts['measured_peak_tflop_per_second'])} TFLOP/s there{nominal}.",
        "",
        "| batch | categories | tokens | images/s | TFLOP/image | share of data sheet | share of matrix product | GB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in document["cases"]:
        shares = [case["share_of_nominal_peak"], case["share_of_measured_peak"]]
        cells = [str(case[name]) for name in ("batch", "categories", "sequence_length")]
        cells += [number(case["images_per_second"]), number(case["tflop_per_image"])]
        cells += [f"{100 * share:.0f} %" if share else "" for share in shares]
        lines.append(f"| {' | '.join(cells)} | {number(case['peak_memory_gb'])} |")
    for parts in document["parts"]:
        spent = sorted(parts["ms_per_image"].items(), key=lambda part: -part[1])
        told = ", ".join(f"{part} {number(milliseconds)}" for part, milliseconds in spent)
        about = f"batch {parts['batch']}, {parts['categories']} categories"
        lines += ["", f"Milliseconds for each image ({about}): {told}."]
    if asked := document["prompts"]:
        lines += [
            "",
            "Several questions about each image, read once for all of them, against each with all done anew:",
            "",
        ]
        lines += ["| images | prompts of each | prompts/s | times as fast | GB |", "|---:|---:|---:|---:|---:|"]
    for case in asked:
        faster = case["apart_seconds"] / case["seconds"]
        cells = [str(case["images"]), str(case["prompts"]), number(case["prompts_per_second"]), number(faster)]
        lines.append(f"| {' | '.join(cells)} | {number(case['peak_memory_gb'])} |")
    for remark in document.get("remarks", ()):
        lines += ["", remark]
    if (whole_run := path.with_name("whole_run.json")).is_file():
        lines += ["", _say_whole_run(json.loads(whole_run.read_text()))]
    return lines


def _say_whole_run(facts: Mapping[str, Any]) -> str:
    """Say what benchmarks.gpu.whole_run measured."""
    busy = facts["device_busy_share"]
    return (
        f"A whole run on {facts['device']}, {facts['date']} ({facts['images']}; {facts['categories']} categories, "
        f"{number(facts['masks_per_image'])} masks an image of {number(facts['rle_characters_per_mask'])} characters "
        f"each, batches of {facts['batch_size']}): {number(facts['images_per_second'])} images/s from the first commit "
        f"to the last, device busy {'not told' if busy is None else f'{busy:.0%}'}; again: "
        "`python -m benchmarks.gpu.whole_run`."
    )
