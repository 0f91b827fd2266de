"""Opens a finished output table as training data: label, correct, train again.

Corrections come from a file of their own, keyed by annotation_id; the output itself is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from actors.training.corrections import Change, Corrections, read_corrections
from actors.training.table_records import TABLE_TASKS, Answers, Row, read_labeled
from pipelines.errors import StorageError
from pipelines.images.decode import DEFAULT_LIMITS, DecodeError, decode_image
from pipelines.query.database import open_database, rows_of
from pipelines.query.files import query_errors
from pipelines.query.row_agreement import check_agreement
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage.store import Store, open_store
from pipelines.types import CATEGORY_TASKS, ImageRef
from xsam_model.training.datasets.coco import ask_masks
from xsam_model.training.datasets.grounded_captions import ask_caption
from xsam_model.training.datasets.records import MISSING_IMAGE, UNREADABLE_IMAGE, RecordError, RecordSource, Skipped
from xsam_model.training.datasets.segmentations import Segmentation, read_segmentation

CHANGED = "image changed since it was labeled"
_FETCH_TIMEOUT_S = 60.0
_ANNOTATION_COLUMNS = (
    "image_id, annotation_id, task, prompt_id, prompt, category_name, category_id, score, segmentation"
)
_IMAGE_COLUMNS = "image_id, uri, width, height, content_sha256, status, per_prompt, captions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableImages:
    """Reads the images of a table from the locations that they were labeled at.

    Attributes:
        options: storage options of the image source, without credentials.
        hashes: SHA-256 of the bytes that were labeled, by URI.
    """

    options: Mapping[str, Any]
    hashes: Mapping[str, str]

    def __call__(self, uri: str) -> NDArray[np.uint8]:
        """Return an image, uint8 (H, W, 3), RGB, EXIF orientation applied.

        Raises:
            RecordError: if it cannot be fetched or decoded, or has changed since it was labeled.
        """
        ref = ImageRef(image_id=uri, uri=uri)
        try:
            data = fetch(
                ref, options=self.options, max_bytes=DEFAULT_LIMITS.max_image_bytes, timeout_s=_FETCH_TIMEOUT_S
            )
            image = decode_image(data, ref)
        except FetchError as error:
            raise RecordError(MISSING_IMAGE, str(error)) from error
        except DecodeError as error:
            raise RecordError(UNREADABLE_IMAGE, str(error)) from error
        # The masks belong to the bytes that were labeled; an image without a recorded hash is taken as it is.
        if self.hashes.get(uri, image.content_sha256) != image.content_sha256:
            raise RecordError(CHANGED, uri)
        return image.pixels


def table(
    output: str,
    *,
    task: str = "ovseg",
    min_score: float = 0.0,
    corrections: str | None = None,
    run_id: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> RecordSource[Any]:
    """Open an output of `xsam-label run`.

    Args:
        output: its folder or prefix.
        task: "ovseg" and "genseg" train with the names asked of each image, "refseg" with its phrases, "reaseg" with
            its questions, "gcgseg" with the generated captions. Names without a mask are negatives.
        min_score: 0 to 1. Masks with a lower score are neither positives nor negatives: their pixels are ignored, and
            phrases without a better mask are not asked. Masks that a person has corrected count whatever their score.
        corrections: CSV, TSV, JSON lines or Parquet file; see `actors.training.corrections`.
        run_id: use the rows of this run; by default the current rows of all runs.
        storage_options, source_options: fsspec options of the output and of the images; no credentials.
        name: name of the source; "table-<task>" by default.

    Returns:
        A source with one sample for each image (gcgseg: for each caption), bool masks (H, W). All rows are held in
        memory; images are read as they are drawn.

    Raises:
        ValueError: if a setting is out of range, the output holds no committed shard, or no record is usable.
    """
    if task not in TABLE_TASKS or not 0 <= min_score <= 1:
        known = ", ".join(TABLE_TASKS)
        raise ValueError(f"task must be one of {known} and min_score 0 to 1, got {task!r} and {min_score}")
    skipped, name = Skipped(), name or f"table-{task}"
    try:
        corrected = read_corrections(corrections, storage_options, skipped) if corrections else Corrections()
        store = open_store(output, storage_options)
        with query_errors(store):
            database = open_database(store)
            images = _read_images(database, store, run_id)
            answers = _read_answers(database, run_id, task, min_score, corrected, skipped)
    except StorageError as error:
        raise ValueError(str(error)) from error
    records = _make_records(images, answers, task, corrected, skipped)
    hashes = {image["uri"]: image["content_sha256"] for image in images if image["content_sha256"]}
    names = dict.fromkeys(one for record in records if task in CATEGORY_TASKS for one in record.conditions)
    opened = TableImages(options=dict(source_options or {}), hashes=hashes)
    ask: Any = ask_caption if task == "gcgseg" else partial(ask_masks, task=task)
    return RecordSource(name, output, records, skipped, open_image=opened, make=ask, categories=tuple(names))


def _read_images(database: duckdb.DuckDBPyConnection, store: Store, run_id: str | None) -> list[dict[str, Any]]:
    """Return the rows of all images, after checking that their masks agree with them."""
    check_agreement(database, store, run_id)
    images = _rows(database, f"SELECT {_IMAGE_COLUMNS} FROM {rows_of('images', run_id)} ORDER BY image_id")
    if not images:
        raise ValueError(
            f"{store.uri}: no committed shard of any run; check the path and run_id, or run `xsam-label run`"
        )
    return images


def _make_records(
    images: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Answers],
    task: str,
    corrections: Corrections,
    skipped: Skipped,
) -> list[Any]:
    """Return the records of all usable images; their class depends on the task."""
    records: list[Any] = []
    for image in images:
        with skipped.unless_usable(image["image_id"]):
            found = answers.get(image["image_id"], Answers())
            records += read_labeled(image, found, task, corrections.added.get(image["image_id"], ()))
    return records


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.sql(query).to_arrow_table().to_pylist()
    return rows


def _read_answers(
    database: duckdb.DuckDBPyConnection,
    run_id: str | None,
    task: str,
    min_score: float,
    corrections: Corrections,
    skipped: Skipped,
) -> dict[str, Answers]:
    """Return the masks of each image, by image_id, best first."""
    annotations = rows_of("annotations", run_id)
    tasks = ", ".join(f"'{name}'" for name in TABLE_TASKS[task])
    query = f"SELECT {_ANNOTATION_COLUMNS} FROM {annotations} WHERE task IN ({tasks}) ORDER BY image_id, rank"
    found: dict[str, Answers] = {}
    for row in _rows(database, query):
        with skipped.unless_usable(row["annotation_id"]):
            answers = found.setdefault(row["image_id"], Answers())
            name = row["category_name"] if row["task"] in CATEGORY_TASKS else row["prompt"]
            answers.named[row["prompt_id"]] = name
            change = corrections.changes.get(row["annotation_id"])
            if change is None or not change.drop:
                outline, is_clear = read_segmentation(row["segmentation"]), True
                if change is not None and change.segmentation is not None:
                    outline, is_clear = _redrawn(outline, change, row["annotation_id"], skipped)
                answers.rows.append(
                    Row(
                        prompt_id=row["prompt_id"],
                        category_id=row["category_id"],
                        name=(change.category_name if change else None) or name,
                        # float32 on both sides, as scores are stored: 0.9 would otherwise exceed a stored 0.9.
                        is_certain=is_clear
                        and (change is not None or bool(np.float32(row["score"]) >= np.float32(min_score))),
                        segmentation=outline,
                    )
                )
    # Over all tasks: a correction of another task's mask is not an unknown one.
    ids = _rows(database, f"SELECT annotation_id FROM {annotations}") if corrections.changes else []
    known = {row["annotation_id"] for row in ids}
    for missing in corrections.changes.keys() - known:
        skipped.add("correction of no annotation", missing)
    return found


def _redrawn(outline: Segmentation, change: Change, annotation_id: str, skipped: Skipped) -> tuple[Segmentation, bool]:
    """Return the corrected shape and True, or the old shape and False if the corrected one is invalid."""
    try:
        return read_segmentation(change.segmentation, outline.size_hw), True
    except RecordError as error:
        skipped.add(error.reason, f"correction of {annotation_id}")
        return outline, False
