"""Read single values of a binary column in a Parquet file, and cache the column chunk for neighboring rows.

Only the footer is read, and the requested column of the row group. The cache is shared by all threads of the process.
Its lock is never held while reading, so a file that hangs delays only its own readers, and those only for a while.
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

from pipelines.redaction import counted, quoted
from pipelines.sources.files import look_up
from pipelines.sources.parquet_pages import has_dictionary, rows_at_once
from pipelines.storage.filesystems import open_filesystem

# To read one image, the column chunk of its whole row group has to be read.
MAX_CHUNK_BYTES = 2**29

_HELD_BYTES = 2**28
_HELD_FILES = 16
_READ_BYTES = 2**23
_ROW_BYTES = 8  # memory of a row even if it is null: a small file may hold any number of nulls
_GROUP_BYTES = 2**10  # more than the headers of a chunk of nulls
_SLACK_BYTES = 2**24
# After waiting so long for another reader of a file, a reader opens the file anew.
_STALLED_S = 20.0


Reserve = Callable[[int], None]
"""Called with a number of bytes before they are allocated; may block until there is room for them."""


def take_freely(_num_bytes: int) -> None:
    """Reserve nothing."""


class ChangedError(OSError):
    """A file has changed since it was listed."""


class ChunkTooLargeError(ValueError):
    """A row group, or one of its values, is larger than the limit for reading one value."""


def open_parquet(fs: Any, path: str, *, streamed: bool = True, unique: str | None = None) -> pq.ParquetFile:
    """Open a Parquet file to read parts of it.

    Args:
        fs: its file system.
        path: its path there.
        streamed: whether to read columns piece by piece, which suits large ones, or those of a row group together.
        unique: a leaf column to read as a dictionary, so that equal values are held once.
    """
    # No block cache: pyarrow asks for exact ranges, and a cache would read further ahead and keep it.
    file = fs.open(path, "rb", cache_type="none")
    unfolded = [unique] if unique else None
    return pq.ParquetFile(
        file, buffer_size=_READ_BYTES if streamed else 0, pre_buffer=not streamed, read_dictionary=unfolded
    )


def leaf_of(schema: pa.Schema, column: str) -> str:
    """Return the leaf column (in Parquet's sense) with a column's bytes: itself, or the field ``bytes`` of a struct.

    Raises:
        KeyError: there is no such column.
    """
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def check_chunks(metadata: pq.FileMetaData, leaf: str, group: int | None = None) -> None:
    """Check that one row group, or all of them, are small enough for reading single values.

    Raises:
        ChunkTooLargeError: one is not; the message gives its size and what to do.
        pa.ArrowInvalid: the file is broken: a row group lacks the column.
    """
    for number in range(metadata.num_row_groups) if group is None else (group,):
        num_bytes = _chunk(metadata, leaf, number).total_uncompressed_size
        num_rows = metadata.row_group(number).num_rows
        if num_bytes + num_rows * _ROW_BYTES > MAX_CHUNK_BYTES:
            raise _too_large(f"row group {number} holds {num_bytes:,} bytes of images in {counted(num_rows, 'row')}")


def may_hold_no_value(metadata: pq.FileMetaData, leaf: str, group: int) -> bool:
    """Return whether a leaf column of a row group is so small that it may be null in all rows.

    A footer's statistics would tell, but pyarrow ends the process on damaged ones.
    """
    num_bytes = _chunk(metadata, leaf, group).total_uncompressed_size
    return bool(num_bytes <= _ROW_BYTES * metadata.row_group(group).num_rows + _GROUP_BYTES)


def _chunk(metadata: pq.FileMetaData, leaf: str, group: int) -> pq.ColumnChunkMetaData:
    info = metadata.row_group(group)
    columns = (info.column(place) for place in range(info.num_columns))
    found = next((column for column in columns if column.path_in_schema == leaf), None)
    if found is None:
        raise pa.ArrowInvalid(f"row group {group} has no column {quoted(leaf)}")
    return found


def _too_large(what: str) -> ChunkTooLargeError:
    return ChunkTooLargeError(
        f"{what}, and at most {MAX_CHUNK_BYTES:,} bytes are read for one of them; write the file again with fewer rows "
        "in a row group (row_group_size=100)"
    )


@dataclass(slots=True, eq=False)
class _OpenFile:
    """A file that is opened when first needed, and read under its lock, by one thread at a time."""

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
        """Check that the file has not changed since it was listed."""
        if self.version is not None and look_up(self.fs, self.path).etag != self.version:
            raise ChangedError(f"{self.uri}: has changed since it was listed; plan again, as a new run")

    def place(self, row: int) -> tuple[int, int]:
        """Return a row's row group and its position there."""
        num_rows = self.open().metadata.num_rows
        if not 0 <= row < num_rows:
            raise IndexError(f"it has {counted(num_rows, 'row')}, and none of number {row:,}")
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def read(self, group: int, leaf: str) -> pa.ChunkedArray:
        """Return a row group's values of one leaf column, with equal values held once if they would expand too much."""
        table = self.open()
        check_chunks(table.metadata, leaf, group)
        column = _chunk(table.metadata, leaf, group)
        # Read plainly first; give that up once more than about twice the stored size appears. Then many rows share
        # their values, and reading the column as a dictionary holds each of them once.
        is_folded = has_dictionary(column)
        most = min(MAX_CHUNK_BYTES, 2 * column.total_uncompressed_size + _SLACK_BYTES if is_folded else MAX_CHUNK_BYTES)
        found = self._unfold(table, group, leaf, most)
        if found is None and is_folded:
            table = open_parquet(self.fs, self.path, unique=leaf)
            with contextlib.closing(table):
                found = table.read_row_group(group, columns=[leaf], use_threads=False).column(0)
        if found is None:
            raise _too_large(f"the images of row group {group} unfold to more than {most:,} bytes")
        self.check_version()  # again: the file may have been overwritten while it was open
        if pa.types.is_struct(found.type):
            return pa.chunked_array([part.field("bytes") for part in found.chunks])
        return found

    def _unfold(self, table: pq.ParquetFile, group: int, leaf: str, most: int) -> pa.ChunkedArray | None:
        """Read values without sharing equal ones; None as soon as they exceed ``most`` bytes."""
        size = rows_at_once(self.fs, self.path, table.metadata.row_group(group), [leaf])
        batches, num_bytes = list[pa.RecordBatch](), 0
        for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=[leaf], use_threads=False):
            num_bytes += batch.nbytes
            if num_bytes > most:
                return None
            batches.append(batch)
        return pa.chunked_array([batch.column(0) for batch in batches])

    def close(self) -> None:
        """Close the file, unless another thread is reading it: then it is closed when that one drops it."""
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
    """Open files, and column chunks read from them. The lock guards the two dicts only, and is never held for I/O."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    files: OrderedDict[Any, _OpenFile] = field(default_factory=OrderedDict)
    chunks: OrderedDict[_Place, pa.ChunkedArray] = field(default_factory=OrderedDict)

    @contextlib.contextmanager
    def file(self, key: Any) -> Iterator[_OpenFile]:
        """Lend a file to one reader at a time.

        If another reader does not return it in time, the file is opened anew, since that reader may hang for ever.
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
        """Return a cached column chunk; None if it is not cached."""
        with self.lock:
            if (chunk := self.chunks.get(place)) is not None:
                self.chunks.move_to_end(place)
            return chunk

    def keep(self, place: _Place, chunk: pa.ChunkedArray) -> None:
        """Cache a column chunk, and drop the least recently used ones."""
        with self.lock:
            self.chunks.pop(place, None)
            while self.chunks and sum(held.nbytes for held in self.chunks.values()) + chunk.nbytes > _HELD_BYTES:
                self.chunks.popitem(last=False)
            self.chunks[place] = chunk


