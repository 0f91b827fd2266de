"""How long do the masks of one image take, of an output with ten million, and how many requests on S3?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.folder_server import BUCKET, Served, served
from benchmarks.report import Figure, Report
from benchmarks.sql import CATEGORIES, encode_some, image_id, shard_table
from benchmarks.timing import busy_elsewhere
from pipelines.layout import KINDS, SCHEMA_VERSION, Kind, commit_name, data_name
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import write_plan
from pipelines.query.database import open_database
from pipelines.sources.image_batches import BATCH_SIZE, FILES
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import parquet_bytes
from pipelines.table.image_lookup import ImageIndex
from pipelines.table.reader import open_table
from pipelines.table.schema import IMAGES
from pipelines.table.shard_commit import DataFile, ShardCommit

NAME = "look_up"
RUN = "run-1"
_MASKS_PER_IMAGE = 8
_IMAGES_PER_SHARD = 500
_ATTEMPT = "0a1b2c3d-0"
_SQL = "SELECT category_name, score, segmentation FROM {} {} ORDER BY score DESC"
_ASKED = 25
_REMOTE_SHARDS = 260  # two plan files


def run(*, tiny: bool = False) -> Report:
    """Write outputs, and ask them for one image after the other."""
    images, asked = (1500, 3) if tiny else (1_250_000, _ASKED)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/output"
        store = open_store(uri)
        write_output(store, images)
        busy, since = busy_elsewhere(), time.perf_counter()
        figures = [*_local(store, images, asked)]
        busy = (busy_elsewhere() - busy) / (time.perf_counter() - since)
        remote = images if tiny else _REMOTE_SHARDS * _IMAGES_PER_SHARD
        write_output(open_store(f"{folder}/bucket/output"), remote)
        with served(Path(folder) / "bucket") as server:
            figures += _requests(server, remote)
    return Report(
        name=NAME,
        question="how long do the masks of one image take?",
        method=(
            "An output as a run leaves it, on local disk in the page cache; each time another image, of whose shard "
            "nothing is known. The glob is DuckDB's read_parquet over all files, with the image's id as a literal. "
            "ImageIndex is opened once and has read the plan; the others begin anew with every image. Requests: the "
            "same on S3, counted by a server that serves a smaller output of the same kind; the median over the images."
        ),
        setup={
            "rows": f"{images * _MASKS_PER_IMAGE:,} masks of {images:,} images, in shards of {_IMAGES_PER_SHARD}",
            "rows behind the server": f"{remote * _MASKS_PER_IMAGE:,}",
            "images asked": str(asked),
            "other programs": f"{busy:.1f} cores while it was asked",
        },
        figures=tuple(figures),
    )


def _readers(store: Store, index: ImageIndex) -> dict[str, Callable[[str], int]]:
    """Return ways to read the masks of an image, each with how many it finds."""
    where = "WHERE image_id = '{}'"
    return {
        "ImageIndex.read": lambda image: index.read("annotations", [image]).num_rows,
        "open_table(run_id, image_ids)": lambda image: (
            open_table(store, "annotations", RUN, image_ids=[image]).to_table().num_rows
        ),
        "open_database(image_ids) and a query": lambda image: len(
            open_database(store, image_ids=[image]).execute(_SQL.format("annotations", "")).fetchall()
        ),
        "glob": lambda image: len(
            duckdb.sql(
                _SQL.format(f"'{store.root}/annotations/*/*.parquet'", where.format(image.replace("'", "''")))
            ).fetchall()
        ),
    }


def _local(store: Store, images: int, asked: int) -> Iterator[Figure]:
    rng, index = np.random.default_rng(1), ImageIndex(store)
    wall, cpu = dict[str, list[float]](), dict[str, list[float]]()
    for place in range(asked):
        chosen = image_id(int(rng.integers(images)))
        for name, read in _readers(store, index).items():
            if name == "glob" and place >= 5:
                continue
            started, cpu_started = time.perf_counter(), time.process_time()
            if read(chosen) != _MASKS_PER_IMAGE:
                raise RuntimeError(f"{name} finds other masks of {chosen}")
            wall.setdefault(name, []).append(1000 * (time.perf_counter() - started))
            cpu.setdefault(name, []).append(1000 * (time.process_time() - cpu_started))
    for unit, times in (("ms", wall), ("ms of CPU", cpu)):
        for name, repeats in times.items():
            yield Figure(what=f"{name}, local disk: median", value=median(repeats), unit=unit, repeats=tuple(repeats))


def _requests(server: Served, images: int) -> Iterator[Figure]:
    store = open_store(f"s3://{BUCKET}/output", server.options)
    rng, index = np.random.default_rng(2), ImageIndex(store)
    for part in range(0, images, _IMAGES_PER_SHARD):  # whatever it needs to remember
        if not part % (100 * _IMAGES_PER_SHARD):
            index.read("annotations", [image_id(part)])
    counts: dict[str, list[float]] = {}
    for _ in range(5):
        chosen = image_id(int(rng.integers(images)))
        for name, read in _readers(store, index).items():
            if name == "glob":
                continue
            before = len(server.requests)
            if read(chosen) != _MASKS_PER_IMAGE:
                raise RuntimeError(f"{name} finds other masks of {chosen}")
            counts.setdefault(name, []).append(len(server.requests) - before)
    for name, repeats in counts.items():
        yield Figure(what=f"{name}, S3: requests", value=median(repeats), unit="requests", repeats=tuple(repeats))


def write_output(store: Store, images: int, *, run_id: str = RUN, per_shard: int = _IMAGES_PER_SHARD) -> None:
    """Write a finished run: its plan, its data files and its commits, as a run does, but for the labeling."""
    rng, encoded, held = np.random.default_rng(0), encode_some(), dict[int, tuple[pa.Table, pa.Table]]()
    with draft_plan(_listing(images), PlanConfig(images_per_shard=per_shard)) as draft:
        plan = write_plan(store, run_id, draft, fingerprint={}, facts={}, driver_id="0a1b2c3d")
    for number, shard_id in enumerate(plan.shard_ids()):
        some = range(number * per_shard, min(images, (number + 1) * per_shard))
        if len(some) not in held:
            held[len(some)] = shard_table(rng, encoded, some, shard_id, _MASKS_PER_IMAGE), _images(some)
        commit_rows(store, run_id, shard_id, some, *held[len(some)])


def commit_rows(store: Store, run_id: str, shard_id: str, some: range, annotations: pa.Table, images: pa.Table) -> None:
    """Commit a shard of some images: rows of others, with their names."""
    ids = np.array([image_id(number) for number in some])
    files = {}
    for kind, table in dict[Kind, pa.Table](zip(KINDS, (annotations, images), strict=True)).items():
        count = len(table) // len(some)
        names = {
            "image_id": np.repeat(ids, count),
            "run_id": [run_id] * len(table),
            "shard_id": [shard_id] * len(table),
        }
        names["image_uri" if kind == "annotations" else "uri"] = np.char.add("s3://bucket/", names["image_id"])
        if kind == "annotations":
            first = some.start * count
            names["annotation_id"] = [f"{(first + row) * 2654435761 % 2**64:020x}" for row in range(len(table))]
        columns = [pa.array(names[one], pa.string()) if one in names else table[one] for one in table.column_names]
        data = parquet_bytes(pa.table(columns, schema=table.schema), kind, {"run_id": run_id})
        name = data_name(kind, run_id, shard_id, _ATTEMPT)
        store.write(name, data)
        files[kind] = DataFile.of(name, data, table.num_rows)
    commit = ShardCommit(
        run_id=run_id,
        shard_id=shard_id,
        attempt=_ATTEMPT,
        annotations=files["annotations"],
        images=files["images"],
        status_counts={"ok": len(some)},
        reason_counts={},
        schema_version=SCHEMA_VERSION,
    )
    store.create(commit_name(run_id, shard_id), commit.to_json())


def _listing(images: int) -> Iterator[pa.RecordBatch]:
    for first in range(0, images, BATCH_SIZE):
        numbers = range(first, min(first + BATCH_SIZE, images))
        names = [image_id(number) for number in numbers]
        uris, tags = [f"s3://bucket/{name}" for name in names], [f"{number:032x}" for number in numbers]
        yield pa.RecordBatch.from_pydict(
            {"image_id": names, "uri": uris, "num_bytes": [200_000] * len(names), "etag": tags}, schema=FILES
        )


def _images(some: range) -> pa.Table:
    """Return the rows of a shard's images, each asked some of the categories."""
    count, asked = len(some), _MASKS_PER_IMAGE
    entries = {"prompt_id": [f"ovseg:{name}" for name in CATEGORIES[:asked]] * count, "n": [1] * (asked * count)}
    fields = list(IMAGES.field("per_prompt").type.value_type)
    values = [pa.array(entries.get(one.name, [None] * (asked * count)), one.type) for one in fields]
    offsets = pa.array(range(0, asked * count + 1, asked), pa.int32())
    fixed = {"image_id": "", "uri": "", "width": 640, "height": 480, "num_bytes": 200_000, "image_version": 1}
    fixed |= {"status": "ok", "attempts": 1, "num_annotations": _MASKS_PER_IMAGE, "tasks": ["ovseg"]}
    fixed |= {"run_id": "", "shard_id": "", "attempt": _ATTEMPT}
    columns = [pa.array([fixed.get(one.name)] * count, one.type) for one in IMAGES]
    place = IMAGES.get_field_index("per_prompt")
    columns[place] = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(values, fields=fields))
    return pa.table(columns, schema=IMAGES)
