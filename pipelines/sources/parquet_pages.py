"""Estimate how many rows of a Parquet file can be read at once within a memory limit.

A dictionary stores a value once, however many rows have it, and delta encoding stores only how a value differs from the
one before. So a small file may expand to any size, and its footer does not say to which. Only footers and the first
bytes of a page are read here.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.storage.filesystems import read_range

MAX_BATCH_BYTES = 2**26
MAX_BATCH_ROWS = 4096
_PYTHON_BYTES = 2**23  # converted to Python values at once, which take several times as much

_SMALL_BYTES = 2**20  # a column chunk up to this size bounds its values well enough without a look at its first page
# The type and uncompressed size are the first two fields of a page header, and take a few bytes.
_HEADER_BYTES = 64
_DICTIONARY_PAGE = 2
_DICTIONARY_BYTES = 2**24  # of a column chunk that is read as an Arrow dictionary
_FEW_BYTES = 2**21  # of one that is read so although most of its values are in no dictionary of the file
_INTEGER_FIELD = 0x15  # of Thrift's compact protocol: the next field, an int32
_DELTA = "DELTA_BYTE_ARRAY"


def rows_at_once(
    fs: Any, path: str, group: pq.RowGroupMetaData, names: Collection[str], as_dictionary: Collection[str] = ()
) -> int:
    """Return how many rows of a row group can be read at once within MAX_BATCH_BYTES, at least one.

    Args:
        fs: the file system of the file.
        path: its path there.
        group: the row group.
        names: the columns to read, or ``column.field`` for one field of a struct.
        as_dictionary: those of them that are read as Arrow dictionaries, which hold a value once, as the file does.
    """
    within = tuple(f"{name}." for name in names)
    columns = [group.column(number) for number in range(group.num_columns)]
    chosen = [c for c in columns if c.path_in_schema in names or c.path_in_schema.startswith(within)]
    row_bytes = sum(
        _row_bytes(fs, path, column, group.num_rows, is_expanded=column.path_in_schema not in as_dictionary)
        for column in chosen
    )
    return int(max(1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // max(1, row_bytes))))


def iter_rows(fs: Any, path: str, table: pq.ParquetFile, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield a file's rows as {column: value}, with a limited number in memory at a time.

    Args:
        fs: the file system of the file.
        path: its path there.
        table: the open file.
        columns: the columns to read, or ``column.field`` for one field of a struct.
    """
    if not columns:
        yield from ({} for _ in range(table.metadata.num_rows))
        return
    for batch in iter_batches(fs, path, table, columns):
        yield from batch.to_pylist()


def iter_batches(
    fs: Any, path: str, table: pq.ParquetFile, columns: Collection[str], as_dictionary: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in batches that are small enough for Python values.

    Args:
        fs, path, table: as for iter_rows.
        columns: as there, at least one.
        as_dictionary: those that the file was opened to read as dictionaries.
    """
    for number in range(table.num_row_groups):
        size = rows_at_once(fs, path, table.metadata.row_group(number), columns, as_dictionary)
        batches = table.iter_batches(batch_size=size, row_groups=[number], columns=list(columns))
        for batch in _joined(map(_with_own_dictionaries, batches)):
            step = max(1, batch.num_rows * _PYTHON_BYTES // max(1, sum(map(_num_bytes, batch.columns))))
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)


def _with_own_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Leave only a batch's own values in its dictionaries: each comes with all that its row group has had so far."""
    return pa.record_batch([_with_own_dictionary(values) for values in batch.columns], schema=batch.schema)


def _with_own_dictionary(values: pa.Array) -> pa.Array:
    if not is_text_dictionary(values.type):
        return values
    own = values.indices.dictionary_encode()
    return pa.DictionaryArray.from_arrays(own.indices, values.dictionary.take(own.dictionary))


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join batches smaller than they need be: where a value may be large, few rows are read, and mostly none is."""
    held, num_rows, num_bytes = list[pa.RecordBatch](), 0, 0
    for batch in batches:
        held.append(batch)
        num_rows += batch.num_rows
        num_bytes += batch.nbytes
        if num_rows >= MAX_BATCH_ROWS or num_bytes >= _PYTHON_BYTES:
            joined = batch if len(held) == 1 else pa.concat_batches(held)  # which copies
            held, num_rows, num_bytes = [], 0, 0
            yield joined
    if held:
        yield pa.concat_batches(held)


def is_text_dictionary(kind: pa.DataType) -> bool:
    """Return whether a type's values are strings in a dictionary."""
    is_dictionary = pa.types.is_dictionary(kind)
    return is_dictionary and bool(pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))


def _num_bytes(values: pa.Array) -> int:
    """Return the bytes of a column, those of a dictionary's values for each row."""
    if not is_text_dictionary(values.type):
        return int(values.nbytes)
    lengths = pc.binary_length(values.dictionary).take(values.indices)
    return (pc.sum(lengths.cast(pa.int64())).as_py() or 0) + int(values.indices.nbytes)


def large_columns(metadata: pq.FileMetaData) -> set[str]:
    """Return the columns that are not to be read as dictionaries: these hold all values of a row group that differ."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return {column.path_in_schema for column in columns if _is_large(column)}


def _is_large(column: pq.ColumnChunkMetaData) -> bool:
    num_bytes: int = column.total_uncompressed_size
    if not _FEW_BYTES < num_bytes <= _DICTIONARY_BYTES:
        return num_bytes > _DICTIONARY_BYTES
    # A writer whose dictionary has grown to a megabyte stores what follows as it is.
    in_dictionary = column.data_page_offset - column.dictionary_page_offset if column.has_dictionary_page else 0
    return bool(2 * in_dictionary < column.total_compressed_size)


def has_dictionary(column: pq.ColumnChunkMetaData) -> bool:
    """Return whether some values of a column chunk are stored in a dictionary."""
    return any("DICTIONARY" in encoding for encoding in column.encodings)


def _row_bytes(fs: Any, path: str, column: pq.ColumnChunkMetaData, num_rows: int, *, is_expanded: bool) -> int:
    """Return an upper estimate of the bytes of one value of a column, since no value is larger than its page."""
    num_bytes: int = column.total_uncompressed_size
    mean = -(-num_bytes // max(1, num_rows))
    if column.physical_type != "BYTE_ARRAY" or not (is_expanded or _DELTA in column.encodings):
        return max(8, mean)
    if num_bytes <= _SMALL_BYTES or _DELTA in column.encodings:
        return max(8, num_bytes)
    return max(8, mean, _dictionary_bytes(fs, path, column) or 0)


def _dictionary_bytes(fs: Any, path: str, column: pq.ColumnChunkMetaData) -> int | None:
    """Return the uncompressed size of a column chunk's dictionary page, read from its header; None if it has none."""
    if not has_dictionary(column) and not column.has_dictionary_page:
        return None
    # Some writers leave the dictionary's offset out and let data_page_offset point to the dictionary.
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    header = io.BytesIO(read_range(fs, path, start, start + _HEADER_BYTES))
    kind, num_bytes = (_read_integer(header) for _ in range(2))
    if kind is None or num_bytes is None or num_bytes < 0:
        return int(column.total_uncompressed_size)
    return num_bytes if kind == _DICTIONARY_PAGE else None


def _read_integer(header: io.BytesIO) -> int | None:
    """Read the next field of a page header as a zigzag varint; None if it is not an int32 that follows directly."""
    if header.read(1) != bytes([_INTEGER_FIELD]):
        return None
    value = shift = 0
    while (byte := header.read(1)) and shift < 35:
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
    return None
