"""The Parquet files of a plan: one row for each planned image with its own prompts, one row group for each shard."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.types import ImageRef, Prompt, Region, Rle, Shard

_PROMPTS = pa.list_(
    pa.struct(
        [
            pa.field("prompt_id", pa.string()),
            pa.field("task", pa.string()),
            pa.field("text", pa.string()),
            pa.field("category_id", pa.int32()),
            pa.field("category_name", pa.string()),
            pa.field("explain", pa.bool_()),
            pa.field("source_row", pa.int64()),
            pa.field("kind", pa.string()),  # null for a sentence, and so are those below
            pa.field("coordinates", pa.list_(pa.float64())),
            pa.field("mask_size", pa.list_(pa.int32())),
            pa.field("mask_counts", pa.string()),
        ]
    )
)
PLAN = pa.schema(
    [
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("source_columns", pa.string()),
        pa.field("prompts", _PROMPTS),
        pa.field("common", pa.list_(pa.string())),  # null for all, and in older plans
        pa.field("version", pa.int32()),  # null in older plans
    ]
)


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Images of one shard, column by column: what ImageRef holds of each."""

    image_id: Sequence[str]
    uri: Sequence[str]
    num_bytes: Sequence[int | None]
    etag: Sequence[str | None]
    source_columns: Sequence[str | None]
    prompts: Sequence[Sequence[Prompt]]
    common: Sequence[Sequence[str] | None]
    version: Sequence[int]


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """What was planned of one image, as far as it tells whether anything is left to ask of it; as in ImageRef."""

    image_id: str
    num_bytes: int | None
    etag: str | None
    version: int
    common: tuple[str, ...] | None
    prompts: tuple[Prompt, ...]


class PlanFileWriter:
    """Writes consecutive shards as one file; entered with ``with``."""

    def __init__(self, path: Path) -> None:
        """Write to a new local file."""
        self._writer = pq.ParquetWriter(path, PLAN, compression="zstd")

    def __enter__(self) -> PlanFileWriter:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._writer.close()

    def write(self, shard_id: str, images: ImageColumns) -> None:
        """Write the next shard."""
        count = len(images.image_id)
        own = ([_prompt_row(prompt) for prompt in prompts] for prompts in images.prompts)
        columns = {
            "shard_id": [shard_id] * count,
            "image_id": images.image_id,
            "uri": images.uri,
            "num_bytes": images.num_bytes,
            "etag": images.etag,
            "source_columns": images.source_columns,
            "prompts": list(own),
            "common": images.common,
            "version": images.version,
        }
        self._writer.write_table(pa.table(columns, schema=PLAN), row_group_size=count)


def shard_name(number: int) -> str:
    """Return the id of the shard with this position in the plan."""
    return f"shard-{number:05d}"


def shard_number(shard_id: str) -> int:
    """Return the position in the plan of the shard with this id."""
    return int(shard_id.rpartition("-")[2])


def read_shards(data: bytes, numbers: Iterable[int]) -> Iterator[Shard]:
    """Read the shards at these positions of a file, in the order given."""
    file = pq.ParquetFile(io.BytesIO(data))
    for number in numbers:
        yield _shard(file.read_row_group(number))


def read_planned(data: bytes) -> Iterator[PlannedImage]:
    """Read the images of all shards of a file in order, one shard at a time."""
    file = pq.ParquetFile(io.BytesIO(data))
    names = [name for name in PlannedImage.__slots__ if name in file.schema_arrow.names]
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=names)
        count = table.num_rows
        columns = [table[name].to_pylist() if name in names else [None] * count for name in PlannedImage.__slots__]
        for image_id, num_bytes, etag, version, common, prompts in zip(*columns, strict=True):
            own = tuple(_prompt(prompt) for prompt in prompts or ())
            asked = None if common is None else tuple(common)
            yield PlannedImage(image_id, num_bytes, etag, version or 1, asked, own)


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    region = prompt.region
    mask = region.mask if region else None
    return {
        "prompt_id": prompt.prompt_id,
        "task": prompt.task,
        "text": prompt.text,
        "category_id": prompt.category_id,
        "category_name": prompt.category_name,
        "explain": prompt.explain,
        "source_row": prompt.source_row,
        "kind": region.kind if region else None,
        "coordinates": list(region.coordinates) if region else None,
        "mask_size": list(mask.size_hw) if mask else None,
        "mask_counts": mask.counts if mask else None,
    }


def _shard(table: pa.Table) -> Shard:
    rows = table.to_pylist()
    images = tuple(
        ImageRef(
            image_id=row["image_id"],
            uri=row["uri"],
            num_bytes=row["num_bytes"],
            etag=row["etag"],
            source_columns=row["source_columns"],
            prompts=tuple(_prompt(prompt) for prompt in row["prompts"] or ()),
            common=None if row.get("common") is None else tuple(row["common"]),
            version=row.get("version") or 1,
        )
        for row in rows
    )
    return Shard(shard_id=rows[0]["shard_id"], images=images)


def _prompt(row: Mapping[str, Any]) -> Prompt:
    mask = Rle(size_hw=tuple(row["mask_size"]), counts=row["mask_counts"]) if row["mask_counts"] is not None else None
    region = None
    if row["kind"] is not None:
        region = Region(kind=row["kind"], coordinates=tuple(row["coordinates"]), mask=mask)
    return Prompt(
        prompt_id=row["prompt_id"],
        task=row["task"],
        text=row["text"],
        category_id=row["category_id"],
        category_name=row["category_name"],
        region=region,
        explain=row["explain"],
        source_row=row["source_row"],
    )
