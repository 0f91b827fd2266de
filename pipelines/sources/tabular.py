"""Read users' tables row by row: CSV, TSV, JSON lines and Parquet. Columns have no meaning here."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.bounded_json import load_json, plain_json
from pipelines.errors import SourceError, StorageError
from pipelines.redaction import counted, quoted_names
from pipelines.sources.parquet_pages import iter_rows, large_columns
from pipelines.storage.client_errors import storage_errors
from pipelines.storage.filesystems import open_filesystem

_DECLARED = re.compile(r"sep=([,;\t|])\r?\n?", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")

MAX_ROW_CHARS = 2**24
"""Limit for a text line or CSV row. A mask's RLE may be long, but Python values take many times the text's memory."""

_BLOCK_CHARS = 2**19

MAX_COLUMN_CHARS, MAX_COLUMNS_CHARS = 2**16, 2**18
"""Limits for the JSON of one carried column, and of all carried columns of a row."""


def read_rows(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, binary: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Read a table row by row.

    CSV and TSV: UTF-8, the first line names the columns, every value is a string; what parts them (comma, semicolon,
    tab, bar) is told by that line, and a column without a name is left out. JSON lines: one object per line,
    blank lines are skipped. Parquet: columns with binary data at any depth are left out.

    Args:
        uri: path or URI; its extension tells the format.
        storage_options: fsspec options.
        binary: columns of Parquet that are read although they hold binary data.

    Returns:
        An iterator of rows as {column: value}. An empty CSV field, a null and NaN are None.

    Raises:
        SourceError: an unknown extension, or a table that cannot be opened or is broken; raised while iterating.
    """
    return (row for _, row in numbered_rows(uri, storage_options, binary=binary))


