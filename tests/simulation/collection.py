"""What is labeled in the simulation: a few images whose answers are known, and kept from life to life.

Everything constant is made once: predictions, the Parquet bytes of a shard under one attempt's name, a drafted plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.image_formats import LeftOut
from pipelines.planning.draft import DraftPart, PlanConfig, PlanDraft
from pipelines.planning.draft import draft_plan as really_draft
from pipelines.sources.image_batches import file_batch, to_batches, to_refs
from pipelines.types import ImagePrediction, ImageRef, MaskPrediction, Prompt, Reason, Rle, Status

SOURCE = "s3://sim/images"
MENDED, BROKEN, NOTHING = "m", "b", "n"
"""First letters of images that a retry can read, that nobody can read, and that show nothing."""


@dataclass(frozen=True)
class Listing:
    """The source at one time: image ids and the number of their bytes, which changes with an image."""

    images: tuple[tuple[str, int], ...]

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield _batch(self)


NOTHING_LISTED = Listing(())


@cache
def _batch(listing: Listing) -> pa.RecordBatch:
    names, sizes = [name for name, _ in listing.images], [size for _, size in listing.images]
    return file_batch(f"{SOURCE}/", names, sizes, [None] * len(names))


@cache
def prediction(ref: ImageRef, common: tuple[Prompt, ...], is_retry: bool) -> ImagePrediction:
    """Return what becomes of an image, always the same object."""
    kind, asked = ref.image_id[0], ref.asked(common)
    if kind == BROKEN or (kind == MENDED and not is_retry):
        return ImagePrediction(
            ref=ref,
            status=Status.QUARANTINED,
            reason=Reason.TRUNCATED,
            stage="decode",
            error="the file ends early",
            prompts=asked,
        )
    masks = () if kind == NOTHING else tuple(_mask(ref, prompt) for prompt in asked)
    return ImagePrediction(
        ref=ref,
        status=Status.of_answer(asked, masks, ()),
        masks=masks,
        prompts=asked,
        size_hw=(4, 6),
        exif_orientation=1,
        num_bytes=ref.num_bytes,
        content_sha256=hashlib.sha256(f"{ref.image_id} {ref.num_bytes}".encode()).hexdigest(),
        decode_ms=1.0,
        model_ms=2.0,
        attempts=1,
    )


def _mask(ref: ImageRef, prompt: Prompt) -> MaskPrediction:
    digest = hashlib.sha256(f"{ref.image_id} {prompt.prompt_id}".encode()).digest()
    return MaskPrediction(
        prompt=prompt,
        score=round(digest[0] / 255, 3),
        mask_score=0.5,
        segmentation=Rle(size_hw=(4, 6), counts="04d0"),
        bbox_xywh=(0.0, 0.0, 1.0, 4.0),
        area=4,
    )


class _InMemory:
    """A drafted part whose file was read once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data


_drafts: dict[Any, PlanDraft] = {}
_refs: dict[Any, tuple[ImageRef, ...]] = {}


@contextmanager
def draft_plan(
    batches: Iterable[pa.RecordBatch],
    config: PlanConfig,
    left: Any = None,
    *,
    left_out: LeftOut | None = None,
    replicas: int = 1,
    canary: int = 0,
) -> Iterator[PlanDraft]:
    """Draft as the product does, once for each set of images, in which no row names an image again."""
    assert config.images_per_shard is not None, "drafts are kept for any number of replicas"
    assert not canary, "drafts are kept without one"
    held = list(batches)
    key: Any = (tuple(map(_fingerprint, held)), config)
    if left is not None:
        if key not in _refs:
            with really_draft(held, config) as draft:
                _refs[key] = tuple(ref for shard in draft.shards() for ref in shard.images)
        key = (tuple(to_refs(left(to_batches(_refs[key])))), config)
    if key not in _drafts:
        wanted = key[0] if left is not None else None
        with really_draft(held, config, None if wanted is None else lambda _all: to_batches(wanted)) as draft:
            parts: Sequence[Any] = [
                DraftPart(path=_InMemory(part.path.read_bytes()), num_shards=part.num_shards)  # type: ignore[arg-type]
                for part in draft.parts
            ]
            names = [name for name in PlanDraft.__slots__ if name != "parts"]
            _drafts[key] = PlanDraft(parts=tuple(parts), **{name: getattr(draft, name) for name in names})
    yield _drafts[key]


def _fingerprint(batch: pa.RecordBatch) -> Any:
    return tuple(batch.schema.names), tuple(tuple(map(str, column.to_pylist())) for column in batch.columns)
