"""Turns the labeled images of an output table into training samples, with corrections applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.training.corrections import Addition
from pipelines.types import CATEGORY_TASKS, Status
from xsam_model.prompts.templates import clean_category
from xsam_model.training.datasets.coco import MasksRecord
from xsam_model.training.datasets.grounded_captions import CaptionRecord, mark_phrases
from xsam_model.training.datasets.records import NOTHING_ANNOTATED, Record, RecordError, clean_text
from xsam_model.training.datasets.segmentations import Segmentation, read_segmentation

# The tasks whose rows each training task uses.
TABLE_TASKS: Mapping[str, tuple[str, ...]] = {
    "ovseg": CATEGORY_TASKS,
    "genseg": CATEGORY_TASKS,
    "refseg": ("refseg",),
    "reaseg": ("reaseg",),
    "gcgseg": ("gcgseg",),
}
QUARANTINED = "quarantined when it was labeled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mask of the table, with its correction applied."""

    prompt_id: str
    category_id: int
    name: str
    is_certain: bool
    segmentation: Segmentation


@dataclass(slots=True)
class Answers:
    """The masks found in one image.

    Attributes:
        rows: the masks that were not dropped.
        named: name of each prompt that has a mask, dropped ones included: a dropped mask makes its prompt a negative.
    """

    rows: list[Row] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)


def read_labeled(
    image: Mapping[str, Any], answers: Answers, task: str, additions: Sequence[Addition]
) -> Sequence[Record]:
    """Return the records of one image: one, or for gcgseg one for each caption.

    Args:
        image: its row of the `images` table.
        answers: the masks found in it.
        task: one of `TABLE_TASKS`.
        additions: masks that a person has added.

    Raises:
        RecordError: if the image was quarantined, or was asked nothing of the task.
    """
    if image["status"] == Status.QUARANTINED:
        raise RecordError(QUARANTINED)
    size = image["height"], image["width"]
    if task == "gcgseg":
        return _read_captions(image, answers, size)
    added = [(one.category_name, read_segmentation(one.segmentation, size)) for one in additions]
    rows = [(row.name, row.segmentation) for row in answers.rows if row.is_certain] + added
    ignored = [row.segmentation for row in answers.rows if not row.is_certain]
    # Names that training writes alike, as "wall-other-merged" and "wall", must become one condition.
    clean = clean_category if task in ("ovseg", "genseg") else clean_text
    asked = [*_asked(image, answers, task), *(name for name, _ in rows)]
    places = {name: place for place, name in enumerate(dict.fromkeys(clean(clean_text(name)) for name in asked))}
    if not places:
        raise RecordError(NOTHING_ANNOTATED, f"nothing of the task {task} was asked")
    return [
        MasksRecord(
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
    """Yield the name of every prompt to ask in training, except for phrases all of whose masks are uncertain.

    A category whose masks are all uncertain is asked all the same; the pixels of these masks are ignored.
    """
    certain = {row.prompt_id for row in answers.rows if row.is_certain}
    uncertain = {row.prompt_id for row in answers.rows} - certain
    for prompt in image["per_prompt"]:
        prompt_id = prompt["prompt_id"]
        # No row names a prompt without a mask, but the id of one asked of every image contains its text.
        kind, _, text = prompt_id.partition(":")
        name = answers.named.get(prompt_id) or (text if kind in TABLE_TASKS[task] else None)
        if prompt["rejected"] is None and name and (task in ("ovseg", "genseg") or prompt_id not in uncertain):
            yield name


def _read_captions(image: Mapping[str, Any], answers: Answers, size: tuple[int, int]) -> list[CaptionRecord]:
    found = []
    for caption in image["captions"] or ():
        if caption["task"] != "gcgseg":
            continue
        clean_text(caption["text"])  # only for its check: spans of phrases count characters of the text as it is
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
