"""Read and write the Parquet files of a plan: a row for each planned image, a row group for each shard.

A shard is a row group so that a driver that resumes reads only the shards that are left.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.layout import shard_name
from pipelines.sources.image_batches import BATCH_SIZE, IMAGES, IS_FORGOTTEN, read_prompts, read_rows, to_refs
from pipelines.types import Prompt, Shard

_READ_BYTES = 2**22
_SHARD_ID = pa.field("shard_id", pa.string(), nullable=False)
# Columns with repetitive values. The values of the others differ from row to row: dictionaries would only cost time.
_REPEATED = (
    *("shard_id", "source_columns", "version", "common.list.element"),
    *(f"prompts.list.element.{field.name}" for field in IMAGES.field("prompts").type.value_type),
)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """The part of a planned image that tells whether anything is left to ask of it. Fields as in ImageRef."""

    image_id: str
    num_bytes: int | None
    etag: str | None
    version: int
    common: tuple[str, ...] | None
    prompts: tuple[Prompt, ...]


PLANNED = pa.schema([IMAGES.field(name) for name in PlannedImage.__slots__])


class PlanFileWriter:
    """Writes consecutive shards to one file; a context manager."""

    def __init__(self, path: Path, images: pa.Schema) -> None:
        """Create a new local file with those columns of IMAGES that ``images`` has."""
        self._schema = pa.schema([_SHARD_ID, *(IMAGES.field(name) for name in images.names)])
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=list(_REPEATED), write_statistics=False
        )

    def __enter__(self) -> PlanFileWriter:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._writer.close()

    def write(self, first: int, images: pa.Table, images_per_shard: int) -> int:
        """Write the next shards and return how many they are.

        Args:
            first: position in the plan of the first of them.
            images: whole shards, but for the plan's last.
            images_per_shard: images in each of them.
        """
        numbers = np.arange(images.num_rows) // images_per_shard
        count = int(numbers[-1]) + 1
        shard_ids = pa.array([shard_name(first + number) for number in range(count)]).take(pa.array(numbers))
        table = pa.Table.from_arrays([shard_ids, *images.columns], schema=self._schema)
        self._writer.write_table(table, row_group_size=images_per_shard)
        return count


def read_shards(data: bytes, numbers: Iterable[int]) -> Iterator[Shard]:
    """Read the shards at some positions within a file, in the order given."""
    file = pq.ParquetFile(io.BytesIO(data))
    for number in numbers:
        table = file.read_row_group(number)
        yield Shard(shard_id=table["shard_id"][0].as_py(), images=tuple(to_refs([table])))


def read_image_ids(data: bytes, numbers: Iterable[int]) -> Iterator[tuple[str, list[str]]]:
    """Read shard ids at some positions within a file, each with its image ids; works for every plan format."""
    file = pq.ParquetFile(io.BytesIO(data))
    for number in numbers:
        table = file.read_row_group(number, columns=["shard_id", "image_id"])
        yield table["shard_id"][0].as_py(), table["image_id"].to_pylist()


def rewritten(data: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """Return a plan file with each of its shards changed; columns that a change adds have to come with every shard."""
    file, buffer = pq.ParquetFile(io.BytesIO(data)), io.BytesIO()
    tables = [change(file.read_row_group(number)) for number in range(file.num_row_groups)]
    repeated = [name for name in _REPEATED if name.partition(".")[0] in tables[0].schema.names]
    with pq.ParquetWriter(
        buffer, tables[0].schema, compression="zstd", use_dictionary=repeated, write_statistics=False
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)
    return buffer.getvalue()


def planned_batches(data: bytes) -> Iterator[pa.RecordBatch]:
    """Read all images of a file in order, without forgotten ones, as batches of PLANNED: of a shard, or small ones."""
    file = pq.ParquetFile(io.BytesIO(data))
    names = [name for name in (*PLANNED.names, IS_FORGOTTEN.name) if name in file.schema_arrow.names]
    for numbers in _together(file.metadata):
        table = file.read_row_groups(numbers, columns=names)
        if IS_FORGOTTEN.name in names:
            table = table.filter(pc.invert(pc.fill_null(table[IS_FORGOTTEN.name], False)))
        columns = [
            table[field.name].cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
            for field in PLANNED
        ]
        yield from pa.Table.from_arrays(columns, schema=PLANNED).combine_chunks().to_batches()


def _together(metadata: pq.FileMetaData) -> Iterator[list[int]]:
    """Yield the numbers of the row groups that are read at once: a few thousand rows, if they are small."""
    held, num_rows, num_bytes = list[int](), 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if held and (num_rows + group.num_rows > BATCH_SIZE or num_bytes + group.total_byte_size > _READ_BYTES):
            yield held
            held, num_rows, num_bytes = [], 0, 0
        held.append(number)
        num_rows, num_bytes = num_rows + group.num_rows, num_bytes + group.total_byte_size
    if held:
        yield held


def to_planned(batch: pa.RecordBatch | pa.Table) -> Iterator[PlannedImage]:
    """Yield the images of a batch that has the columns of PLANNED, in order."""
    for image_id, num_bytes, etag, version, common, prompts in read_rows(batch, PLANNED.names):
        asked = None if common is None else tuple(common)
        yield PlannedImage(image_id, num_bytes, etag, version or 1, asked, read_prompts(prompts))


def read_planned(data: bytes) -> Iterator[PlannedImage]:
    """Read all images of a file in order, without forgotten ones, with one shard in memory at a time."""
    for batch in planned_batches(data):
        yield from to_planned(batch)
