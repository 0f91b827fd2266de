"""The table's explicit schemas, and the conversion of predictions to rows.

Nothing is inferred from data, so that every file has the same schema, that of an empty shard included: readers that
glob the folder take one file's schema for all. SCHEMA_VERSION changes with any column; CHANGELOG.md says what changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa

from pipelines.layout import Kind
from pipelines.types import Caption, ImagePrediction, MaskPrediction, Status

VERSION_KEY = b"xsam_label.schema_version"
"""Metadata key under which a Parquet file of the table states its schema version."""
SOURCE_MODEL, SOURCE_HUMAN = "model", "human"

# The exact form that pycocotools takes: a row's value needs no conversion.
SEGMENTATION = pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])

ANNOTATIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("annotation_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("category_name", pa.string(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("mask_score", pa.float32()),
        pa.field("is_thing", pa.bool_()),
        pa.field("rank", pa.int16(), nullable=False),
        pa.field("bbox_x", pa.float32(), nullable=False),
        pa.field("bbox_y", pa.float32(), nullable=False),
        pa.field("bbox_w", pa.float32(), nullable=False),
        pa.field("bbox_h", pa.float32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("segmentation", SEGMENTATION, nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)

_OF_PROMPT = pa.struct(
    [("prompt_id", pa.string()), ("n", pa.int32()), ("max_score", pa.float32()), ("rejected", pa.string())]
)
PER_PROMPT = pa.list_(_OF_PROMPT)

_PHRASE = pa.struct([("phrase", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("category_id", pa.int32())])
_CAPTION = [("prompt_id", pa.string()), ("task", pa.string()), ("text", pa.string()), ("phrases", pa.list_(_PHRASE))]
CAPTIONS = pa.list_(pa.struct(_CAPTION))
_CORRECTION = [
    *((name, pa.string()) for name in ("annotation_id", "change", "prompt_id", "category_name", "was")),
    ("iou", pa.float32()),
    *((name, pa.string()) for name in ("author", "edited_at")),
]
CORRECTIONS = pa.list_(pa.struct(_CORRECTION))

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("exif_orientation", pa.int8()),
        pa.field("pixel_notes", pa.list_(pa.string())),  # null where nothing had to be decided
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("content_sha256", pa.string()),
        pa.field("image_version", pa.int32()),  # null in rows of schema version 2 and before
        pa.field("source_columns", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("error", pa.string()),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("num_annotations", pa.int32(), nullable=False),
        pa.field("per_prompt", PER_PROMPT, nullable=False),
        pa.field("tasks", pa.list_(pa.string())),  # null in rows of schema version 3 and before
        pa.field("captions", CAPTIONS),  # null in rows of schema version 1
        pa.field("corrections", CORRECTIONS),  # null where no person has made any
        pa.field("decode_ms", pa.float32()),
        pa.field("model_ms", pa.float32()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard_id", pa.string(), nullable=False),
        pa.field("attempt", pa.string(), nullable=False),
    ]
)


SCHEMAS: Mapping[Kind, pa.Schema] = {"annotations": ANNOTATIONS, "images": IMAGES}
# The schema version that introduced a column, for those that version 1 did not have.
_SINCE = {"is_thing": 2, "captions": 2, "image_version": 3, "tasks": 4, "pixel_notes": 4, "corrections": 5}


def schema_of(schema: pa.Schema, version: int) -> pa.Schema:
    """Return ANNOTATIONS or IMAGES as it was in an earlier schema version."""
    fields = [field for field in schema if _SINCE.get(field.name, 1) <= version]
    never_null = {"mask_score"} if version < 2 else set[str]()
    return pa.schema([field.with_nullable(False) if field.name in never_null else field for field in fields])


def annotation_id(run_id: str, image_id: str, prompt_id: str, rank: int) -> str:
    """Return the deterministic id of a mask: the same if its shard is labeled again, different between runs.

    20 hex digits are 80 bits: even among billions of masks two equal ids are not to be expected.
    """
    return hashlib.sha256(f"{run_id}\0{image_id}\0{prompt_id}\0{rank}".encode()).hexdigest()[:20]


def ranked(masks: Sequence[MaskPrediction]) -> list[MaskPrediction]:
    """Sort an image's masks by score, best first.

    Ties are broken by the mask's own content, not by position: a predictor may answer in any order, and a mask's rank
    is part of its id.
    """
    return sorted(masks, key=lambda m: (-m.score, m.prompt.prompt_id, m.prompt.category_id, m.segmentation.counts))


def annotations_table(predictions: Iterable[ImagePrediction], *, run_id: str, shard_id: str, attempt: str) -> pa.Table:
    """Build the ``annotations`` rows of a shard: its images in plan order (by image_id), best score first in each."""
    columns: dict[str, list[object]] = {name: [] for name in ANNOTATIONS.names}
    for prediction in predictions:
        for rank, mask in enumerate(ranked(prediction.masks)):
            prompt, box = mask.prompt, mask.bbox_xywh
            row = {
                "image_id": prediction.ref.image_id,
                "annotation_id": mask.annotation_id
                or annotation_id(run_id, prediction.ref.image_id, prompt.prompt_id, rank),
                "image_uri": prediction.ref.uri,
                "task": prompt.task,
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.text,
                "category_name": prompt.category_name,
                "category_id": prompt.category_id,
                "score": mask.score,
                "mask_score": mask.mask_score,
                "is_thing": prompt.is_thing,
                "rank": rank,
                "bbox_x": box[0],
                "bbox_y": box[1],
                "bbox_w": box[2],
                "bbox_h": box[3],
                "area": mask.area,
                "segmentation": mask.segmentation.to_coco(),
                "run_id": run_id,
                "shard_id": shard_id,
                "attempt": attempt,
                "source": SOURCE_HUMAN if mask.is_human else SOURCE_MODEL,
            }
            for name, value in row.items():
                columns[name].append(value)
    return pa.table(columns, schema=ANNOTATIONS)


def images_table(predictions: Iterable[ImagePrediction], *, run_id: str, shard_id: str, attempt: str) -> pa.Table:
    """Build the ``images`` rows of a shard: one for each planned image, quarantined ones included."""
    rows = []
    for prediction in predictions:
        ref, size_hw = prediction.ref, prediction.size_hw
        rows.append(
            {
                "image_id": ref.image_id,
                "uri": ref.uri,
                "width": size_hw[1] if size_hw else None,
                "height": size_hw[0] if size_hw else None,
                "exif_orientation": prediction.exif_orientation,
                "pixel_notes": list(prediction.notes) or None,
                "num_bytes": prediction.num_bytes if prediction.num_bytes is not None else ref.num_bytes,
                "etag": ref.etag,
                "content_sha256": prediction.content_sha256,
                "image_version": ref.version,
                "source_columns": ref.source_columns,
                "status": prediction.status.value,
                "reason": prediction.reason.value if prediction.reason else None,
                "stage": prediction.stage,
                "error": prediction.error,
                "attempts": prediction.attempts,
                "num_annotations": len(prediction.masks),
                "per_prompt": _per_prompt(prediction),
                "tasks": _answered_tasks(prediction),
                "captions": _captions(prediction),
                "corrections": [asdict(one) for one in prediction.corrections] or None,
                "decode_ms": prediction.decode_ms,
                "model_ms": prediction.model_ms,
                "run_id": run_id,
                "shard_id": shard_id,
                "attempt": attempt,
            }
        )
    return pa.Table.from_pylist(rows, schema=IMAGES)


def _per_prompt(prediction: ImagePrediction) -> list[dict[str, object]]:
    """Return an entry for each prompt, so that "nothing found" (n = 0) differs from "never asked" (no entry).

    n is null for a prompt that was not answered: it was rejected, or the image is quarantined.
    """
    scores: dict[str, list[float]] = {prompt.prompt_id: [] for prompt in prediction.prompts}
    for mask in prediction.masks:
        scores.setdefault(mask.prompt.prompt_id, []).append(mask.score)
    is_answered = prediction.status != Status.QUARANTINED
    # Columns that a row lacks are null.
    asked: list[dict[str, object]] = [
        {"prompt_id": prompt_id, "n": len(found) if is_answered else None, "max_score": max(found, default=None)}
        for prompt_id, found in scores.items()
    ]
    return asked + [{"prompt_id": r.prompt_id, "rejected": r.reason} for r in prediction.rejected]


def _answered_tasks(prediction: ImagePrediction) -> list[str]:
    """Return the tasks of the prompts that were answered: an image without a mask is a negative for these alone."""
    if prediction.status == Status.QUARANTINED:
        return []
    return list(dict.fromkeys(prompt.task for prompt in prediction.prompts))


def _captions(prediction: ImagePrediction) -> list[dict[str, object]]:
    """Return what the model said, in the order of the prompts: a predictor may answer in any order."""
    order = {prompt.prompt_id: number for number, prompt in enumerate(prediction.prompts)}
    said = sorted(prediction.captions, key=lambda caption: order.get(caption.prompt.prompt_id, len(order)))
    return [_caption(caption) for caption in said]


def _caption(caption: Caption) -> dict[str, object]:
    return {
        "prompt_id": caption.prompt.prompt_id,
        "task": caption.prompt.task,
        "text": caption.text,
        "phrases": [
            {"phrase": phrase.text, "start": phrase.start, "end": phrase.end, "category_id": number}
            for number, phrase in enumerate(caption.phrases)
        ],
    }
