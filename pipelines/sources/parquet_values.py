"""Single values of a Parquet file's binary column, with what was read for them kept for their neighbours.

Of a file its footer is read, and then of the row group only the column asked for. Thread-safe; one per process. Nothing
is read under a lock that readers of another file wait for, and readers of one file wait for each other only so long.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.files import look_up
from pipelines.sources.parquet_pages import has_dictionary, rows_at_once
from pipelines.storage.filesystems import open_filesystem

MAX_CHUNK_BYTES = 2**29

_HELD_BYTES = 2**28
_HELD_FILES = 16
_READ_BYTES = 2**23
_ROW_BYTES = 8  # what a row takes while it is read, whatever it holds: a small file may have any number of nulls
_SLACK_BYTES = 2**24
# A reader that has not come to its end after so long is left alone with the file that it has open.
_STALLED_S = 20.0


Reserve = Callable[[int], None]
"""Told how many bytes more are about to be held, before they are; may wait until there is room for them."""


def take_freely(_num_bytes: int) -> None:
    """Reserve nothing."""


class ChangedError(OSError):
    """A file is not the one that was listed."""


class ChunkTooLargeError(ValueError):
    """A row group, or one of its values, holds more bytes than are read for one value."""


def open_parquet(fs: Any, path: str, *, streamed: bool = True, unique: str | None = None) -> pq.ParquetFile:
    """Open a Parquet file for reading parts of it.

    Args:
        fs: its file system.
        path: inside it.
        streamed: read columns piece by piece, for those that are large; else the columns of a row group together.
        unique: the column, as Parquet counts them, of which equal values are to be held once.
    """
    file = fs.open(path, "rb", cache_type="none")
    unfolded = [unique] if unique else None
    return pq.ParquetFile(
        file, buffer_size=_READ_BYTES if streamed else 0, pre_buffer=not streamed, read_dictionary=unfolded
    )


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
        num_bytes = _chunk(metadata, leaf, number).total_uncompressed_size
        num_rows = metadata.row_group(number).num_rows
        if num_bytes + num_rows * _ROW_BYTES > MAX_CHUNK_BYTES:
            raise _too_large(f"row group {number} holds {num_bytes:,} bytes of images in {num_rows:,} rows")


def _chunk(metadata: pq.FileMetaData, leaf: str, group: int) -> pq.ColumnChunkMetaData:
    info = metadata.row_group(group)
    columns = (info.column(place) for place in range(info.num_columns))
    found = next((column for column in columns if column.path_in_schema == leaf), None)
    if found is None:
        raise pa.ArrowInvalid(f"row group {group} has no column {leaf!r}")
    return found


def _too_large(what: str) -> ChunkTooLargeError:
    return ChunkTooLargeError(
        f"{what}, and at most {MAX_CHUNK_BYTES:,} bytes are read for one of them; write the file again with fewer rows "
        "in a row group (row_group_size=100)"
    )


@dataclass(slots=True, eq=False)
class _OpenFile:
    """A file, opened when it is first needed. What is read of it is read under its lock."""

    uri: str
    options: Mapping[str, Any] | None
    version: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    fs: Any = None
    path: str = ""
    table: pq.ParquetFile | None = None
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def open(self) -> pq.ParquetFile:
        """Return the open file."""
        if self.table is None:
            self.fs, self.path = open_filesystem(self.uri, self.options)
            self.check_version()
            table = open_parquet(self.fs, self.path)
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            self.ends, self.table = np.cumsum(sizes, dtype=np.int64), table
        return self.table

    def check_version(self) -> None:
        """Check that the file is the one that was listed."""
        if self.version is not None and look_up(self.fs, self.path).etag != self.version:
            raise ChangedError(f"{self.uri}: has changed since it was listed; plan again, as a new run")

    def place(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and its place there."""
        num_rows = self.open().metadata.num_rows
        if not 0 <= row < num_rows:
            raise IndexError(f"it has {num_rows:,} rows, and none of number {row:,}")
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def read(self, group: int, leaf: str) -> pa.ChunkedArray:
        """Return a row group's values of one column; where they unfold, equal ones are held once."""
        table = self.open()
        check_chunks(table.metadata, leaf, group)
        column = _chunk(table.metadata, leaf, group)
        is_folded = has_dictionary(column)
        most = min(MAX_CHUNK_BYTES, 2 * column.total_uncompressed_size + _SLACK_BYTES if is_folded else MAX_CHUNK_BYTES)
        found = self._unfold(table, group, leaf, most)
        if found is None and is_folded:
            table = open_parquet(self.fs, self.path, unique=leaf)
            with contextlib.closing(table):
                found = table.read_row_group(group, columns=[leaf], use_threads=False).column(0)
        if found is None:
            raise _too_large(f"the images of row group {group} unfold to more than {most:,} bytes")
        self.check_version()  # it may have been overwritten while it was open
        if pa.types.is_struct(found.type):
            return pa.chunked_array([part.field("bytes") for part in found.chunks])
        return found

    def _unfold(self, table: pq.ParquetFile, group: int, leaf: str, most: int) -> pa.ChunkedArray | None:
        """Read values as they are; None as soon as they are seen to be more than so many bytes."""
        size = rows_at_once(self.fs, self.path, table.metadata.row_group(group), [leaf])
        batches, num_bytes = list[pa.RecordBatch](), 0
        for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=[leaf], use_threads=False):
            num_bytes += batch.nbytes
            if num_bytes > most:
                return None
            batches.append(batch)
        return pa.chunked_array([batch.column(0) for batch in batches])

    def close(self) -> None:
        """Close the file, unless somebody reads it: then it is closed when they are done with it."""
        if self.lock.acquire(blocking=False):
            try:
                if self.table is not None:
                    self.table.close(force=True)
                    self.table = None
            finally:
                self.lock.release()


