"""``python -m benchmarks``: run all benchmarks, or some, and print what they measured."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.report import Report, machine, print_reports, replace_sections, write_markdown

NAMES = (
    *("tiny_rate", "costs", "many_prompts", "text_lengths", "pipeline_overhead", "orchestration", "scheduling"),
    *("load_rate", "jpeg_rate", "planning", "updates", "history", "peak_memory", "memory_curve"),
    *("large_image", "rle_rate", "sql", "look_up", "export", "diff"),
)
ON_REQUEST = ("start", "earlier", "peers", "named_sources", "compaction", "tiles")
"""Take minutes, install packages or need pictures of scenes: only if they are named."""
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=(*NAMES, *ON_REQUEST), action="append", help="run this one (may be given several times)"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}, or its sections of those chosen")
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that the programs work")
    arguments = parser.parse_args()
    facts, started = machine(), time.perf_counter()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    names, reports = arguments.only or NAMES, list[Report]()
    for position, name in enumerate(names, start=1):
        with console.status(f"{name} ({position} of {len(names)})"):
            begun = time.perf_counter()
            reports.append(importlib.import_module(f"benchmarks.{name}").run(tiny=arguments.tiny))
        console.print(f"[{position}/{len(names)}] {name}: {time.perf_counter() - begun:.0f} s", highlight=False)
    print_reports(reports, console)
    for report in reports:
        for remark in report.remarks:
            console.print(f"{report.name}: {remark}", highlight=False)
    if arguments.write:
        if arguments.only:
            replace_sections(RESULTS, reports, facts)
        else:
            write_markdown(RESULTS, reports, facts, time.perf_counter() - started)
        console.print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
