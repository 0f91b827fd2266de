"""List images inside Arrow files, mostly folders saved by Hugging Face ``datasets``, as byte ranges of the files.

Uncompressed Arrow stores the bytes of a value contiguously and unchanged, so an image is a plain range of the file.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.bounded_json import load_json
from pipelines.errors import SourceError
from pipelines.redaction import quoted
from pipelines.sources.arrow_messages import message_facts
from pipelines.sources.files import ListedFile, is_local, uri_of
from pipelines.sources.locations import ByteRange
from pipelines.sources.parquet import RowForm, check_pictures, row_form, sure_image_columns
from pipelines.sources.parquet_values import MAX_CHUNK_BYTES
from pipelines.sources.tabular import holds_binary, source_errors
from pipelines.sources.uri_lists import resolve_uri
from pipelines.storage.filesystems import read_range
from pipelines.types import ImageRef

# A file (as opposed to a stream) begins with the magic; the stream that follows is the same. Its end is marked by an
# empty message: a continuation mark and length 0.
_MAGIC = b"ARROW1\0\0"
_END = b"\xff\xff\xff\xff\0\0\0\0"
_READ_BYTES = 2**23
# Rows are converted to Python values in slices: a record batch may have any number of them.
_ROWS_AT_ONCE = 1024
_PEEK_ROWS = 16
_CONTINUATION = b"\xff\xff\xff\xff"
# Of a message's metadata, which is read whole before anything in it is checked.
_MAX_MESSAGE_BYTES = 2**26
_COMPRESSED = "compressed, so that no image in it can be read alone; write it without compression"


def list_arrow(
    fs: Any, files: Iterable[ListedFile], *, image_id_column: str | None = None, image_column: str | None = None
) -> Iterator[ImageRef]:
    """List the images of uncompressed Arrow files (IPC streams or files), one for each row.

    In a folder with a ``state.json``, as ``save_to_disk`` writes it, only the files named there are data; in other
    folders files whose names begin with ``cache-`` are not. Ids, carried columns and the choice of the image column are
    as for Parquet files. A row with a path but no bytes is the image at that path. Local files are memory-mapped;
    remote ones are read once from start to end, one record batch at a time.

    Args:
        fs: the file system that holds the files.
        files: the files, in order.
        image_id_column, image_column: see parquet.list_rows.

    Raises:
        SourceError: a file is broken, truncated or compressed, has no column of images or several, or a row has neither
            bytes nor a path.
    """
    for file in _data_files(fs, files):
        uri = uri_of(fs, file.path)
        with source_errors(uri), _opened(fs, file.path) as stream:
            try:
                yield from _list_file(uri, file, stream, image_id_column, image_column)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                # Arrow reports broken files as a bare OSError without a number; any other is of the storage.
                if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                    raise
                raise SourceError(
                    f"{uri}: not a readable Arrow file, or cut short: {error}; write it as Parquet"
                ) from error


def _list_file(
    uri: str, file: ListedFile, stream: pa.NativeFile, image_id_column: str | None, image_column: str | None
) -> Iterator[ImageRef]:
    row = 0
    for batch, body, start in _batches(uri, stream):
        form = row_form(uri, batch.schema, image_id_column, image_column)
        for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
            some = batch.slice(first, _ROWS_AT_ONCE)
            spans = _spans(uri, some.column(form.image), body, start)
            if not row and image_column is None and form.image not in sure_image_columns(batch.schema):
                begins = (body[span.offset - start :][: span.size] for span in spans[:_PEEK_ROWS] if span)
                check_pictures(uri, form.image, (begin.slice(0, min(begin.size, 64)).to_pybytes() for begin in begins))
            for values, span in zip(_values(some, form), spans, strict=True):
                yield _ref(uri, file, row, values, (form, span))
                row += 1


def _ref(
    uri: str, file: ListedFile, row: int, values: dict[str, Any], where: tuple[RowForm, ByteRange | None]
) -> ImageRef:
    form, span = where
    image_id, others = form.describe(file.name, row, values)
    if span is not None:
        etag = file.etag and f"{file.etag}{span}"
        return ImageRef(image_id=image_id, uri=f"{uri}{span}", num_bytes=span.size, etag=etag, source_columns=others)
    path = form.path(values)
    if not path:
        raise SourceError(f"{uri}: row {row} (from 0) holds no image: column {quoted(form.image)} is null")
    elsewhere = resolve_uri(path, posixpath.dirname(uri), f"{uri}: row {row} (from 0)")
    return ImageRef(image_id=image_id, uri=elsewhere, source_columns=others)


def _values(batch: pa.RecordBatch, form: RowForm) -> list[dict[str, Any]]:
    """Return the rows without binary columns; of the image column only the path."""
    plain = [field.name for field in batch.schema if not holds_binary(field.type)]
    rows: list[dict[str, Any]] = batch.select(plain).to_pylist() if plain else [{} for _ in range(batch.num_rows)]
    if form.has_path:
        for values, path in zip(rows, batch.column(form.image).field("path").to_pylist(), strict=True):
            values[form.image] = {"path": path}
    return rows


def _spans(uri: str, column: pa.Array, body: pa.Buffer, start: int) -> list[ByteRange | None]:
    """Return the byte range of each row's value in the file; None for a null.

    Args:
        uri: the file's URI, for errors.
        column: the image column of a record batch.
        body: the record batch's bytes.
        start: their offset in the file.

    Raises:
        SourceError: the column's type does not store values contiguously, or they are not stored in the file as such.
    """
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
        is_null = is_null | column.is_null().to_numpy(zero_copy_only=False)
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise SourceError(f"{uri}: images of type {column.type}, which are not read here; write it as Parquet")
    _, offsets, data = column.buffers()
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    if offsets is None or data is None or not data.size:
        return [None if null else ByteRange(start, 0) for null in is_null]
    # Values outside the message's body were decompressed into a buffer of their own.
    if not body.address <= data.address <= data.address + data.size <= body.address + body.size:
        raise SourceError(f"{uri}: {_COMPRESSED}")
    edges = np.frombuffer(offsets, kind, count=column.offset + len(column) + 1)[column.offset :].astype(np.int64)
    edges += start + data.address - body.address
    return [
        None if null else ByteRange(int(one), int(next_one - one))
        for null, one, next_one in zip(is_null, edges[:-1], edges[1:], strict=True)
    ]


def _batches(uri: str, stream: pa.NativeFile) -> Iterator[tuple[pa.RecordBatch, pa.Buffer, int]]:
    """Read record batches, each with its body and the body's offset in the file."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        stream.seek(0)
    messages = pa.ipc.MessageReader.open_stream(stream)
    schema = None
    # Message by message, not through RecordBatchStreamReader, which does not tell where a batch lies in the file.
    with contextlib.suppress(StopIteration):
        while True:
            _check_next(uri, stream)
            message = messages.read_next_message()
            if message.type == "schema":
                schema = pa.ipc.read_schema(message)
            elif message.type != "record batch" or schema is None:
                raise SourceError(f"{uri}: holds a {message.type}, which is not read here; write it as Parquet")
            else:
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)  # its offsets come from outside, and are used unchecked from here on
                yield batch, message.body, stream.tell() - message.body.size
    end = stream.tell()
    stream.seek(max(0, end - len(_END)))
    if stream.read(len(_END)) != _END:
        raise SourceError(f"{uri}: cut short: it ends at byte {end:,} without the mark of an Arrow stream's end")