_CACHE = _Cache()


@dataclass(frozen=True, slots=True)
class _Key:
    """The identity of an open file; ``parts`` are its constructor's arguments, of which options are not hashable."""

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

    About 256 MB of column chunks are cached for neighboring rows; a single larger one is kept alone.

    Args:
        uri: the file's URI.
        options: fsspec options.
        column: a binary column, or a struct with a binary field ``bytes``.
        row: the row, from 0.
        version: the file's version tag as listed; None for any.
        max_bytes: limit on the value's size; none by default.
        reserve: called with the number of bytes about to be read.

    Returns:
        The value, None for a null.

    Raises:
        ChangedError: the file has another version.
        ChunkTooLargeError: its row group or the value is too large.
        KeyError, IndexError: there is no such column or row.
        pa.ArrowException: it is not a Parquet file.
    """
    key = _Key(uri, repr(options), version, (uri, options, version))
    with _CACHE.file(key) as file:
        group, place = file.place(row)
        metadata = file.open().metadata
        leaf = leaf_of(file.open().schema_arrow, column)
    values = _CACHE.held((key, group, leaf))
    if values is None:
        # Reserve before the file is taken: room may only come free once an image is loaded that waits for this file.
        check_chunks(metadata, leaf, group)
        reserve(_chunk(metadata, leaf, group).total_uncompressed_size)
        with _CACHE.file(key) as file:
            values = _CACHE.held((key, group, leaf))  # another thread may have read it meanwhile
            if values is None:
                values = file.read(group, leaf)
                _CACHE.keep((key, group, leaf), values)
    return _bytes_of(values[place], row, max_bytes)


def _bytes_of(value: pa.Scalar, row: int, max_bytes: int | None) -> bytes | None:
    """Return a value's bytes; its size is checked before they are copied."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    data = value.as_buffer()
    if max_bytes is not None and data.size > max_bytes:
        raise ChunkTooLargeError(f"row {row} holds {data.size:,} bytes; max_image_bytes is {max_bytes:,}")
    return bytes(data.to_pybytes())
