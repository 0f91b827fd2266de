"""How many rows of a Parquet file may be read together: what is stored once may stand for many rows.

A dictionary holds a value once, however many rows have it, and a delta encoding what a value has beside the one before:
a small file may unfold to any size. Reads footers, and the first bytes of a page.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow.parquet as pq

from pipelines.storage.filesystems import read_range

MAX_BATCH_BYTES = 2**26
MAX_BATCH_ROWS = 4096
_PYTHON_BYTES = 2**23  # turned into Python values at once

_SMALL_BYTES = 2**20  # of a column: what it holds is bound enough, and its first page need not be asked
_HEADER_BYTES = 64
_DICTIONARY_PAGE = 2
_INTEGER_FIELD = 0x15  # of Thrift's compact protocol: the next field, an int32
_DELTA = "DELTA_BYTE_ARRAY"


def rows_at_once(fs: Any, path: str, group: pq.RowGroupMetaData, names: Collection[str]) -> int:
    """Return how many rows of a row group may be read together, one at least, so that they stay in MAX_BATCH_BYTES.

    Args:
        fs: the file system of the file.
        path: inside it.
        group: the row group.
        names: of the columns that are read, or of one part of a struct.
    """
    within = tuple(f"{name}." for name in names)
    columns = [group.column(number) for number in range(group.num_columns)]
    chosen = [c for c in columns if c.path_in_schema in names or c.path_in_schema.startswith(within)]
    row_bytes = sum(_row_bytes(fs, path, column, group.num_rows) for column in chosen)
    return int(max(1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // max(1, row_bytes))))


def iter_rows(fs: Any, path: str, table: pq.ParquetFile, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield a file's rows as {column: value}, row group by row group, a few at a time.

    Args:
        fs: the file system of the file.
        path: inside it.
        table: the open file.
        columns: to read, as Arrow names them; of a struct also one part alone.
    """
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if not columns:
            yield from ({} for _ in range(group.num_rows))
            continue
        size = rows_at_once(fs, path, group, columns)
        for batch in table.iter_batches(batch_size=size, row_groups=[number], columns=list(columns)):
            step = max(1, batch.num_rows * _PYTHON_BYTES // max(1, batch.nbytes))
            for start in range(0, batch.num_rows, step):
                yield from batch.slice(start, step).to_pylist()


def has_dictionary(column: pq.ColumnChunkMetaData) -> bool:
    """Say whether some values of a column are stored in a dictionary."""
    return any("DICTIONARY" in encoding for encoding in column.encodings)


def _row_bytes(fs: Any, path: str, column: pq.ColumnChunkMetaData, num_rows: int) -> int:
    """Return the bytes that a value of a column may have: no value is larger than the page which it is in."""
    num_bytes: int = column.total_uncompressed_size
    mean = -(-num_bytes // max(1, num_rows))
    if column.physical_type != "BYTE_ARRAY":
        return max(8, mean)
    if num_bytes <= _SMALL_BYTES or _DELTA in column.encodings:
        return max(8, num_bytes)
    return max(8, mean, _dictionary_bytes(fs, path, column) or 0)


def _dictionary_bytes(fs: Any, path: str, column: pq.ColumnChunkMetaData) -> int | None:
    """Return the size of the column's dictionary page, uncompressed; None if it has none. Footers do not tell."""
    if not has_dictionary(column) and not column.has_dictionary_page:
        return None
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    header = io.BytesIO(read_range(fs, path, start, start + _HEADER_BYTES))
    kind, num_bytes = (_read_integer(header) for _ in range(2))
    if kind is None or num_bytes is None or num_bytes < 0:
        return int(column.total_uncompressed_size)
    return num_bytes if kind == _DICTIONARY_PAGE else None


def _read_integer(header: io.BytesIO) -> int | None:
    """Read the next field of a page's header, a zigzag varint; None if it is something else."""
    if header.read(1) != bytes([_INTEGER_FIELD]):
        return None
    value = shift = 0
    while (byte := header.read(1)) and shift < 35:
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
    return None
