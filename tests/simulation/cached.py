"""Pure functions of the product that a life calls again and again with the same values: each is worked out once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from flows.config import RunConfig
from pipelines.planning.plan_files import planned_batches, read_image_ids, read_shards

_MOST = 20_000
_fingerprints: dict[int, tuple[RunConfig, dict[str, Any]]] = {}


def run_fingerprint(config: RunConfig, _held: Any) -> dict[str, Any]:
    """Return the fingerprint of a run whose model has no folder."""
    if id(config) not in _fingerprints:
        _fingerprints[id(config)] = config, config.fingerprint(model_sha256="0" * 64, prompts_sha256=None)
    return dict(_fingerprints[id(config)][1])


def flip(data: bytes, place: int, *, is_seen: bool) -> bytes:
    """Return a Parquet file with another bit at a place; if that is not seen, it is read with another number in it."""
    after = data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]
    try:
        table = None if is_seen else read(data)
    except pa.ArrowInvalid:  # cut short before
        table = None
    if table is not None:
        column = table.column_names.index("score" if "score" in table.column_names else "decode_ms")
        field = table.schema.field(column)
        table = table.set_column(column, field, [pa.array([0.123] * table.num_rows, field.type)])
    flipped[after] = table
    return after


class _ByName:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        for name, value in replaced.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


_tables: dict[bytes, pa.Table] = {}
_shards: dict[tuple[bytes, int], list[Any]] = {}
_planned: dict[bytes, list[Any]] = {}
_image_ids: dict[tuple[bytes, int], list[Any]] = {}
_rows: dict[Any, tuple[Any, pa.Table]] = {}
_files: dict[Any, tuple[pa.Table, bytes]] = {}


def _bound(*kept: dict[Any, Any]) -> None:
    """Forget all once it is much."""
    if len(kept[0]) > _MOST:
        for one in kept:
            one.clear()


flipped: dict[bytes, pa.Table | None] = {}
"""What is read of files of which a bit has flipped, None for nothing: pyarrow itself is never given such bytes."""


def read_table(source: Any, **options: Any) -> pa.Table:
    """pyarrow.parquet.read_table, of bytes in memory."""
    if options or not hasattr(source, "getvalue"):
        return pq.read_table(source, **options)
    return read(source.getvalue())


def dataset(source: Any, *, filesystem: Any = None, **options: Any) -> ds.Dataset:
    """pyarrow.dataset.dataset, of files of a simulated store: in this thread, each read whole."""
    if filesystem is None:
        return ds.dataset(source, **options)
    found = [read(filesystem.cat_file(path)) for path in ([source] if isinstance(source, str) else source)]
    return ds.dataset(pa.concat_tables(found).cast(options["schema"]))


def read(data: bytes) -> pa.Table:
    """Return what a Parquet file holds."""
    if data in flipped:
        if (found := flipped[data]) is None:
            raise pa.ArrowInvalid("the file is damaged")
        return found
    if data not in _tables:
        _tables[data] = pq.read_table(pa.BufferReader(data))
    return _tables[data]


def _read_shards(data: bytes, numbers: Iterable[int]) -> Iterator[Any]:
    for number in numbers:
        if (data, number) not in _shards:
            _shards[data, number] = list(read_shards(data, [number]))
        yield from _shards[data, number]


def _planned_batches(data: bytes) -> Iterator[Any]:
    if data not in _planned:
        _planned[data] = list(planned_batches(data))
    yield from _planned[data]


def _read_image_ids(data: bytes, numbers: Iterable[int]) -> Iterator[Any]:
    for number in numbers:
        if (data, number) not in _image_ids:
            _image_ids[data, number] = list(read_image_ids(data, [number]))
        yield from _image_ids[data, number]


def _rows_of(build: Callable[..., pa.Table]) -> Callable[..., pa.Table]:
    def rows(predictions: Sequence[Any], **ids: str) -> pa.Table:
        key = build.__name__, tuple(map(id, predictions)), *ids.values()
        if key not in _rows:
            _rows[key] = tuple(predictions), build(predictions, **ids)  # kept, or others would get their ids
        return _rows[key][1]

    return rows


def _parquet_bytes(build: Callable[..., bytes]) -> Callable[..., bytes]:
    def encode(table: pa.Table, kind: str, facts: Mapping[str, str]) -> bytes:
        key = id(table), kind, tuple(facts.items())
        if key not in _files:
            _bound(_files, _rows, _tables)
            _files[key] = table, build(table, kind, facts)
            # What a whole file holds is what was written into it: that pyarrow keeps that is not what is tested here.
            facts_held = pq.read_schema(pa.BufferReader(_files[key][1])).metadata
            _tables[_files[key][1]] = table.replace_schema_metadata(facts_held)
        return _files[key][1]

    return encode


def replace(patch: pytest.MonkeyPatch, *, table: Any, manifest: Any, integrity: Any) -> None:
    """Let the product's modules use what is kept here."""
    # They import it where they need it.
    patch.setattr(pa, "dataset", _ByName(ds, dataset=dataset))
    patch.setattr(integrity, "pq", _ByName(pq, read_table=read_table))
    patch.setattr(manifest, "read_shards", _read_shards)
    patch.setattr(manifest, "planned_batches", _planned_batches)
    patch.setattr(manifest, "read_image_ids", _read_image_ids)
    for name in ("annotations_table", "images_table"):
        patch.setattr(table, name, _rows_of(getattr(table, name)))
    patch.setattr(table, "parquet_bytes", _parquet_bytes(table.parquet_bytes))
