"""Check what a shard tells of corrections against its masks."""

from __future__ import annotations

import pyarrow as pa

from pipelines.table.schema import SOURCE_HUMAN
from pipelines.types import Change


def untrue_corrections(images: pa.Table, annotations: pa.Table) -> list[str]:
    """Return the ids of images of which a mask that was deleted is there, or one that a person has made is not.

    Args:
        images, annotations: the rows of a shard, of any schema version.
    """
    if "corrections" not in images.column_names or images["corrections"].null_count == images.num_rows:
        return []
    sources = dict[str, dict[str, str]]()
    columns = (annotations[name].to_pylist() for name in ("image_id", "annotation_id", "source"))
    for image_id, annotation_id, source in zip(*columns, strict=True):
        sources.setdefault(image_id, {})[annotation_id] = source
    found = []
    for image_id, corrections in zip(*(images[name].to_pylist() for name in ("image_id", "corrections")), strict=True):
        held = sources.get(image_id, {})
        wanted = (
            (one["annotation_id"], None if one["change"] == Change.DELETED else SOURCE_HUMAN)
            for one in corrections or ()
        )
        if any(held.get(annotation_id) != source for annotation_id, source in wanted):
            found.append(image_id)
    return found
