"""Single values of a Parquet file's binary column, with what was read for them kept for their neighbours.

Of a file its footer is read, and then of the row group only the column asked for. Thread-safe; one per process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.source_files import look_up
from pipelines.storage import open_filesystem

MAX_CHUNK_BYTES = 2**29

_HELD_BYTES = 2**28
_HELD_FILES = 16
_READ_BYTES = 2**23


class ChangedError(OSError):
    """A file is not the one that was listed."""


class ChunkTooLargeError(ValueError):
    """A row group holds more bytes in one column than are read for one value."""


def open_parquet(fs: Any, path: str, *, streamed: bool = True) -> pq.ParquetFile:
    """Open a Parquet file for reading parts of it.

    Args:
        fs: its file system.
        path: inside it.
        streamed: read columns piece by piece, for those that are large; else the columns of a row group together.
    """
    file = fs.open(path, "rb", cache_type="none")
    return pq.ParquetFile(file, buffer_size=_READ_BYTES if streamed else 0, pre_buffer=not streamed)


def leaf_of(schema: pa.Schema, column: str) -> str:
    """Return the name, as Parquet counts columns, of the bytes in a column: itself, or its part ``bytes``.

    Raises:
        KeyError: there is no such column.
    """
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def check_chunks(metadata: pq.FileMetaData, leaf: str, group: int | None = None) -> None:
    """Check that row groups, one or all, are small enough for reading single values.

    Raises:
        ChunkTooLargeError: saying how large, and what to do.
        pa.ArrowInvalid: the file is broken: a row group lacks the column.
    """
    for number in range(metadata.num_row_groups) if group is None else (group,):
        info = metadata.row_group(number)
        columns = (info.column(place) for place in range(info.num_columns))
        found = (column.total_uncompressed_size for column in columns if column.path_in_schema == leaf)
        num_bytes = next(found, None)
        if num_bytes is None:
            raise pa.ArrowInvalid(f"row group {number} has no column {leaf!r}")
        if num_bytes > MAX_CHUNK_BYTES:
            raise ChunkTooLargeError(
                f"row group {number} holds {num_bytes:,} bytes of images, and at most {MAX_CHUNK_BYTES:,} are read for "
                "one of them; write the file again with fewer rows in a row group (row_group_size=100)"
            )


@dataclass(slots=True, eq=False)
class _OpenFile:
    uri: str
    fs: Any
    path: str
    table: pq.ParquetFile
    ends: np.ndarray
    version: str | None


@dataclass(slots=True, eq=False)
class _Cache:
    lock: threading.Lock = field(default_factory=threading.Lock)
    files: OrderedDict[Any, _OpenFile] = field(default_factory=OrderedDict)
    chunks: OrderedDict[Any, pa.ChunkedArray] = field(default_factory=OrderedDict)

    def file(self, uri: str, options: Mapping[str, Any] | None, version: str | None) -> tuple[Any, _OpenFile]:
        """Return an open file with its key."""
        key = (uri, repr(options), version)
        if key in self.files:
            self.files.move_to_end(key)
            return key, self.files[key]
        fs, path = open_filesystem(uri, options)
        _check_version(fs, path, uri, version)
        table = open_parquet(fs, path)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        self.files[key] = _OpenFile(uri, fs, path, table, np.cumsum(sizes, dtype=np.int64), version)
        while len(self.files) > _HELD_FILES:
            _, closed = self.files.popitem(last=False)
            closed.table.close(force=True)
        return key, self.files[key]

    def chunk(self, key: Any, file: _OpenFile, group: int, leaf: str) -> pa.ChunkedArray:
        """Return a row group's values of one column."""
        place = (key, group, leaf)
        if place in self.chunks:
            self.chunks.move_to_end(place)
            return self.chunks[place]
        check_chunks(file.table.metadata, leaf, group)
        size = file.table.metadata.row_group(group).total_byte_size
        while self.chunks and sum(chunk.nbytes for chunk in self.chunks.values()) + size > _HELD_BYTES:
            self.chunks.popitem(last=False)
        column = file.table.read_row_group(group, columns=[leaf], use_threads=False).column(0)
        _check_version(file.fs, file.path, file.uri, file.version)  # it may have been overwritten while it was open
        if pa.types.is_struct(column.type):
            column = pa.chunked_array([part.field("bytes") for part in column.chunks])
        self.chunks[place] = column
        return column


_CACHE = _Cache()


def _check_version(fs: Any, path: str, uri: str, version: str | None) -> None:
    if version is not None and look_up(fs, path).etag != version:
        raise ChangedError(f"{uri}: has changed since it was listed; plan again, as a new run")


def read_value(
    uri: str, options: Mapping[str, Any] | None, column: str, row: int, *, version: str | None = None
) -> bytes | None:
    """Return one binary value of a Parquet file.

    Some 256 MB of neighbouring values are kept in this process; a single row group may be larger, and passes alone.

    Args:
        uri: of the file.
        options: fsspec options.
        column: binary, or a struct with a binary part ``bytes``.
        row: from 0.
        version: the file's version tag as listed; None for any.

    Returns:
        The value, None for a null.

    Raises:
        ChangedError: the file has another version.
        ChunkTooLargeError: its row group is too large.
        KeyError, IndexError: there is no such column or row.
        pa.ArrowException: it is no Parquet file.
    """
    with _CACHE.lock:
        key, file = _CACHE.file(uri, options, version)
        if not 0 <= row < file.table.metadata.num_rows:
            raise IndexError(f"it has {file.table.metadata.num_rows:,} rows, and none of number {row:,}")
        group = int(np.searchsorted(file.ends, row, side="right"))
        first = int(file.ends[group - 1]) if group else 0
        values = _CACHE.chunk(key, file, group, leaf_of(file.table.schema_arrow, column))
    value: bytes | None = values[row - first].as_py()
    return value
