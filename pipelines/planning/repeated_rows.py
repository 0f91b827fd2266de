"""Join the rows of a list or table that name one image: a table of objects has a row for each of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.image_formats import LeftOut
from pipelines.sources.tabular import columns_json

MAX_JOINED_ROWS = 10_000
"""Rows of one image whose columns are carried along; of further ones only the image is."""

_COLUMNS = "source_columns"


def join_repeated(batches: Iterable[pa.RecordBatch], left_out: LeftOut) -> Iterator[pa.RecordBatch]:
    """Join rows of the same ``image_id`` and ``uri`` to the one that was listed first.

    A further column with one value in all rows keeps it; of others the values are carried as a list, in the order of
    the rows.

    Args:
        batches: images sorted by ``image_id``, with their ``place`` in the listing.
        left_out: counts the rows that name an image again.
    """
    held: list[pa.RecordBatch] = []  # rows of the last image, which the next batch may go on with
    for batch in batches:
        if not batch.num_rows:
            yield batch
            continue
        starts = _starts([*held[-1:], batch])[bool(held) :]
        firsts = np.flatnonzero(starts)
        if not len(firsts):
            held = _bounded([*held, batch], left_out)
            continue
        if firsts[0] or held:
            yield _joined(_bounded([*held, batch.slice(0, firsts[0])], left_out), left_out)
        yield from _between(batch, firsts, left_out)
        held = _bounded([batch.slice(firsts[-1])], left_out)
    if held:
        yield _joined(held, left_out)


def _starts(batches: list[pa.RecordBatch]) -> Any:
    """Return for each row whether it names another image than the row before; True for the first."""
    table = pa.Table.from_batches([batch.select(["image_id", "uri"]) for batch in batches])
    same = np.zeros(table.num_rows, np.bool_)
    if table.num_rows > 1:
        ids, uris = table["image_id"], table["uri"]
        same_id = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
        if pc.any(same_id).as_py():
            same_uri = pc.equal(uris.slice(1), uris.slice(0, len(uris) - 1))
            same[1:] = pc.and_(same_id, same_uri).to_numpy(zero_copy_only=False)
    return ~same


def _between(batch: pa.RecordBatch, firsts: Any, left_out: LeftOut) -> Iterator[pa.RecordBatch]:
    """Yield the images of a batch from its first start up to its last, with repeated ones joined."""
    begin = int(firsts[0])
    for place in np.flatnonzero(np.diff(firsts) > 1):
        first, end = int(firsts[place]), int(firsts[place + 1])
        if first > begin:
            yield batch.slice(begin, first - begin)
        yield _joined(_bounded([batch.slice(first, end - first)], left_out), left_out)
        begin = end
    if int(firsts[-1]) > begin:
        yield batch.slice(begin, int(firsts[-1]) - begin)


def _bounded(rows: list[pa.RecordBatch], left_out: LeftOut) -> list[pa.RecordBatch]:
    """Drop the rows of one image beyond the limit."""
    num_rows = sum(batch.num_rows for batch in rows)
    if num_rows <= MAX_JOINED_ROWS:
        return rows
    left_out.repeated += num_rows - MAX_JOINED_ROWS
    table = pa.Table.from_batches(rows).sort_by("place").slice(0, MAX_JOINED_ROWS).combine_chunks()
    return list(table.to_batches())


def _joined(rows: list[pa.RecordBatch], left_out: LeftOut) -> pa.RecordBatch:
    """Return one row for the rows of one image."""
    table = pa.Table.from_batches(rows)
    first = table.slice(int(np.argmin(table["place"].to_numpy())), 1).combine_chunks().to_batches()[0]
    left_out.repeated += table.num_rows - 1
    if table.num_rows == 1 or _COLUMNS not in table.column_names:
        return first
    in_order = sorted(table.select(["place", _COLUMNS]).to_pylist(), key=itemgetter("place"))
    columns = _join_columns([json.loads(row[_COLUMNS] or "{}") for row in in_order])
    number = first.schema.get_field_index(_COLUMNS)
    return first.set_column(number, first.schema.field(number), pa.array([columns_json(columns)], pa.string()))


def _join_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    joined = dict[str, Any]()
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        joined[name] = values[0] if all(value == values[0] for value in values) else values
    return joined
