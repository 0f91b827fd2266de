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

from pipelines.bounded_json import load_json
from pipelines.errors import SourceError, StorageError
from pipelines.redaction import quoted_names
from pipelines.sources.parquet_pages import iter_rows
from pipelines.storage.client_errors import storage_errors
from pipelines.storage.filesystems import open_filesystem

TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

MAX_ROW_CHARS = 2**24
"""Of a line of text, and of a row of CSV: a mask's RLE may be long, but as Python values a row takes many times it."""

MAX_COLUMN_CHARS, MAX_COLUMNS_CHARS = 2**16, 2**18
"""Of a further column's JSON that is carried along, and of all of a row's."""


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
def source_errors(uri: str) -> Iterator[None]:
    """Turn whatever storage says against reading a location into a SourceError."""
    try:
        with storage_errors(uri):
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
    with source_errors(uri):
        fs, path = open_filesystem(uri, storage_options)
        with fs.open(path, "rb") as file:
            yield file


class Lines:
    """The lines of a text, of which not even one is read beyond its bounds.

    Attributes:
        num_chars: since a row began; whoever takes rows sets it back to 0. With ``is_row`` every line is a row.
    """

    def __init__(self, uri: str, text: IO[str], *, is_row: bool = False) -> None:
        self._uri, self._text, self._is_row = uri, text, is_row
        self._number = self.num_chars = 0

    def __iter__(self) -> Lines:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next line with its end.

        Raises:
            SourceError: the row has more than MAX_ROW_CHARS characters.
        """
        line = self._text.readline(MAX_ROW_CHARS + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.num_chars = len(line) + (0 if self._is_row else self.num_chars)
        if self.num_chars > MAX_ROW_CHARS:
            raise SourceError(
                f"{self._uri}: line {self._number} makes a row of more than {MAX_ROW_CHARS:,} characters; if it is a "
                "table, see that its lines end and its quotes are closed"
            )
        return line


def _csv_rows(uri: str, storage_options: Mapping[str, Any] | None, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    with open_text(uri, storage_options) as text:
        lines = Lines(uri, text)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            if len(set(columns)) < len(columns):
                raise SourceError(f"{uri}: a column name occurs twice in the header: {quoted_names(columns)}")
            for fields in reader:
                lines.num_chars = 0
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
        for number, line in enumerate(Lines(uri, text, is_row=True), start=1):
            if not line.strip():
                continue
            try:
                row = load_json(line)
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
            yield from iter_rows(*open_filesystem(uri, storage_options), table, columns)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise SourceError(f"{uri}: not a readable Parquet file: {error}") from error


def columns_json(columns: Mapping[str, Any], *, is_bounded: bool = False) -> str | None:
    """Return an image's further columns as a JSON object with sorted keys; None if all are null.

    NaN and infinities are null, dates ISO text, and what JSON does not know its text. Columns whose own JSON is longer
    than MAX_COLUMN_CHARS are left out, and the longest of them until all have no more than MAX_COLUMNS_CHARS.

    Args:
        columns: by name.
        is_bounded: they have been chosen by their size already.
    """
    if not is_bounded:  # before any work is done on them
        columns = {n: v for n, v in columns.items() if not isinstance(v, str) or len(v) <= MAX_COLUMN_CHARS}
    known = {name: value for name, value in ((n, _plain(v)) for n, v in columns.items()) if value is not None}
    whole = _dump(known) if known else None
    if whole is None or is_bounded or len(whole) <= MAX_COLUMN_CHARS:
        return whole
    sizes = {name: len(_dump(value)) for name, value in known.items()}
    kept, num_chars = list[str](), 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        num_chars += sizes[name] + len(name)
        if sizes[name] <= MAX_COLUMN_CHARS and num_chars <= MAX_COLUMNS_CHARS:
            kept.append(name)
    return _dump({name: known[name] for name in kept}) if kept else None


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


def is_bytes(kind: pa.DataType) -> bool:
    """Say whether values of a type are bytes of any length, in whichever form Arrow holds them."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_binary(kind: pa.DataType) -> bool:
    """Say whether values of a type hold binary data anywhere."""
    if is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    if pa.types.is_dictionary(kind):
        return holds_binary(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):  # which has a text of its own
        return holds_binary(kind.storage_type)
    return any(holds_binary(kind.field(i).type) for i in range(kind.num_fields))
