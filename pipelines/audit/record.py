"""What is kept beside the export of an audit: which images were drawn, with which probability, and what was found."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.bounded_json import load_json
from pipelines.errors import SourceError
from pipelines.importing.edited import read_bytes

FACTS, IMAGES, MASKS = "audit.json", "audit-images.parquet", "audit-masks.parquet"
_FORMAT = 1
IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
        pa.field(
            "bands",
            pa.list_(pa.struct([pa.field("category_name", pa.string()), pa.field("band", pa.int32())])),
            nullable=False,
        ),
    ]
)
MASKS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("annotation_id", pa.string(), nullable=False),
        pa.field("category_name", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("band", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """The images of which the best mask of a category lies in one band of scores.

    Attributes:
        band: 0 for images in which there is no mask of the category, K for scores from the K-th edge on.
        images: in the collection.
        drawn: of these, as many as were asked for; further ones may be in the sample for other categories.
        masks: in the collection, whose own score lies in the band; those that are not audited do not count.
    """

    band: int
    images: int
    drawn: int
    masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """How a sample was drawn.

    Attributes:
        output: the output's URI.
        format_name: of the export.
        task: whose masks are audited.
        score: masks from this score on are audited.
        edges: where bands of scores begin; the first is 0.
        seed: of the draw.
        drawn_at: ISO 8601.
        runs: of the output, in order.
        images_where: the condition on the images that are audited; empty for all.
        strata: those of each category.
    """

    output: str
    format_name: str
    task: str
    score: float
    edges: tuple[float, ...]
    seed: int
    drawn_at: str
    runs: tuple[str, ...]
    images_where: str = ""
    strata: Mapping[str, tuple[Stratum, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return (json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> AuditFacts:
        """Read the values of to_bytes.

        Raises:
            KeyError, TypeError, ValueError: it holds others.
        """
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}, known here: {_FORMAT}")
        values = {name: document[name] for name in cls.__slots__}
        values |= {name: tuple(values[name]) for name in ("edges", "runs")}
        strata = {name: tuple(Stratum(**one) for one in some) for name, some in values["strata"].items()}
        return cls(**{**values, "strata": strata})


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A sample.

    Attributes:
        facts: how it was drawn.
        images: a row for each image, with the columns of IMAGES_SCHEMA.
        masks: a row for each audited mask in them, with the columns of MASKS_SCHEMA.
    """

    facts: AuditFacts
    images: pa.Table
    masks: pa.Table

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        (folder / FACTS).write_bytes(self.facts.to_bytes())
        pq.write_table(self.images, folder / IMAGES, compression="zstd")
        pq.write_table(self.masks, folder / MASKS, compression="zstd")

    def masks_by_image(self) -> dict[str, list[dict[str, Any]]]:
        """Return the masks of each image that has any."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(self.masks):
            found.setdefault(row["image_id"], []).append(row)
        return found

    def image_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the images one after the other."""
        return _rows(self.images)


def read_record(folder: str) -> AuditRecord:
    """Read the record of a sample from the folder to which it was written.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    root = folder.rstrip("/")
    try:
        facts = AuditFacts.from_document(load_json(read_bytes(f"{root}/{FACTS}")))
        images, masks = (pq.read_table(io.BytesIO(read_bytes(f"{root}/{name}"))) for name in (IMAGES, MASKS))
        return AuditRecord(facts=facts, images=images.cast(IMAGES_SCHEMA), masks=masks.cast(MASKS_SCHEMA))
    except SourceError as error:
        raise SourceError(
            f"{error}; name the folder that `xsam-label audit sample` has written, with all its files"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise SourceError(
            f"{root}: its record of the sample ({FACTS}, {IMAGES}, {MASKS}) cannot be read: {error}"
        ) from error


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()
