"""Rows of the tables that people hand in: CSV, TSV, JSON lines and Parquet. Knows no column's meaning."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.redaction import redacted
from pipelines.storage import StorageError, explained, open_filesystem

TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

_ROWS_PER_BATCH = 4096
_MAX_CSV_FIELD_CHARS = 2**27  # a mask's RLE outgrows the csv module's 128 kB


class SourceError(ValueError):
    """An input cannot be used; the message says what is wrong, where, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


def read_rows(uri: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Read a table row by row.

    CSV and TSV: UTF-8, the first line names the columns, every value is a string. JSON lines: one object a line, blank
    lines skipped. Parquet: columns that hold binary data anywhere are left out.

    Args:
        uri: path or URI; its extension says which kind of table it is.
        storage_options: fsspec options.

    Returns:
        An iterator of rows as {column: value}. An empty CSV field and a null are None.

    Raises:
        SourceError: an unknown extension, or a table that cannot be opened or is broken; raised while iterating.
    """
    match extension_of(uri):
        case ".csv":
            return _csv_rows(uri, storage_options, delimiter=",")
        case ".tsv":
            return _csv_rows(uri, storage_options, delimiter="\t")
        case ".jsonl" | ".ndjson":
            return _json_rows(uri, storage_options)
        case ".parquet":
            return _parquet_rows(uri, storage_options)
        case other:
            raise SourceError(f"{uri}: not a table: extension {other!r}; known: {', '.join(TABLE_EXTENSIONS)}")


def extension_of(uri: str) -> str:
    """Return the extension of a URI's last part in lower case, with its dot; empty for a folder."""
    return "" if uri.endswith("/") else PurePosixPath(uri).suffix.lower()


@contextlib.contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn whatever storage says against reading a location into a SourceError."""
    try:
        with explained(uri):
            yield
    except StorageError as error:
        raise SourceError(str(error)) from error


@contextlib.contextmanager
def open_text(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, with or without byte order mark; line ends are left as they are.

    Raises:
        SourceError: it cannot be opened, or turns out not to be UTF-8.
    """
    try:
        with open_bytes(uri, storage_options) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri}: not UTF-8 text ({error}); save it as UTF-8") from error


@contextlib.contextmanager
def open_bytes(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[IO[bytes]]:
    """Open a file.

    Raises:
        SourceError: it cannot be opened, or not be read inside the ``with``.
    """
    with readable(uri):
        fs, path = open_filesystem(uri, storage_options)
        with fs.open(path, "rb") as file:
            yield file


def _csv_rows(uri: str, storage_options: Mapping[str, Any] | None, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CSV_FIELD_CHARS))
    with open_text(uri, storage_options) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            if len(set(columns)) < len(columns):
                raise SourceError(f"{uri}: a column name occurs twice in the header: {', '.join(columns)}")
            for fields in reader:
                if len(fields) > len(columns):
                    raise SourceError(
                        f"{uri}: line {reader.line_num} has {len(fields)} fields, the header {len(columns)}; "
                        "quote fields that contain the delimiter"
                    )
                if fields:
                    padded = [*fields, *[""] * (len(columns) - len(fields))]
                    yield {name: value or None for name, value in zip(columns, padded, strict=True)}
        except csv.Error as error:
            raise SourceError(f"{uri}: line {reader.line_num}: {error}") from error


def _json_rows(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    with open_text(uri, storage_options) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if "\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # half of an escaped surrogate pair is not text
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{uri}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SourceError(f"{uri}: line {number} holds {type(row).__name__}, not an object with columns")
            yield row


def _parquet_rows(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    with open_bytes(uri, storage_options) as file:
        try:
            table = pq.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if not holds_binary(field.type)]
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
                yield from batch.to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise SourceError(f"{uri}: not a readable Parquet file: {error}") from error


def columns_json(columns: Mapping[str, Any], max_chars: int | None = None) -> str | None:
    """Return an image's further columns as a JSON object with sorted keys; None if all are null.

    NaN and infinities are null, dates ISO text, and what JSON does not know its text.

    Args:
        columns: by name.
        max_chars: columns whose own JSON is longer are left out; None for any length.
    """
    known = {name: value for name, value in ((n, _plain(v)) for n, v in columns.items()) if value is not None}
    if max_chars is not None:
        known = {name: value for name, value in known.items() if len(_dump(value)) <= max_chars}
    return _dump(known) if known else None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def holds_binary(kind: pa.DataType) -> bool:
    """Say whether values of a type hold binary data anywhere."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(holds_binary(kind.field(i).type) for i in range(kind.num_fields))
