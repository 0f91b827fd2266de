"""What listing and planning the images of a list, a table or a COCO file costs, against row by row."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.planning import plan_source
from benchmarks.report import Figure, Report, print_reports
from benchmarks.timing import peak_rss_mb, run_child, time_in_turn
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.sources.image_batches import LISTED, to_batches
from pipelines.sources.tabular import columns_json, read_rows
from pipelines.sources.uri_lists import resolve_uri
from pipelines.types import ImageRef

NAME = "named_sources"
_KINDS = (".txt", ".csv", ".jsonl", ".parquet", ".json")


def run(*, tiny: bool = False) -> Report:
    """Time the plans of one source of each kind, taken as columns and row by row; read the memory."""
    count, rounds = (1500, 1) if tiny else (1_000_000, 1)
    figures = list[Figure]()
    others = list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        for kind in _KINDS:
            source = write_source(Path(temporary), kind, count)
            loops: dict[str, Callable[[], object]] = {
                "columns": lambda source=source: plan_source(str(source), Path(temporary) / "output"),
                "rows": lambda source=source: plan_row_by_row(source),
            }
            timed = time_in_turn(loops, rounds=rounds, warm_up=False)
            others.append(timed.say_others())
            seconds = tuple(timed.seconds["columns"])
            figures += [
                Figure(what=f"{kind}: plan", value=timed.best("columns"), unit="s", repeats=seconds),
                Figure(
                    what=f"{kind}: plan : row by row",
                    value=timed.speed_ratio("columns", "rows"),
                    unit="times as fast",
                    repeats=tuple(timed.speed_ratios("columns", "rows")),
                ),
            ]
            memory = run_child("benchmarks.named_sources", str(source))["peak_rss_mb"]
            figures.append(Figure(what=f"{kind}: peak memory of planning", value=memory, unit="MB"))
            source.unlink()
    return Report(
        name=NAME,
        question="what does it cost to plan what a list, a table or a COCO file names?",
        method=(
            "Images in a bucket, in no order; tables and COCO files have an id and further columns. All of planning "
            "to local disk but the images themselves: the source is read, URIs made absolute, ids sorted and checked, "
            "and the plan written. Against the same with each row taken alone, as Python values. Memory is that of a "
            "process of its own at its peak."
        ),
        setup={"rows": f"{count:,}", "rounds": str(rounds), "other programs": "; ".join(others)},
        figures=tuple(figures),
    )


def rows_in_no_order(count: int) -> Iterator[dict[str, Any]]:
    """Yield rows of a table, each once, in an order far from sorted."""
    step = 7_368_787  # a prime
    for number in range(count):
        place = number * step % count
        uri = f"s3://photos-of-2026/{place // 1000:04}/IMG_{place:07}.jpg"
        yield {
            "image_id": f"id-{place:07}",
            "uri": uri,
            "label": ("cup", "moon", "cat")[place % 3],
            "width": place % 99,
        }


def write_source(folder: Path, kind: str, count: int) -> Path:
    """Write a source of one kind."""
    path, rows = folder / f"source{kind}", rows_in_no_order(count)
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == ".txt":
            file.writelines(f"{row['uri']}\n" for row in rows)
        elif kind == ".jsonl":
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        elif kind == ".csv":
            writer = csv.writer(file)
            writer.writerow(["image_id", "uri", "label", "width"])
            writer.writerows(row.values() for row in rows)
        else:
            entries = ({"id": n, "file_name": row["uri"], "width": row["width"]} for n, row in enumerate(rows))
            file.write('{"images": [')
            file.writelines(f"{', ' if entry['id'] else ''}{json.dumps(entry)}" for entry in entries)
            file.write("]}")
    return path


def plan_row_by_row(source: Path) -> int:
    """Draft the plan of a source, each row taken alone."""
    with draft_plan(to_batches(_refs(source), LISTED), PlanConfig()) as draft:
        return draft.num_images


def _refs(source: Path) -> Iterator[ImageRef]:
    folder = str(source.parent)
    if source.suffix == ".txt":
        with open(source, encoding="utf-8") as file:
            for line in file:
                uri = line.strip()
                yield ImageRef(image_id=uri, uri=resolve_uri(uri, folder, "line"))
        return
    if source.suffix == ".json":
        rows: Iterator[dict[str, Any]] = iter(json.loads(source.read_bytes())["images"])
    else:
        rows = read_rows(str(source))
    for row in rows:
        uri = row.pop("file_name") if source.suffix == ".json" else row.pop("uri")
        image_id = row.pop("image_id", uri)
        yield ImageRef(image_id=image_id, uri=resolve_uri(uri, folder, "row"), source_columns=columns_json(row))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print_reports([run()], Console(width=120))
    else:
        with tempfile.TemporaryDirectory() as output:
            plan_source(sys.argv[1], Path(output))
        print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
