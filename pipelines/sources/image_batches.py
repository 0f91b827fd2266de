"""Images as Arrow record batches: the form in which they pass from a listing through the sort into a plan's files.

A column that no image of a collection needs is left out; it then counts as null throughout, see ImageRef's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.types import ImageRef, Prompt, Region, Rle

BATCH_SIZE = 8192
IS_FORGOTTEN = pa.field("is_forgotten", pa.bool_())
"""Column of plan files in which an erasure has left rows without their images; no listing has it."""
# Long texts end a batch earlier: 8,192 rows that each carry a megabyte would not fit into memory.
BATCH_CHARS = 2**24
_PROMPT_FIELDS = [
    ("prompt_id", pa.string()),
    ("task", pa.string()),
    ("text", pa.string()),
    ("category_id", pa.int32()),
    ("category_name", pa.string()),
    ("explain", pa.bool_()),
    ("source_row", pa.int64()),
    ("kind", pa.string()),  # this and the following are null for a sentence
    ("coordinates", pa.list_(pa.float64())),
    ("mask_size", pa.list_(pa.int32())),
    ("mask_counts", pa.string()),
]
_PROMPTS = pa.list_(pa.struct(_PROMPT_FIELDS))
FILES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
    ]
)
LISTED = FILES.append(pa.field("source_columns", pa.string()))
IMAGES = (
    LISTED.append(pa.field("prompts", _PROMPTS))
    .append(pa.field("common", pa.list_(pa.string())))  # null: all of them
    .append(pa.field("version", pa.int32()))  # null: version 1
)


def to_batches(refs: Iterable[ImageRef], schema: pa.Schema = IMAGES) -> Iterator[pa.RecordBatch]:
    """Gather images into batches with the columns of ``schema``, lazily; yields at least one batch, if empty."""
    chunk, num_chars, is_empty = list[ImageRef](), 0, True
    for ref in refs:
        chunk.append(ref)
        num_chars += len(ref.image_id) + len(ref.uri) + len(ref.source_columns or "")
        num_chars += sum(map(_prompt_chars, ref.prompts))
        if len(chunk) == BATCH_SIZE or num_chars >= BATCH_CHARS:
            yield _to_batch(chunk, schema)
            chunk, num_chars, is_empty = [], 0, False
    if chunk or is_empty:
        yield _to_batch(chunk, schema)


def _prompt_chars(prompt: Prompt) -> int:
    region = prompt.region
    of_region = 8 * len(region.coordinates) + len(region.mask.counts if region.mask else "") if region else 0
    return len(prompt.text) + of_region


def _to_batch(refs: Sequence[ImageRef], schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [getattr(ref, name) for ref in refs] for name in schema.names}
    if "prompts" in columns:
        columns["prompts"] = [_prompt_rows(ref.prompts) for ref in refs]
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def file_batch(
    base_uri: str, names: Sequence[str], num_bytes: Sequence[int | None], etags: Sequence[str | None]
) -> pa.RecordBatch:
    """Return files below a folder as a batch of FILES.

    Args:
        base_uri: prepended to each name to form its URI.
        names: paths of the files below the folder, which become their image ids.
        num_bytes, etags: as in ImageRef.

    Raises:
        UnicodeEncodeError: a name is not UTF-8.
    """
    ids = pa.array(names, pa.string())
    uris = pc.binary_join_element_wise(pa.scalar(base_uri), ids, pa.scalar(""))
    return pa.RecordBatch.from_pydict(
        {"image_id": ids, "uri": uris, "num_bytes": num_bytes, "etag": etags}, schema=FILES
    )


def with_prompts(batch: pa.RecordBatch, prompts: Sequence[Sequence[Prompt]]) -> pa.RecordBatch:
    """Add a column with each image's own prompts to a batch of FILES or LISTED."""
    own = pa.array([_prompt_rows(one) for one in prompts], _PROMPTS)
    return batch.append_column(IMAGES.field("prompts"), own)


def to_refs(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[ImageRef]:
    """Yield the images of batches, in order."""
    for batch in batches:
        rows = read_rows(batch, [*IMAGES.names, IS_FORGOTTEN.name])
        for image_id, uri, num_bytes, etag, source_columns, prompts, common, version, is_forgotten in rows:
            yield ImageRef(
                image_id=image_id,
                uri=uri,
                num_bytes=num_bytes,
                etag=etag,
                source_columns=source_columns,
                prompts=read_prompts(prompts),
                common=None if common is None else tuple(common),
                version=version or 1,
                is_forgotten=bool(is_forgotten),
            )


def read_rows(batch: pa.RecordBatch | pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns row by row; None for a column that was left out."""
    held, nothing = set(batch.schema.names), [None] * batch.num_rows
    return zip(*(batch[name].to_pylist() if name in held else nothing for name in names), strict=True)


def read_prompts(rows: Iterable[Mapping[str, Any]] | None) -> tuple[Prompt, ...]:
    """Return an image's own prompts from its value in the column ``prompts``."""
    return tuple(map(_prompt, rows)) if rows else ()


def _prompt_rows(prompts: Iterable[Prompt]) -> list[dict[str, Any]] | None:
    return [_prompt_row(prompt) for prompt in prompts] or None


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    region = prompt.region
    mask = region.mask if region else None
    return {
        "prompt_id": prompt.prompt_id,
        "task": prompt.task,
        "text": prompt.text,
        "category_id": prompt.category_id,
        "category_name": prompt.category_name,
        "explain": prompt.explain,
        "source_row": prompt.source_row,
        "kind": region.kind if region else None,
        "coordinates": list(region.coordinates) if region else None,
        "mask_size": list(mask.size_hw) if mask else None,
        "mask_counts": mask.counts if mask else None,
    }


def _prompt(row: Mapping[str, Any]) -> Prompt:
    mask = Rle(size_hw=tuple(row["mask_size"]), counts=row["mask_counts"]) if row["mask_counts"] is not None else None
    region = None
    if row["kind"] is not None:
        region = Region(kind=row["kind"], coordinates=tuple(row["coordinates"]), mask=mask)
    return Prompt(
        prompt_id=row["prompt_id"],
        task=row["task"],
        text=row["text"],
        category_id=row["category_id"],
        category_name=row["category_name"],
        region=region,
        explain=row["explain"],
        source_row=row["source_row"],
    )
