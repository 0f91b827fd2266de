"""What a COCO export costs: memory, time and bytes, of a table and of one with four times the masks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import Figure, Report
from benchmarks.sql import encode_some, image_id, shard_table
from benchmarks.timing import peak_rss_mb, run_child
from pipelines.layout import KINDS, Kind, commit_name, data_name
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import write_plan
from pipelines.sources.image_batches import to_batches
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import parquet_bytes
from pipelines.table.schema import IMAGES
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import ImageRef, Rle

NAME = "export"
_RUN = "run-1"
_MASKS_PER_IMAGE = 20


def run(*, tiny: bool = False) -> Report:
    """Export two tables as COCO JSON, each in a process of its own, and load the smaller one with pycocotools."""
    few = 20 if tiny else 50_000
    with tempfile.TemporaryDirectory() as folder:
        measured, encoded = {}, encode_some()
        for images in (few, 4 * few):
            write_output(Path(folder) / f"output-{images}", images, encoded)
            measured[images] = run_child("benchmarks.export", "export", folder, str(images))
        loaded = run_child("benchmarks.export", "load", folder, str(few))
    figures = []
    for images, found in measured.items():
        what = f"{images * _MASKS_PER_IMAGE:,} masks"
        figures += [
            Figure(what=f"{what}: most memory", value=found["peak_rss_mb"], unit="MB"),
            Figure(what=f"{what}: time", value=found["seconds"], unit="s"),
            Figure(what=f"{what}: size of the file", value=found["bytes"] / 1e6, unit="MB"),
        ]
    masks = few * _MASKS_PER_IMAGE
    if loaded["annotations"] != masks:
        raise RuntimeError(f"pycocotools found {loaded['annotations']:,} of {masks:,} masks")
    figures += [
        Figure(what="pycocotools.COCO of the smaller: time", value=loaded["seconds"], unit="s"),
        Figure(what="pycocotools.COCO of the smaller: most memory", value=loaded["peak_rss_mb"], unit="MB"),
    ]
    return Report(
        name=NAME,
        question="does the memory of an export grow with the table?",
        method=(
            "Each case is a process of its own that exports a local output; the figure is the most memory that it ever "
            "held (VmHWM), libraries included."
        ),
        setup={
            "rows": f"{_MASKS_PER_IMAGE} masks an image, 80 categories, in shards of 500 images",
            "masks": "of smooth outlines at 640 x 480: a hundred, again and again",
        },
        figures=tuple(figures),
        remarks=(
            "DuckDB may hold 1 GB for sorting and spills the rest beside the target: from there on memory does not "
            "grow with the table.",
        ),
    )


def write_output(folder: Path, images: int, encoded: list[Rle]) -> Store:
    """Write a whole run of so many images, as if a model had found the masks given again and again."""
    store = open_store(str(folder))
    refs = (ImageRef(image_id=image_id(number), uri=f"s3://bucket/{image_id(number)}") for number in range(images))
    with draft_plan(to_batches(refs), PlanConfig()) as draft:
        write_plan(store, _RUN, draft, fingerprint={}, facts={}, driver_id="d1")
        rng, first = np.random.default_rng(0), 0
        for shard in draft.shards():
            numbers = range(first, first + len(shard.images))
            rows = shard_table(rng, encoded, numbers, shard.shard_id, _MASKS_PER_IMAGE)
            _commit(store, shard.shard_id, {"annotations": rows, "images": _images(numbers, shard.shard_id)})
            first = numbers.stop
    return store


def _images(numbers: range, shard_id: str) -> pa.Table:
    row = {
        "width": 640,
        "height": 480,
        "status": "ok",
        "attempts": 1,
        "num_annotations": _MASKS_PER_IMAGE,
        "per_prompt": [],
        "run_id": _RUN,
        "shard_id": shard_id,
        "attempt": "0a1b2c3d-0",
    }
    names = [image_id(number) for number in numbers]
    return pa.Table.from_pylist([{"image_id": n, "uri": f"s3://bucket/{n}", **row} for n in names], schema=IMAGES)


def _commit(store: Store, shard_id: str, tables: dict[Kind, pa.Table]) -> None:
    files = {}
    for kind in KINDS:
        data, name = parquet_bytes(tables[kind], kind, {}), data_name(kind, _RUN, shard_id, "0a1b2c3d-0")
        store.write(name, data)
        digest = hashlib.sha256(data).hexdigest()
        files[kind] = DataFile(name=name, num_bytes=len(data), sha256=digest, rows=len(tables[kind]))
    commit = ShardCommit(
        run_id=_RUN,
        shard_id=shard_id,
        attempt="0a1b2c3d-0",
        annotations=files["annotations"],
        images=files["images"],
        status_counts={"ok": files["images"].rows},
        reason_counts={},
    )
    store.create(commit_name(_RUN, shard_id), commit.to_json())


def _export(folder: Path, images: int) -> dict[str, float]:
    from pipelines.export.write import Choice, export_output

    started, target = time.perf_counter(), folder / f"coco-{images}.json"
    export_output(open_store(str(folder / f"output-{images}")), str(target), "coco", Choice())
    return {"seconds": time.perf_counter() - started, "bytes": target.stat().st_size, "peak_rss_mb": peak_rss_mb()}


def _load(folder: Path, images: int) -> dict[str, float]:
    from pycocotools.coco import COCO

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / f"coco-{images}.json"))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "annotations": len(coco.anns), "peak_rss_mb": peak_rss_mb()}


if __name__ == "__main__":
    measure = {"export": _export, "load": _load}[sys.argv[1]]
    print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
