"""What a person has corrected in an output table: a CSV, TSV, JSON lines or Parquet file beside it.

Columns: `annotation_id` says which mask; `drop` (true, yes, 1) takes it away, `category_name` gives it another name,
`segmentation` another shape: COCO run lengths or polygons, as JSON text or as they are. A row without annotation_id but
with `image_id`, `category_name` and `segmentation` adds a mask that was missed. A row that changes nothing confirms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.sources.tabular import read_rows
from xsam_model.training.datasets.records import MALFORMED, RecordError, Skipped, clean_text
from xsam_model.training.datasets.segmentations import read_segmentation

COLUMNS = ("annotation_id", "drop", "category_name", "segmentation", "image_id")
_YES, _NO = ("true", "yes", "1", "x"), ("false", "no", "0", "", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to become of one mask.

    Attributes:
        drop: it is wrong.
        category_name: its new name; None to leave it.
        segmentation: its new shape, as `read_segmentation` takes it; None to leave it.
    """

    drop: bool = False
    category_name: str | None = None
    segmentation: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """A mask that was missed."""

    category_name: str
    segmentation: Any


@dataclass(frozen=True, slots=True)
class Corrections:
    """All of a file.

    Attributes:
        changes: by annotation_id.
        added: by image_id.
    """

    changes: dict[str, Change] = field(default_factory=dict)
    added: dict[str, list[Addition]] = field(default_factory=dict)


def read_corrections(uri: str, storage_options: Mapping[str, Any] | None, skipped: Skipped) -> Corrections:
    """Read a file of corrections; rows that say nothing clear are counted in `skipped`.

    Raises:
        ValueError: if it cannot be read, or has none of the columns that name a mask or an image.
    """
    found = Corrections()
    for number, row in enumerate(read_rows(uri, storage_options)):
        if not {"annotation_id", "image_id"} & row.keys():
            raise ValueError(f"{uri}: corrections need a column annotation_id; known columns: {', '.join(COLUMNS)}")
        with skipped.unless_usable(f"correction in row {number}"):
            name = clean_text(row["category_name"]) if row.get("category_name") else None
            shape = _shape(row.get("segmentation"))
            if row.get("annotation_id"):
                change = Change(drop=_is_yes(row.get("drop")), category_name=name, segmentation=shape)
                found.changes[str(row["annotation_id"])] = change
            elif name is None or shape is None or not row.get("image_id"):
                raise RecordError(MALFORMED, "an added mask needs image_id, category_name and segmentation")
            else:
                addition = Addition(category_name=name, segmentation=shape)
                found.added.setdefault(str(row["image_id"]), []).append(addition)
    return found


def _shape(value: Any) -> Any:
    """Return a segmentation as `read_segmentation` takes it, checked; None where there is none."""
    shape = json.loads(value) if isinstance(value, str) and value.strip() else value or None
    if shape is not None:
        read_segmentation(shape)
    return shape


def _is_yes(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _YES + _NO:
        raise RecordError(MALFORMED, f"drop must be true or false, got {value!r}")
    return word in _YES


__all__ = ["COLUMNS", "Addition", "Change", "Corrections", "read_corrections"]
