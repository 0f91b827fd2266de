"""LISA's ReasonSeg: images annotated with labelme, each with a question, and explanations of some answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import QUESTIONS, REASEG_EXPLAIN_QUESTION, REASEG_PHRASE_QUESTION, SEG_TOKEN
from xsam_model.prompts.visual import draw_polygon
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    MALFORMED,
    NOTHING_ANNOTATED,
    Record,
    RecordError,
    RecordSource,
    Skipped,
    as_list,
    clean_text,
    read_json,
)
from xsam_model.training.samples.samples import TrainingSample

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = ("all", "sentence", "phrase")
_ENDS = (".", "?", "!")
Outline = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReasoningRecord(Record):
    """An image with a question in one or more wordings.

    Attributes:
        texts: the wordings.
        is_sentence: whether they are sentences, not phrases.
        targets, ignored: outlines, x and y of the vertices.
        query, explanation: a separate question and its answer in words; None for none.
    """

    texts: tuple[str, ...]
    is_sentence: bool
    targets: tuple[Outline, ...]
    ignored: tuple[Outline, ...]
    query: str | None = None
    explanation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskReasoning:
    """Turns a reasoning record into a training sample of one wording, or with `explain_share` of its explanation."""

    explain_share: float

    def __call__(
        self, record: ReasoningRecord, image: NDArray[np.uint8], random: np.random.Generator
    ) -> TrainingSample:
        """Return the sample, with one mask of everything that answers the question.

        Raises:
            RecordError: if the mask is empty.
        """
        target, ignore = _paint(record, image.shape[:2])
        if not target.any():
            raise RecordError(NOTHING_ANNOTATED, "no pixel of the target is inside the image")
        text = record.texts[int(random.integers(len(record.texts)))]
        question, answer = _question(text, record.is_sentence), None
        if record.explanation is not None and random.random() < self.explain_share:
            text, question = record.query or text, REASEG_EXPLAIN_QUESTION
            answer = f"{record.explanation} It is {SEG_TOKEN}."
        return TrainingSample(
            image=image,
            task="reaseg",
            conditions=(text,),
            question=question,
            answer=answer,
            masks=target[None],
            labels=np.zeros(1, dtype=np.int64),
            ignore=ignore if ignore.any() else None,
        )


def reasonseg(
    folder: str,
    *,
    explanations: str | None = None,
    explain_share: float = 0.5,
    texts: str = "all",
    name: str = "reasonseg",
) -> RecordSource[ReasoningRecord]:
    """Open ReasonSeg.

    Args:
        folder: folder of one split, with NAME.jpg and NAME.json for each image. The JSON has `text` (a list of
            wordings), `is_sentence`, and `shapes`, each with `label` ("target", "ignore", "flag") and `points`.
        explanations: `explanatory/train.json`, a list of `{"image", "query", "outputs"}`; None for none.
        explain_share: share of the samples with an explanation that ask for it.
        texts: "sentence" or "phrase" to use only one kind, "all" for both.
        name: name of the source.

    Returns:
        A source whose samples have one question and one bool mask (H, W). As in LISA larger shapes are drawn first, so
        that a target inside an ignored region counts and an ignored region inside a target does not.

    Raises:
        ValueError: if a setting is out of range, the folder or file is missing or in another format, or nothing is
            usable.
    """
    if texts not in TEXTS or not 0 <= explain_share <= 1:
        raise ValueError(
            f"texts must be one of {', '.join(TEXTS)} and explain_share 0 to 1, got {texts!r} and {explain_share}"
        )
    images, skipped = ImageFolder(folder), Skipped()
    explained = _read_explanations(explanations, skipped) if explanations else {}
    names = sorted(os.listdir(folder))
    pictures = {os.path.splitext(file)[0]: file for file in names if file.lower().endswith(IMAGE_EXTENSIONS)}
    records = []
    for stem in (os.path.splitext(file)[0] for file in names if file.endswith(".json")):
        with skipped.unless_usable(stem):
            image = images.require(pictures.get(stem, f"{stem}.jpg"))
            # Not all of ReasonSeg's files are UTF-8.
            record = _read_record(stem, image, read_json(images.path / f"{stem}.json", "labelme", "cp1252"), explained)
            if texts == "all" or record.is_sentence == (texts == "sentence"):
                records.append(record)
    ask = AskReasoning(explain_share=explain_share)
    return RecordSource(name, folder, records, skipped, open_image=images.open, make=ask)


def _read_explanations(path: str, skipped: Skipped) -> dict[str, tuple[str | None, str]]:
    """Return query and explanation by image name without extension."""
    found = {}
    for number, entry in enumerate(as_list(read_json(path, "explanations"), path, "explanations")):
        with skipped.unless_usable(f"explanation {number}"):
            query = clean_text(entry["query"]) if entry.get("query") else None
            found[os.path.splitext(entry["image"])[0]] = query, clean_text(entry["outputs"])
    return found


def _read_record(
    stem: str, image: str, document: Mapping[str, Any], explained: Mapping[str, tuple[str | None, str]]
) -> ReasoningRecord:
    texts = document["text"] if isinstance(document["text"], list) else [document["text"]]
    targets: list[Outline] = []
    ignored: list[Outline] = []
    for shape in document["shapes"]:
        label = shape["label"].lower()
        if label != "flag":
            (ignored if "ignore" in label else targets).append(_read_outline(shape["points"]))
    if not targets or not texts:
        raise RecordError(NOTHING_ANNOTATED, "no target, or no text")
    query, explanation = explained.get(stem, (None, None))
    return ReasoningRecord(
        record_id=stem,
        image=image,
        texts=tuple(clean_text(text) for text in texts),
        is_sentence=bool(document.get("is_sentence", False)),
        targets=tuple(targets),
        ignored=tuple(ignored),
        query=query,
        explanation=explanation,
    )


def _read_outline(points: Any) -> Outline:
    outline = tuple((int(x), int(y)) for x, y in points)
    if len(outline) < 3:
        raise RecordError(MALFORMED, f"an outline needs three vertices or more, got {points!r}")
    return outline


def _paint(record: ReasoningRecord, size_hw: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the pixels of the targets and those to ignore, bool (H, W) each."""
    shapes = [(_draw(one, size_hw), True) for one in record.targets]
    shapes += [(_draw(one, size_hw), False) for one in record.ignored]
    target, ignore = (np.zeros(size_hw, dtype=np.bool_) for _ in range(2))
    for mask, is_target in sorted(shapes, key=lambda shape: -int(shape[0].sum())):
        target[mask], ignore[mask] = is_target, not is_target
    return target, ignore


def _draw(outline: Outline, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        return draw_polygon(outline, size_hw)
    except ValueError as error:
        raise RecordError(MALFORMED, str(error)) from error


def _question(text: str, is_sentence: bool) -> str | None:
    """Return the wording if the end of the text contradicts `is_sentence`; None to let the task choose by the end."""
    if text.endswith(_ENDS) == is_sentence:
        return None
    return QUESTIONS["reaseg"] if is_sentence else REASEG_PHRASE_QUESTION
