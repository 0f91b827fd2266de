"""Read users' tables as columns, many rows at a time; what a table is and how it is read, see the module tabular."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from pipelines.sources.parquet_pages import is_text_dictionary, iter_batches
from pipelines.sources.tabular import extension_of, json_rows, open_csv, open_parquet_table, read_rows
from pipelines.storage.filesystems import open_filesystem

_ROWS, _CHARS = 4096, 2**20  # Python values take many times the text's memory
_Row = TypeVar("_Row")


class Chunk(NamedTuple):
    """Consecutive rows of a table.

    Attributes:
        names: the columns of the first of them.
        num_rows: how many they are, at least one.
        columns: their values by name, as Arrow or Python has them; None for what a row does not have.
    """

    names: list[str]
    num_rows: int
    columns: dict[str, pa.Array | list[Any]]

    @classmethod
    def of_rows(cls, rows: list[dict[str, Any]]) -> Chunk:
        """Return rows given one by one."""
        names = dict.fromkeys(name for row in rows for name in row)
        return cls(list(rows[0]), len(rows), {name: [row.get(name) for row in rows] for name in names})


def read_chunks(uri: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Chunk]:
    """Read a table as ``tabular.read_rows`` does, many rows at a time; an error comes behind the rows before it.

    Raises:
        SourceError: as there.
    """
    match extension_of(uri):
        case ".csv":
            return _of_csv(uri, storage_options, ",")
        case ".tsv":
            return _of_csv(uri, storage_options, "\t")
        case ".jsonl" | ".ndjson":
            return _of_json(uri, storage_options)
        case ".parquet":
            return _of_parquet(uri, storage_options)
        case _:
            return map(Chunk.of_rows, gathered(read_rows(uri, storage_options), lambda _: 0))


def gathered(rows: Iterable[_Row], num_chars: Callable[[_Row], int]) -> Iterator[list[_Row]]:
    """Gather rows into lists of a limited number of rows and characters; an error comes behind the rows before it."""
    held, total = list[_Row](), 0
    try:
        for row in rows:
            held.append(row)
            total += num_chars(row)
            if len(held) >= _ROWS or total >= _CHARS:
                yield held
                held, total = [], 0
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def _of_csv(uri: str, storage_options: Mapping[str, Any] | None, delimiter: str) -> Iterator[Chunk]:
    with open_csv(uri, storage_options, delimiter) as (columns, rows):
        names = [name for name in columns if name]
        for some in gathered(rows, lambda row: row[1]):
            fields = zip(*(row[2] for row in some), strict=True)
            values = {
                name: pa.array([value or None for value in column], pa.string())
                for name, column in zip(columns, fields, strict=True)
                if name
            }
            yield Chunk(names, len(some), values)


def _of_json(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[Chunk]:
    for some in gathered(json_rows(uri, storage_options), lambda row: row[1]):
        chunk = Chunk.of_rows([row for _, _, row in some])
        yield chunk._replace(columns={name: _without_nan(values) for name, values in chunk.columns.items()})


def _of_parquet(uri: str, storage_options: Mapping[str, Any] | None) -> Iterator[Chunk]:
    with open_parquet_table(uri, storage_options, as_dictionary=True) as (table, names):
        if not names:
            if table.metadata.num_rows:
                yield Chunk([], table.metadata.num_rows, {})
            return
        texts = [field.name for field in table.schema_arrow if is_text_dictionary(field.type)]
        for batch in iter_batches(*open_filesystem(uri, storage_options), table, names, texts):
            yield _of_batch(batch)


def _of_batch(batch: pa.RecordBatch) -> Chunk:
    names = batch.schema.names
    try:
        batch.validate(full=True)
        is_sound = len(set(names)) == len(names)
    except pa.ArrowInvalid:
        is_sound = False
    if not is_sound:  # or says which bytes are no text
        return Chunk.of_rows(batch.to_pylist())
    return Chunk(names, batch.num_rows, {name: _strings_or_values(batch[name]) for name in names})


def _strings_or_values(values: pa.Array) -> pa.Array | list[Any]:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return values.cast(pa.string()) if is_text else _without_nan(values.to_pylist())


def _without_nan(values: list[Any]) -> list[Any]:
    # In columns of text too, it is what data frames have where a value is missing.
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]
