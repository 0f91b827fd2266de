"""Further columns of many images as JSON objects, column by column: the same text as ``columns_json`` gives a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bounded_json import plain_json
from pipelines.sources.tabular import MAX_COLUMN_CHARS, columns_json, dump_json

Values: TypeAlias = "pa.StringArray | Sequence[Any]"
"""A column: Arrow strings, or any Python values."""

_ESCAPED = r'["\\\x00-\x1f]'


def columns_json_of_rows(columns: Mapping[str, Values], num_rows: int) -> pa.StringArray:
    """Return for each row what ``columns_json`` gives for its values by column.

    Args:
        columns: the values of all rows by name.
        num_rows: how many rows there are.
    """
    members = [_members(name, columns[name]) for name in sorted(columns)]
    if not members:
        return pa.nulls(num_rows, pa.string())
    # Not null_handling="skip": it drops rows of nulls. Each member begins with a comma.
    options = {"null_handling": "replace", "null_replacement": ""}
    joined = pc.binary_join_element_wise(pa.scalar("{"), *members, pa.scalar("}"), pa.scalar(""), **options)
    texts = pc.replace_substring(joined, "{, ", "{", max_replacements=1)
    texts = pc.if_else(pc.equal(joined, "{}"), pa.scalar(None, pa.string()), texts)
    if (pc.max(pc.binary_length(texts)).as_py() or 0) <= MAX_COLUMN_CHARS:
        return texts
    rows = pc.indices_nonzero(pc.greater(pc.utf8_length(texts), MAX_COLUMN_CHARS)).to_pylist()
    bounded = {row: columns_json({name: value_of(values, row) for name, values in columns.items()}) for row in rows}
    return pa.array([bounded.get(row, text) for row, text in enumerate(texts.to_pylist())], pa.string())


def strings(values: Values) -> Values:
    """Return a column as Arrow strings if it holds nothing else."""
    is_text = not isinstance(values, pa.Array) and set(map(type, values)) <= {str, type(None)}
    return pa.array(values, pa.string()) if is_text else values


def _members(name: str, values: Values) -> pa.StringArray:
    """Return ``, "name": value`` for each row, null where the value is."""
    key, values = f", {dump_json(name)}", strings(values)
    if not isinstance(values, pa.Array):
        return _prefixed(f"{key}: ", pa.array(_dumped(values), pa.string()), "")
    is_escaped = pc.fill_null(pc.match_substring_regex(values, _ESCAPED), False)
    if pc.any(is_escaped).as_py():
        escaped = pa.array([dump_json(text)[1:-1] for text in values.filter(is_escaped).to_pylist()], pa.string())
        values = pc.replace_with_mask(values, is_escaped, escaped)
    return _prefixed(f'{key}: "', values, '"')


def _prefixed(before: str, values: pa.StringArray, behind: str) -> pa.StringArray:
    return pc.binary_join_element_wise(pa.scalar(before), values, pa.scalar(behind), pa.scalar(""))


def _dumped(values: Sequence[Any]) -> list[str | None]:
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        return [None if value is None else repr(value) for value in values]
    if kinds == {float}:
        return [repr(value) if value is not None and math.isfinite(value) else None for value in values]
    plain = map(plain_json, values)
    return [None if value is None else dump_json(value) for value in plain]


def value_of(values: Values, row: int) -> Any:
    """Return the value of a row as Python has it."""
    return values[row].as_py() if isinstance(values, pa.Array) else values[row]