def numbered_rows(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, binary: Collection[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table as read_rows does, each row with the line where it begins, from 1, or its place in Parquet.

    The header of a CSV is line 1, as in editors and spreadsheets.
    """
    match extension_of(uri):
        case ".csv":
            return _csv_rows(uri, storage_options, delimiter=",")
        case ".tsv":
            return _csv_rows(uri, storage_options, delimiter="\t")
        case ".jsonl" | ".ndjson":
            return _without_nan((number, row) for number, _, row in json_rows(uri, storage_options))
        case ".parquet":
            return _without_nan(_parquet_rows(uri, storage_options, binary))
        case other:
            raise SourceError(f"{uri}: not a table: extension {other!r}; known: {', '.join(TABLE_EXTENSIONS)}")


def _without_nan(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    # In columns of text too, it is what data frames have where a value is missing.
    for number, row in rows:
        missing = dict.fromkeys(name for name, value in row.items() if isinstance(value, float) and math.isnan(value))
        yield number, row | missing


def extension_of(uri: str) -> str:
    """Return the extension of a URI in lower case, with its dot; empty for a folder."""
    return "" if uri.endswith("/") else PurePosixPath(uri).suffix.lower()


@contextlib.contextmanager
def source_errors(uri: str) -> Iterator[None]:
    """Raise a SourceError in place of any exception from reading a storage location."""
    try:
        with storage_errors(uri):
            yield
    except StorageError as error:
        raise SourceError(str(error)) from error


@contextlib.contextmanager
def open_text(uri: str, storage_options: Mapping[str, Any] | None, *, newline: str | None = "") -> Iterator[IO[str]]:
    """Open a UTF-8 text file, with or without a byte order mark; by default line endings are not translated.

    Raises:
        SourceError: the file cannot be opened, or turns out not to be UTF-8.
    """
    try:
        with (
            open_bytes(uri, storage_options) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text,
        ):
            yield text
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri}: not UTF-8 text ({error}); save it as UTF-8") from error


@contextlib.contextmanager
def open_bytes(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[IO[bytes]]:
    """Open a binary file.

    Raises:
        SourceError: the file cannot be opened, or reading it inside the ``with`` fails.
    """
    with source_errors(uri):
        fs, path = open_filesystem(uri, storage_options)
        with fs.open(path, "rb") as file:
            yield file


class Lines:
    """The lines of a text file, with a limit on the size of a row; not even one line is read beyond it.

    Attributes:
        uri: the file.
        num_chars: characters since the row began; the consumer resets it to 0 after each row. With ``is_row`` every
            line is a row of its own.
    """

    def __init__(self, uri: str, text: IO[str], *, is_row: bool = False) -> None:
        self.uri, self._text, self._is_row = uri, text, is_row
        self._number = self.num_chars = 0

    def __iter__(self) -> Lines:
        """Return itself."""
        return self

    def __next__(self) -> str:
        """Return the next line with its line ending.

        Raises:
            SourceError: the row has more than MAX_ROW_CHARS characters.
        """
        line = self._text.readline(MAX_ROW_CHARS + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self.num_chars = len(line) + (0 if self._is_row else self.num_chars)
        if self.num_chars > MAX_ROW_CHARS:
            raise _too_long(self.uri, self._number)
        return line


def _too_long(uri: str, line: int) -> SourceError:
    return SourceError(
        f"{uri}: line {line} makes a row of more than {MAX_ROW_CHARS:,} characters; if it is a "
        "table, see that its lines end and its quotes are closed"
    )


def line_blocks(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file in blocks.

    Yields:
        The number of a block's first line, from 1, and its lines, parted by newlines.

    Raises:
        SourceError: the file cannot be read, is not UTF-8, or has a line of more than MAX_ROW_CHARS characters.
    """
    number, held = 1, ""
    with open_text(uri, storage_options, newline=None) as text:
        while piece := text.read(_BLOCK_CHARS):
            whole, newline, rest = piece.rpartition("\n")
            if len(held) + (piece.find("\n") + 1 or len(piece)) > MAX_ROW_CHARS:
                raise _too_long(uri, number)
            if newline:
                block = held + whole
                yield number, block
                number += block.count("\n") + 1
                held = rest
            else:
                held += rest
        if held:
            yield number, held


def _csv_rows(
    uri: str, storage_options: Mapping[str, Any] | None, delimiter: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_csv(uri, storage_options, delimiter) as (columns, rows):
        for line, _, fields in rows:
            yield line, {name: value or None for name, value in zip(columns, fields, strict=True) if name}


@contextlib.contextmanager
def open_csv(
    uri: str, storage_options: Mapping[str, Any] | None, delimiter: str
) -> Iterator[tuple[list[str], Iterator[tuple[int, int, list[str]]]]]:
    """Open a CSV file.

    Args:
        uri, storage_options: as for read_rows.
        delimiter: what parts its columns unless its header tells otherwise.

    Returns:
        The names of its columns, empty for one without; and its rows: the line where each begins, its characters, and
        a field for each column. Empty rows are left out.

    Raises:
        SourceError: as for read_rows.
    """
    # A setting of the whole process, 131,072 by default, which a mask's RLE exceeds.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    with open_text(uri, storage_options) as text:
        lines = Lines(uri, text)
        head, delimiter, declared = _header(lines, delimiter)
        # "id, path": a blank behind every delimiter of the header belongs to no field, and a quote may follow it.
        parts = _QUOTED.sub("", head).rstrip("\r\n").split(delimiter)[1:]
        is_spaced = bool(parts) and all(part.startswith(" ") for part in parts)
        rows = itertools.chain([head], lines)
        reader = csv.reader(rows, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        try:
            columns = [name.strip() for name in next(reader, [])]
            named = [name for name in columns if name]
            if len(set(named)) < len(named):
                raise SourceError(f"{uri}: a column name occurs twice in the header: {quoted_names(columns)}")
            yield columns, _csv_fields(lines, reader, len(columns), declared)
        except csv.Error as error:
            raise SourceError(f"{uri}: line {reader.line_num + declared}: {error}") from error


def _csv_fields(lines: Lines, reader: Any, num_columns: int, declared: bool) -> Iterator[tuple[int, int, list[str]]]:
    begun = reader.line_num + 1
    for fields in reader:
        num_chars, lines.num_chars = lines.num_chars, 0
        if any(fields[num_columns:]):
            raise SourceError(
                f"{lines.uri}: line {reader.line_num + declared} has {counted(len(fields), 'field')}, the header "
                f"{num_columns}; quote fields that contain the delimiter"
            )
        if any(fields):  # spreadsheets write empty rows as nothing but delimiters
            # A line may leave out fields at its end: they are empty.
            whole = fields if len(fields) == num_columns else [*fields, *[""] * num_columns][:num_columns]
            yield begun + declared, num_chars, whole
        begun = reader.line_num + 1


def has_decimal_commas(uri: str, storage_options: Mapping[str, Any] | None) -> bool:
    """Return whether commas in a table's fields may be decimal signs: its columns are parted by semicolons.

    Raises:
        SourceError: the table cannot be opened.
    """
    usual = {".csv": ",", ".tsv": "\t"}.get(extension_of(uri))
    if usual is None:
        return False
    with open_text(uri, storage_options) as text:
        return _header(Lines(uri, text), usual)[1] == ";"


def _header(lines: Lines, usual: str) -> tuple[str, str, bool]:
    """Read a table's header; return it, the delimiter, and whether a line in front of it declared that, as Excel's."""
    head = next(lines, "")
    if declared := _DECLARED.fullmatch(head):
        return next(lines, ""), declared[1], True
    return head, _delimiter(head, usual), False


def _delimiter(head: str, usual: str) -> str:
    """Return the delimiter of a table by its header: the usual one, unless only another one parts it.

    Spreadsheets write semicolons where the comma is the decimal sign, whatever the file is called.
    """
    outside = _QUOTED.sub("", head)
    return usual if usual in outside else next((mark for mark in ",;\t|" if mark in outside), usual)


def json_rows(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read JSON lines: yield the number of each line that is not blank, its characters, and the object that it holds.

    Raises:
        SourceError: as for read_rows.
    """
    with open_text(uri, storage_options) as text:
        for number, line in enumerate(Lines(uri, text, is_row=True), start=1):
            if not line.strip():
                continue
            try:
                row = load_json(line)
                if "\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode()  # fails for a lone escaped surrogate, which is no text
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{uri}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SourceError(f"{uri}: line {number} holds {type(row).__name__}, not an object with columns")
            yield number, len(line), row


def _parquet_rows(
    uri: str, storage_options: Mapping[str, Any] | None, binary: Collection[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_parquet_table(uri, storage_options, binary=binary) as (table, columns):
        yield from enumerate(iter_rows(*open_filesystem(uri, storage_options), table, columns), start=1)


@contextlib.contextmanager
def open_parquet_table(
    uri: str, storage_options: Mapping[str, Any] | None, *, binary: Collection[str] = (), as_dictionary: bool = False
) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """Open a Parquet file, and say which of its columns are without binary data, or among those named.

    Args:
        uri, storage_options, binary: as for read_rows.
        as_dictionary: whether columns of strings shall be read as dictionaries, as far as these stay small.

    Raises:
        SourceError: it cannot be opened, or reading it inside the ``with`` fails.
    """
    with open_bytes(uri, storage_options) as file:
        try:
            table = pq.ParquetFile(file)
            fields = table.schema_arrow
            names = [field.name for field in fields if field.name in binary or not holds_binary(field.type)]
            large = large_columns(table.metadata)
            texts = [field.name for field in fields if pa.types.is_string(field.type) and field.name not in large]
            texts = [name for name in texts if name in names]
            yield (pq.ParquetFile(file, read_dictionary=texts) if as_dictionary and texts else table), names
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise SourceError(f"{uri}: not a readable Parquet file: {error}") from error


def columns_json(columns: Mapping[str, Any], *, is_bounded: bool = False) -> str | None:
    """Return an image's other columns as a JSON object with sorted keys; None if all are null.

    NaN and infinities become null, dates ISO text, and other values that JSON lacks their str. Columns whose JSON is
    longer than MAX_COLUMN_CHARS are left out, and then the longest ones until the rest fits MAX_COLUMNS_CHARS.

    Args:
        columns: values by name.
        is_bounded: whether the caller has already limited their size.
    """
    if not is_bounded:  # long texts go first, before any work is done on them
        columns = {n: v for n, v in columns.items() if not isinstance(v, str) or len(v) <= MAX_COLUMN_CHARS}
    known = {name: value for name, value in ((n, plain_json(v)) for n, v in columns.items()) if value is not None}
    whole = dump_json(known) if known else None
    if whole is None or is_bounded or len(whole) <= MAX_COLUMN_CHARS:
        return whole
    sizes = {name: len(dump_json(value)) for name, value in known.items()}
    kept, num_chars = list[str](), 0
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        num_chars += sizes[name] + len(name)
        if sizes[name] <= MAX_COLUMN_CHARS and num_chars <= MAX_COLUMNS_CHARS:
            kept.append(name)
    return dump_json({name: known[name] for name in kept}) if kept else None


def dump_json(value: Any) -> str:
    """Return a value as JSON with sorted keys; what JSON lacks as its str."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type's values are bytes of variable length, in any of Arrow's forms."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_binary(kind: pa.DataType) -> bool:
    """Return whether a type contains binary data at any depth."""
    if is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    if pa.types.is_dictionary(kind):
        return holds_binary(kind.value_type)
    # A UUID is stored as bytes, but converts to a Python value that has a text.
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        return holds_binary(kind.storage_type)
    return any(holds_binary(kind.field(i).type) for i in range(kind.num_fields))
