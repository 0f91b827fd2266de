"""The frozen plan of a run: listed images cut into shards, written create-only, and the config's fingerprint.

A resumed run reads the plan and never lists its source again.
"""

from __future__ import annotations

import io
import itertools
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.fingerprint import PlanError, fingerprint_digest
from pipelines.schema import SCHEMA_VERSION
from pipelines.storage import Store
from pipelines.types import ImageRef, Prompt, Region, Rle, Shard

DRIVER_ID = secrets.token_hex(4)
"""Names this process in plan parts and attempt ids, so that no two drivers ever write one object."""

PLAN_FORMAT = 1
_SHARDS_PER_PART = 256

_REGIONS = pa.list_(
    pa.struct(
        [
            pa.field("prompt_id", pa.string()),
            pa.field("task", pa.string()),
            pa.field("text", pa.string()),
            pa.field("category_id", pa.int32()),
            pa.field("category_name", pa.string()),
            pa.field("kind", pa.string()),
            pa.field("coordinates", pa.list_(pa.float64())),
            pa.field("mask_size", pa.list_(pa.int32())),
            pa.field("mask_counts", pa.string()),
            pa.field("source_row", pa.int64()),
        ]
    )
)
PLAN = pa.schema(
    [
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("source_columns", pa.string()),
        pa.field("regions", _REGIONS),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """How a collection is cut.

    Attributes:
        images_per_shard: images in one shard: the unit of work, commit and retry.
        limit: plan only the first so many images in image_id order; None for all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    images_per_shard: int = 500
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_shard <= 100_000:
            raise ValueError(f"images_per_shard must be between 1 and 100000, got {self.images_per_shard}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 (or left out for all images), got {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """One file of the plan: one row group for each of its consecutive shards."""

    name: str
    num_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The frozen plan of one run, as read from ``plan.json``.

    Attributes:
        run_id: the run that it belongs to.
        num_images, num_bytes, num_shards: totals as listed; num_bytes counts images whose size is known.
        fingerprint: everything that can change a row, by name; what a resumed run must match.
        parts: the files that hold the image lists.
        facts: config and provenance, for people and for issue reports.
    """

    run_id: str
    num_images: int
    num_bytes: int
    num_shards: int
    fingerprint: Mapping[str, Any]
    parts: tuple[PlanPart, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def shard_ids(self) -> list[str]:
        """Return all shard ids in order, without reading the image lists."""
        return [shard_name(number) for number in range(self.num_shards)]

    def shards(self, store: Store, wanted: Iterable[str] | None = None) -> Iterator[Shard]:
        """Read the planned shards in order, part by part; only those wanted, all by default."""
        names = set(self.shard_ids() if wanted is None else wanted)
        first = 0
        for part in self.parts:
            numbers = [n for n in range(part.num_shards) if shard_name(first + n) in names]
            if numbers:
                file = pq.ParquetFile(io.BytesIO(store.read(f"{run_folder(self.run_id)}/{part.name}")))
                for number in numbers:
                    yield _shard(file.read_row_group(number))
            first += part.num_shards


def run_folder(run_id: str) -> str:
    """Return the folder of a run's plan, commits and summary, relative to the output."""
    return f"_runs/{run_id}"


def plan_name(run_id: str) -> str:
    """Return the object whose existence means that the run is planned."""
    return f"{run_folder(run_id)}/plan.json"


def shard_name(number: int) -> str:
    """Return the id of the shard with this position in the plan."""
    return f"shard-{number:05d}"


def plan_shards(refs: Iterable[ImageRef], config: PlanConfig) -> list[Shard]:
    """Sort the images by id and cut them into shards; the listing's own order does not matter.

    Raises:
        PlanError: two images have one id.
    """
    images = sorted(refs, key=lambda ref: ref.image_id)
    for one, other in itertools.pairwise(images):
        if one.image_id == other.image_id:
            raise PlanError(f"image_id {one.image_id!r} stands for both {one.uri} and {other.uri}; ids must be unique")
    images = images[: config.limit]
    size = config.images_per_shard
    starts = range(0, len(images), size)
    return [
        Shard(shard_id=shard_name(number), images=tuple(images[start : start + size]))
        for number, start in enumerate(starts)
    ]


def write_plan(
    store: Store,
    run_id: str,
    shards: Sequence[Shard],
    *,
    fingerprint: Mapping[str, Any],
    facts: Mapping[str, Any],
    driver_id: str,
) -> Plan:
    """Freeze a plan. Of several drivers that plan one run at once, all end with the first one's plan.

    Args:
        store: the output.
        run_id: the run.
        shards: all shards in order.
        fingerprint: see fingerprint_digest; JSON values only.
        facts: anything else worth keeping, JSON values only.
        driver_id: unique to this process; it is part of the file names.

    Returns:
        The plan that holds: this one, or that of the driver that was first.
    """
    parts = []
    for number, start in enumerate(range(0, len(shards), _SHARDS_PER_PART)):
        chunk = shards[start : start + _SHARDS_PER_PART]
        part = PlanPart(name=f"plan-{driver_id}-{number:05d}.parquet", num_shards=len(chunk))
        store.write(f"{run_folder(run_id)}/{part.name}", _part_bytes(chunk))
        parts.append(part)
    document = {
        "format": PLAN_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "driver_id": driver_id,
        "num_images": sum(len(shard.images) for shard in shards),
        "num_bytes": sum(ref.num_bytes or 0 for shard in shards for ref in shard.images),
        "num_shards": len(shards),
        "fingerprint_sha256": fingerprint_digest(fingerprint),
        "fingerprint": dict(fingerprint),
        "parts": [{"name": part.name, "num_shards": part.num_shards} for part in parts],
        "facts": dict(facts),
    }
    if not store.create(plan_name(run_id), json.dumps(document, indent=1).encode()):
        for part in parts:
            store.delete(f"{run_folder(run_id)}/{part.name}")
    plan = read_plan(store, run_id)
    if plan is None:
        raise PlanError(f"{store.uri}: the plan of run {run_id} was removed while it was being written")
    return plan


def read_plan(store: Store, run_id: str) -> Plan | None:
    """Read a run's plan; None if the run was never planned.

    Raises:
        PlanError: the plan was written by a newer version.
    """
    try:
        document = json.loads(store.read(plan_name(run_id)))
    except FileNotFoundError:
        return None
    if document["format"] > PLAN_FORMAT:
        raise PlanError(
            f"{store.uri}: run {run_id} was planned by a newer version (plan format {document['format']}); upgrade"
        )
    return Plan(
        run_id=document["run_id"],
        num_images=document["num_images"],
        num_bytes=document["num_bytes"],
        num_shards=document["num_shards"],
        fingerprint=document["fingerprint"],
        parts=tuple(PlanPart(**part) for part in document["parts"]),
        facts=document["facts"],
    )


def planned_runs(store: Store) -> list[str]:
    """List the ids of the planned runs in an output, sorted."""
    return [run_id for run_id in store.folders("_runs") if store.exists(plan_name(run_id))]


def _part_bytes(shards: Sequence[Shard]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PLAN, compression="zstd") as writer:
        for shard in shards:
            writer.write_table(_plan_table(shard), row_group_size=len(shard.images))
    return buffer.getvalue()


def _plan_table(shard: Shard) -> pa.Table:
    images = shard.images
    columns = {
        "shard_id": [shard.shard_id] * len(images),
        "image_id": [ref.image_id for ref in images],
        "uri": [ref.uri for ref in images],
        "num_bytes": [ref.num_bytes for ref in images],
        "etag": [ref.etag for ref in images],
        "source_columns": [ref.source_columns for ref in images],
        "regions": [[_region_row(prompt) for prompt in ref.regions] for ref in images],
    }
    return pa.table(columns, schema=PLAN)


def _region_row(prompt: Prompt) -> dict[str, Any]:
    region = prompt.region
    assert region is not None, "only visual prompts belong to an image"
    return {
        "prompt_id": prompt.prompt_id,
        "task": prompt.task,
        "text": prompt.text,
        "category_id": prompt.category_id,
        "category_name": prompt.category_name,
        "kind": region.kind,
        "coordinates": list(region.coordinates),
        "mask_size": list(region.mask.size_hw) if region.mask else None,
        "mask_counts": region.mask.counts if region.mask else None,
        "source_row": region.source_row,
    }


def _shard(table: pa.Table) -> Shard:
    rows = table.to_pylist()
    images = tuple(
        ImageRef(
            image_id=row["image_id"],
            uri=row["uri"],
            num_bytes=row["num_bytes"],
            etag=row["etag"],
            source_columns=row["source_columns"],
            regions=tuple(_region_prompt(region) for region in row["regions"] or ()),
        )
        for row in rows
    )
    return Shard(shard_id=rows[0]["shard_id"], images=images)


def _region_prompt(row: Mapping[str, Any]) -> Prompt:
    mask = Rle(size_hw=tuple(row["mask_size"]), counts=row["mask_counts"]) if row["mask_counts"] is not None else None
    region = Region(kind=row["kind"], coordinates=tuple(row["coordinates"]), mask=mask, source_row=row["source_row"])
    return Prompt(
        prompt_id=row["prompt_id"],
        task=row["task"],
        text=row["text"],
        category_id=row["category_id"],
        category_name=row["category_name"],
        region=region,
    )
