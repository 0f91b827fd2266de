"""One labelled image of an output table as training samples: asked, found, corrected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.training.corrections import Addition
from pipelines.types import CATEGORY_TASKS, Status
from xsam_model.prompts.templates import clean_category
from xsam_model.training.datasets.grounded_captions import CaptionRecord, mark_phrases
from xsam_model.training.datasets.records import NOTHING_ANNOTATED, Record, RecordError, clean_text
from xsam_model.training.datasets.segmentations import Segmentation, ignored_pixels, rasterize, read_segmentation
from xsam_model.training.samples.samples import TrainingSample

# Which rows of the table each task is trained with.
TABLE_TASKS: Mapping[str, tuple[str, ...]] = {
    "ovseg": CATEGORY_TASKS,
    "genseg": CATEGORY_TASKS,
    "refseg": ("refseg",),
    "reaseg": ("reaseg",),
    "gcgseg": ("gcgseg",),
}
QUARANTINED = "quarantined when it was labelled"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableRecord(Record):
    """One labelled image: what was asked of it, and what was found.

    Attributes:
        conditions: categories, phrases or questions; those without a mask are negatives.
        segmentations, labels: masks, and which condition each belongs to.
        ignored: masks that are too uncertain to learn from, either way.
    """

    conditions: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]
    labels: tuple[int, ...]
    ignored: tuple[Segmentation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskTable:
    """Asks of an image what it was labelled with."""

    source: str
    task: str

    def __call__(self, record: TableRecord, image: NDArray[np.uint8], random: np.random.Generator) -> TrainingSample:
        """Return the sample."""
        del random
        masks = rasterize(record.segmentations, image.shape[:2])
        return TrainingSample(
            image=image,
            task=self.task,
            conditions=record.conditions,
            masks=masks,
            labels=np.array(record.labels, dtype=np.int64),
            ignore=ignored_pixels(record.ignored, masks),
            source=self.source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mask of the table, corrected."""

    prompt_id: str
    category_id: int
    name: str
    is_certain: bool
    segmentation: Segmentation


@dataclass(slots=True)
class Answers:
    """What was found in one image.

    Attributes:
        rows: its masks.
        named: name of each prompt with a mask, those included that a person has dropped.
    """

    rows: list[Row] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def read_labeled(
    image: Mapping[str, Any], answers: Answers, task: str, additions: Sequence[Addition]
) -> Sequence[Record]:
    """Return the records of one image: one, or for gcgseg one for each caption.

    Args:
        image: its row of `images`.
        answers: what was found in it.
        task: one of `TABLE_TASKS`.
        additions: masks that a person has added.

    Raises:
        RecordError: if it was never labelled, or nothing of the task was asked.
    """
    if image["status"] == Status.QUARANTINED:
        raise RecordError(QUARANTINED)
    size = image["height"], image["width"]
    if task == "gcgseg":
        return _read_captions(image, answers, size)
    added = [(one.category_name, read_segmentation(one.segmentation, size)) for one in additions]
    rows = [(row.name, row.segmentation) for row in answers.rows if row.is_certain] + added
    ignored = [row.segmentation for row in answers.rows if not row.is_certain]
    clean = clean_category if task in ("ovseg", "genseg") else clean_text
    asked = [*_asked(image, answers, task), *(name for name, _ in rows)]
    places = {name: place for place, name in enumerate(dict.fromkeys(clean(clean_text(name)) for name in asked))}
    if not places:
        raise RecordError(NOTHING_ANNOTATED, f"nothing of the task {task} was asked")
    return [
        TableRecord(
            record_id=image["image_id"],
            image=image["uri"],
            size_hw=size,
            conditions=tuple(places),
            segmentations=tuple(outline for _, outline in rows),
            labels=tuple(places[clean(name)] for name, _ in rows),
            ignored=tuple(ignored),
        )
    ]


def _asked(image: Mapping[str, Any], answers: Answers, task: str) -> Iterator[str]:
    """Yield the name of every prompt that is to be asked again; of phrases not those that only uncertain masks have."""
    certain = {row.prompt_id for row in answers.rows if row.is_certain}
    uncertain = {row.prompt_id for row in answers.rows} - certain
    for prompt in image["per_prompt"]:
        prompt_id = prompt["prompt_id"]
        # Prompts without a mask are in no row: those asked of every image have their text in their id.
        kind, _, text = prompt_id.partition(":")
        name = answers.named.get(prompt_id) or (text if kind in TABLE_TASKS[task] else None)
        if prompt["rejected"] is None and name and (task in ("ovseg", "genseg") or prompt_id not in uncertain):
            yield name


def _read_captions(image: Mapping[str, Any], answers: Answers, size: tuple[int, int]) -> list[CaptionRecord]:
    found = []
    for caption in image["captions"] or ():
        if caption["task"] != "gcgseg":
            continue
        clean_text(caption["text"])
        masks: dict[int, list[Segmentation]] = {}
        for row in answers.rows:
            if row.prompt_id == caption["prompt_id"] and row.is_certain:
                masks.setdefault(row.category_id, []).append(row.segmentation)
        phrases = [one for one in caption["phrases"] if one["category_id"] in masks]
        if phrases:
            spans = [(one["start"], one["end"]) for one in phrases]
            record = CaptionRecord(
                record_id=image["image_id"],
                image=image["uri"],
                size_hw=size,
                answer=mark_phrases(caption["text"], spans),
                phrases=tuple(tuple(masks[one["category_id"]]) for one in phrases),
            )
            found.append(record)
    if not found:
        raise RecordError(NOTHING_ANNOTATED, "no caption with a phrase that has a mask")
    return found


__all__ = ["TABLE_TASKS", "Answers", "AskTable", "Row", "TableRecord", "read_labeled"]
