"""How quickly the table answers SQL, against the same masks nested by image and as COCO JSON; its bytes per mask."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.photos import random_field
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from pipelines.masks import rle
from pipelines.table.commits import parquet_bytes
from pipelines.table.schema import ANNOTATIONS, SEGMENTATION

NAME = "sql"
_MASKS_PER_IMAGE = 8
_IMAGES_PER_SHARD = 500
CATEGORIES = tuple(f"category {number:02}" for number in range(80))
_COUNT = "SELECT category_name, count(*) FROM {} GROUP BY 1 ORDER BY 1"
_FILTER = "SELECT category_name, avg(area) FROM {} WHERE score > 0.9 AND area > 1000 GROUP BY 1 ORDER BY 1"
_LOOK_UP = "SELECT category_name, score, segmentation FROM {} WHERE image_id = '{}' ORDER BY score DESC"


def run(*, tiny: bool = False) -> Report:
    """Write a table of masks in three ways, and ask each the same."""
    images, in_coco, rounds = (1000, 500, 1) if tiny else (1_250_000, 60_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_all(Path(folder), images, in_coco)
        as_coco = [f"{folder}/flat/{number:05}.parquet" for number in range(in_coco // _IMAGES_PER_SHARD)]
        flat, nested = f"'{folder}/flat/*.parquet'", f"'{folder}/nested/*.parquet'"
        unnested = f"(SELECT image_id, unnest(masks, recursive := false) AS m FROM {nested})"
        unnested = f"(SELECT image_id, m.* FROM {unnested})"
        middle = image_id(images // 2)
        loops = {
            "count": lambda: duckdb.sql(_COUNT.format(flat)).fetchall(),
            "count nested": lambda: duckdb.sql(_COUNT.format(unnested)).fetchall(),
            "filter": lambda: duckdb.sql(_FILTER.format(flat)).fetchall(),
            "filter nested": lambda: duckdb.sql(_FILTER.format(unnested)).fetchall(),
            "look up": lambda: duckdb.sql(_LOOK_UP.format(flat, middle)).fetchall(),
            "look up nested": lambda: duckdb.sql(_LOOK_UP.format(unnested, middle)).fetchall(),
            "count some": lambda: duckdb.sql(_COUNT.format(f"read_parquet({as_coco})")).fetchall(),
            "count coco": lambda: _count_coco(Path(folder) / "coco.json"),
        }
        if loops["count"]() != loops["count nested"]() or loops["count some"]() != loops["count coco"]():
            raise RuntimeError("the three tables disagree")
        timed = time_in_turn(loops, rounds=rounds, warm_up=False)
    names = {
        "count": "masks of each category",
        "filter": "mean area where score > 0.9",
        "look up": "masks of one image",
    }
    figures = []
    for name, what in names.items():
        milliseconds = tuple(1000 * seconds for seconds in timed.seconds[name])
        figures.append(Figure(what=what, value=min(milliseconds), unit="ms", repeats=milliseconds))
        ratios = tuple(timed.speed_ratios(name, f"{name} nested"))
        ratio = timed.speed_ratio(name, f"{name} nested")
        figures.append(Figure(what=f"{what}: flat : nested", value=ratio, unit="x", repeats=ratios))
    ratios = tuple(timed.speed_ratios("count some", "count coco"))
    ratio = timed.speed_ratio("count some", "count coco")
    figures.append(Figure(what=f"{names['count']}: flat : COCO JSON", value=ratio, unit="x", repeats=ratios))
    rows, rows_in_coco = images * _MASKS_PER_IMAGE, in_coco * _MASKS_PER_IMAGE
    figures += [Figure(what=f"{name}: bytes for each mask", value=size, unit="bytes") for name, size in sizes.items()]
    return Report(
        name=NAME,
        question="how quickly does the table answer?",
        method=(
            "DuckDB on local files in the page cache. Flat is the table as it is committed, one row a mask. Nested is "
            "one row an image with a list of its masks, otherwise written alike. COCO JSON is read whole by Python's "
            "json, as pycocotools does, and counted; no machine holds it for so many masks, so that it is the first of "
            "them, against the same shards."
        ),
        setup={
            "rows": f"{rows:,} masks of {images:,} images, 80 categories, in shards of {_IMAGES_PER_SHARD} images",
            "rows in COCO JSON": f"{rows_in_coco:,}",
            "masks": "of smooth outlines at 640 x 480: a hundred, again and again",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=tuple(figures),
    )


def write_all(folder: Path, images: int, in_coco: int) -> dict[str, float]:
    """Write flat Parquet, nested Parquet and, of the first images, COCO JSON; return the bytes for each mask."""
    for name in ("flat", "nested"):
        (folder / name).mkdir()
    rng, encoded = np.random.default_rng(0), encode_some()
    sizes = Counter[str]()
    with open(folder / "coco.json", "w", encoding="utf-8") as coco:
        coco.write('{"annotations": [')
        for number, first in enumerate(range(0, images, _IMAGES_PER_SHARD)):
            some = range(first, min(first + _IMAGES_PER_SHARD, images))
            table = shard_table(rng, encoded, some, f"shard-{number:05}", _MASKS_PER_IMAGE)
            flat = parquet_bytes(table, "annotations", {})
            (folder / "flat" / f"{number:05}.parquet").write_bytes(flat)
            nested = folder / "nested" / f"{number:05}.parquet"
            pq.write_table(_nested(table), nested, compression="zstd", compression_level=3, use_dictionary=True)
            sizes.update({"flat": len(flat), "nested": nested.stat().st_size})
            if first < in_coco:
                coco.write(("," if number else "") + json.dumps(_coco(table))[1:-1])
        coco.write("]}")
    rows = images * _MASKS_PER_IMAGE
    as_json = (folder / "coco.json").stat().st_size / (in_coco * _MASKS_PER_IMAGE)
    return {**{name: size / rows for name, size in sizes.items()}, "COCO JSON": as_json}


def encode_some() -> list[rle.Rle]:
    """Return a hundred masks of smooth outlines at 640 x 480."""
    rng = np.random.default_rng(0)
    return [rle.encode(random_field(rng, 480, 640, exponent=2.5) > 1) for _ in range(100)]


def image_id(number: int) -> str:
    return f"photos/2026/{number:07}.jpg"


def shard_table(
    rng: np.random.Generator, encoded: list[rle.Rle], images: range, shard_id: str, masks_per_image: int
) -> pa.Table:
    """Return one shard's rows, as a run commits them."""
    count = len(images) * masks_per_image
    ids = np.repeat([image_id(number) for number in images], masks_per_image)
    category, mask = rng.integers(0, len(CATEGORIES), count), rng.integers(0, len(encoded), count)
    scores = np.sort(rng.random((len(images), masks_per_image)).astype(np.float32))[:, ::-1].reshape(-1)
    names = np.array(CATEGORIES)[category]
    boxes = np.array([rle.bbox_xywh(one) for one in encoded], np.float32)[mask]
    columns: dict[str, Any] = {
        "image_id": ids,
        "annotation_id": [f"{value:020x}" for value in rng.integers(0, 2**62, count)],
        "image_uri": np.char.add("s3://bucket/", ids),
        "task": ["ovseg"] * count,
        "prompt_id": np.char.add("ovseg:", names),
        "prompt": names,
        "category_name": names,
        "category_id": category.astype(np.int32),
        "score": scores,
        "mask_score": np.minimum(1, scores + np.float32(0.05)),
        "is_thing": pa.nulls(count, pa.bool_()),
        "rank": np.tile(np.arange(masks_per_image, dtype=np.int16), len(images)),
        **{f"bbox_{side}": boxes[:, place] for place, side in enumerate("xywh")},
        "area": np.array([rle.area(one) for one in encoded])[mask],
        "segmentation": pa.array([encoded[place].to_coco() for place in mask], SEGMENTATION),
        **{"run_id": ["run-1"] * count, "shard_id": [shard_id] * count, "attempt": ["0a1b2c3d-0"] * count},
        "source": ["model"] * count,
    }
    return pa.table(columns, schema=ANNOTATIONS)


def _nested(table: pa.Table) -> pa.Table:
    """Return one row an image, with a list of its masks."""
    inner = [name for name in table.column_names if name != "image_id"]
    masks = pa.StructArray.from_arrays([table[name].combine_chunks() for name in inner], names=inner)
    offsets = np.arange(0, len(table) + 1, _MASKS_PER_IMAGE, dtype=np.int32)
    ids = table["image_id"].combine_chunks().take(pa.array(offsets[:-1]))
    return pa.table({"image_id": ids, "masks": pa.ListArray.from_arrays(offsets, masks)})


def _coco(table: pa.Table) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "score", "segmentation", "area")
    rows = table.select(list(names)).to_pylist()
    boxes = zip(*(table[f"bbox_{side}"].to_pylist() for side in "xywh"), strict=True)
    return [{**row, "bbox": list(box), "iscrowd": 0} for row, box in zip(rows, boxes, strict=True)]


def _count_coco(path: Path) -> list[tuple[str, int]]:
    counts = Counter(row["category_id"] for row in json.loads(path.read_bytes())["annotations"])
    return sorted((CATEGORIES[number], count) for number, count in counts.items())
