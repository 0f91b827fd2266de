"""What do thousands of small files cost a reader that goes by the path, and what is left once they are compacted?"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.look_up import write_output
from benchmarks.report import Figure, Report
from benchmarks.sql import image_id
from benchmarks.timing import time_in_turn
from pipelines.compaction import compact
from pipelines.query.database import open_database
from pipelines.storage.store import open_store

NAME = "compaction"
_NIGHTS = 4
_COUNT = "SELECT category_name, count(*) FROM '{}' GROUP BY 1 ORDER BY 1"
_LOOK_UP = "SELECT category_name, score FROM '{}' WHERE image_id = '{}' ORDER BY 1, 2"


def run(*, tiny: bool = False) -> Report:
    """Write small shards, compact them, and ask both."""
    images, per_shard, rounds = (40, 2, 1) if tiny else (25_000, 10, 2)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/output")
        for night in range(_NIGHTS):
            write_output(store, images, run_id=f"night-{night}", per_shard=per_shard)
        started, cpu_started = time.perf_counter(), time.process_time()
        compacted, _ = compact(store)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        small = f"{store.root}/annotations/*/*.parquet"
        large = f"{store.root}/{compacted.folder}/annotations/*.parquet"
        one = image_id(images // 2)
        asked = {"masks of each category": _COUNT, "masks of one image": _LOOK_UP}
        loops = {
            f"{what}, {how}": lambda sql=sql, path=path: duckdb.sql(sql.format(path, one)).fetchall()
            for what, sql in asked.items()
            for how, path in (("small files", small), ("compacted", large))
        }
        for what in asked:
            if loops[f"{what}, small files"]() != loops[f"{what}, compacted"]():
                raise RuntimeError(f"{what}: a compaction answers otherwise")
        timed = time_in_turn(loops, rounds=rounds, warm_up=False)
        opened = time.process_time()
        open_database(store).close()
        opened = time.process_time() - opened
        num_small = sum(1 for _ in Path(store.root, "annotations").rglob("*.parquet"))
    figures = []
    for name in loops:
        milliseconds = tuple(1000 * seconds for seconds in timed.seconds[name])
        figures.append(Figure(what=name, value=min(milliseconds), unit="ms", repeats=milliseconds))
    for what in asked:
        pair = f"{what}, compacted", f"{what}, small files"
        ratios = tuple(timed.speed_ratios(*pair))
        figures.append(
            Figure(what=f"{what}: compacted : small", value=timed.speed_ratio(*pair), unit="x", repeats=ratios)
        )
    return Report(
        name=NAME,
        question="what do thousands of small files cost a reader?",
        method=(
            "An output of some nights on local disk, in the page cache, read by DuckDB by the path of its files and by "
            "that of its compaction. On S3 each file that is opened costs requests of its own, too."
        ),
        setup={
            "files of annotations": f"{num_small:,}, compacted {len(compacted.files['annotations'])}",
            "rows": f"{sum(one.annotations for one in compacted.runs.values()):,}",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=(
            *figures,
            Figure(what="compact", value=took, unit="s"),
            Figure(what="compact, all threads", value=cpu, unit="s of CPU"),
            Figure(what="open_database of all small files", value=opened, unit="s of CPU"),
        ),
    )