_Place = tuple[Any, int, str]


@dataclass(slots=True, eq=False)
class _Cache:
    """Open files, and what was read of them. The lock is for these two alone, and held for no longer than to look."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    files: OrderedDict[Any, _OpenFile] = field(default_factory=OrderedDict)
    chunks: OrderedDict[_Place, pa.ChunkedArray] = field(default_factory=OrderedDict)

    @contextlib.contextmanager
    def file(self, key: Any) -> Iterator[_OpenFile]:
        """Give a file to one reader at a time.

        Who finds it in the hands of a reader that does not come to an end opens it anew: that one may never do so.
        """
        while True:
            file = self._held_file(key)
            if file.lock.acquire(timeout=_STALLED_S):
                break
            with self.lock:
                if self.files.get(key) is file:
                    del self.files[key]
        try:
            yield file
        finally:
            file.lock.release()

    def _held_file(self, key: Any) -> _OpenFile:
        closed = list[_OpenFile]()
        with self.lock:
            if key not in self.files:
                self.files[key] = _OpenFile(*key.parts)
            self.files.move_to_end(key)
            while len(self.files) > _HELD_FILES:
                closed.append(self.files.popitem(last=False)[1])
            found = self.files[key]
        for file in closed:
            file.close()
        return found

    def held(self, place: _Place) -> pa.ChunkedArray | None:
        """Return what was read of a place; None if nothing is kept."""
        with self.lock:
            if (chunk := self.chunks.get(place)) is not None:
                self.chunks.move_to_end(place)
            return chunk

    def keep(self, place: _Place, chunk: pa.ChunkedArray) -> None:
        """Keep what was read, and let go of what was not asked for longest."""
        with self.lock:
            self.chunks.pop(place, None)
            while self.chunks and sum(held.nbytes for held in self.chunks.values()) + chunk.nbytes > _HELD_BYTES:
                self.chunks.popitem(last=False)
            self.chunks[place] = chunk


_CACHE = _Cache()


@dataclass(frozen=True, slots=True)
class _Key:
    """What tells open files apart."""

    uri: str
    options: str
    version: str | None
    parts: tuple[str, Mapping[str, Any] | None, str | None] = field(compare=False)


def read_value(
    uri: str,
    options: Mapping[str, Any] | None,
    column: str,
    row: int,
    *,
    version: str | None = None,
    max_bytes: int | None = None,
    reserve: Reserve = take_freely,
) -> bytes | None:
    """Return one binary value of a Parquet file.

    Some 256 MB of neighbouring values are kept in this process; a single row group may be larger, and passes alone.

    Args:
        uri: of the file.
        options: fsspec options.
        column: binary, or a struct with a binary part ``bytes``.
        row: from 0.
        version: the file's version tag as listed; None for any.
        max_bytes: of the value; any by default.
        reserve: asked for what is about to be read.

    Returns:
        The value, None for a null.

    Raises:
        ChangedError: the file has another version.
        ChunkTooLargeError: its row group is too large, or the value.
        KeyError, IndexError: there is no such column or row.
        pa.ArrowException: it is no Parquet file.
    """
    key = _Key(uri, repr(options), version, (uri, options, version))
    with _CACHE.file(key) as file:
        group, place = file.place(row)
        metadata = file.open().metadata
        leaf = leaf_of(file.open().schema_arrow, column)
    values = _CACHE.held((key, group, leaf))
    if values is None:
        # Not while the file is held: who waits for room may wait for an image that waits for the file.
        check_chunks(metadata, leaf, group)
        reserve(_chunk(metadata, leaf, group).total_uncompressed_size)
        with _CACHE.file(key) as file:
            values = _CACHE.held((key, group, leaf))  # by a neighbour meanwhile
            if values is None:
                values = file.read(group, leaf)
                _CACHE.keep((key, group, leaf), values)
    return _bytes_of(values[place], row, max_bytes)


def _bytes_of(value: pa.Scalar, row: int, max_bytes: int | None) -> bytes | None:
    """Return a value's bytes, which are copied only if they are not too many."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    data = value.as_buffer()
    if max_bytes is not None and data.size > max_bytes:
        raise ChunkTooLargeError(f"row {row} holds {data.size:,} bytes; max_image_bytes is {max_bytes:,}")
    return bytes(data.to_pybytes())