def _check_next(uri: str, stream: pa.NativeFile) -> None:
    """Check the next message before Arrow reads it, which would decompress it and hold a remote one in memory.

    Raises:
        SourceError: it is compressed, or too large to be read from remote storage.
    """
    start = stream.tell()
    prefix = stream.read(8)
    # Before Arrow 0.15 messages had no continuation mark in front of their length.
    length = int.from_bytes(prefix[4:] if prefix[:4] == _CONTINUATION else prefix[:4], "little")
    is_local_file = isinstance(stream, pa.MemoryMappedFile)
    facts = message_facts(stream.read(length)) if length <= _MAX_MESSAGE_BYTES else None
    stream.seek(start)
    if length > _MAX_MESSAGE_BYTES:
        raise SourceError(f"{uri}: not a readable Arrow file: at byte {start:,} it claims {length:,} bytes of metadata")
    if facts is None:
        return  # let Arrow report what is wrong with it
    if facts.is_compressed:
        raise SourceError(f"{uri}: {_COMPRESSED}")
    if facts.body_bytes > MAX_CHUNK_BYTES and not is_local_file:
        raise SourceError(
            f"{uri}: a record batch of {facts.body_bytes:,} bytes, and at most {MAX_CHUNK_BYTES:,} are read at once "
            "from afar; save the dataset again in smaller batches, or as Parquet (to_parquet)"
        )


@contextlib.contextmanager
def _opened(fs: Any, path: str) -> Iterator[pa.NativeFile]:
    if is_local(fs):
        with pa.memory_map(path) as stream:
            yield stream
    else:
        with fs.open(path, "rb", block_size=_READ_BYTES) as file, pa.PythonFile(file, "r") as stream:
            yield stream


def _data_files(fs: Any, files: Iterable[ListedFile]) -> list[ListedFile]:
    """Leave out files that are not data of a saved dataset, such as caches of ``map`` and ``filter``."""
    named: dict[str, frozenset[str] | None] = {}
    kept = []
    for file in files:
        folder, name = posixpath.split(file.path)
        if folder not in named:
            named[folder] = _named_files(fs, folder)
        names = named[folder]
        if name in names if names is not None else not name.startswith("cache-"):
            kept.append(file)
    return kept


def _named_files(fs: Any, folder: str) -> frozenset[str] | None:
    """Return the names of a saved dataset's data files; None if the folder is not a saved dataset."""
    path = f"{folder}/state.json"
    uri = uri_of(fs, path)
    with source_errors(uri):
        try:
            state = load_json(read_range(fs, path, 0, _MAX_MESSAGE_BYTES))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SourceError(f"{uri}: not JSON ({error}); save the dataset again") from error
    try:
        # With an indices mapping the dataset's rows are a selection of the files' rows, in another order.
        if state.get("_indices_data_files"):
            raise SourceError(f"{uri}: the dataset was saved with an indices mapping; save it again (flatten_indices)")
        return frozenset(entry["filename"] for entry in state["_data_files"])
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{uri}: not the state of a saved dataset: {error}") from error
