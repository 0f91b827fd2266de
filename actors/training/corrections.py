"""Reads a person's corrections of an output table from a CSV, TSV, JSON lines or Parquet file.

Columns: `annotation_id` selects a mask. `drop` (true, yes, 1) removes it, `category_name` renames it, `segmentation`
replaces its shape: COCO run lengths or polygons, as JSON text or as they are. A row without annotation_id but with
`image_id`, `category_name` and `segmentation` adds a missed mask. A row that changes nothing confirms its mask.
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
    """A correction of one mask.

    Attributes:
        drop: whether to remove it.
        category_name: its new name; None to keep the old one.
        segmentation: its new shape, as `read_segmentation` takes it; None to keep the old one.
    """

    drop: bool = False
    category_name: str | None = None
    segmentation: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """A mask that the model missed."""

    category_name: str
    segmentation: Any


@dataclass(frozen=True, slots=True)
class Corrections:
    """The corrections of one file.

    Attributes:
        changes: corrected masks by annotation_id.
        added: missed masks by image_id.
    """

    changes: dict[str, Change] = field(default_factory=dict)
    added: dict[str, list[Addition]] = field(default_factory=dict)


def read_corrections(uri: str, storage_options: Mapping[str, Any] | None, skipped: Skipped) -> Corrections:
    """Read a file of corrections; rows that cannot be understood are counted in `skipped`.

    Raises:
        ValueError: if it cannot be read, or has no column that identifies a mask or an image.
    """
    found = Corrections()
    for number, row in enumerate(read_rows(uri, storage_options, binary=("segmentation",))):
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
    """Return a validated segmentation as `read_segmentation` takes it; None for an empty field."""
    # Checked here by itself; that it fits its image is checked once the table's row is known.
    shape = json.loads(value) if isinstance(value, str) and value.strip() else value or None
    if shape is not None:
        read_segmentation(shape)
    return shape


def _is_yes(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _YES + _NO:
        raise RecordError(MALFORMED, f"drop must be true or false, got {value!r}")
    return word in _YES
