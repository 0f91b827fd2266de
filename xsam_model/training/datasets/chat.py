"""LLaVA conversations about images: questions and answers in text, without masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import IMAGE_MARK
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    MALFORMED,
    Record,
    RecordError,
    RecordSource,
    Skipped,
    as_list,
    clean_text,
    entry_id,
    read_json,
)
from xsam_model.training.samples.samples import TrainingSample

NO_IMAGE = "no image"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChatRecord(Record):
    """An image with pairs of question and answer."""

    turns: tuple[tuple[str, str], ...]


def ask_chat(record: ChatRecord, image: NDArray[np.uint8], random: np.random.Generator) -> TrainingSample:
    """Turn a recorded conversation into a training sample of one of its questions, drawn at random."""
    question, answer = record.turns[int(random.integers(len(record.turns)))]
    masks = np.zeros((0, *image.shape[:2]), dtype=np.bool_)
    return TrainingSample(image=image, task="chat", conditions=(question,), answer=answer, masks=masks)


def llava(annotations: str, images: str, *, name: str = "llava") -> RecordSource[ChatRecord]:
    """Open LLaVA conversations.

    Args:
        annotations: JSON file (or .jsonl), a list of `{"id", "image", "conversations": [{"from", "value"}, ...]}` with
            turns of "human" and "gpt", e.g. `llava_v1_5_mix665k.json`. Records without an image are left out.
        images: folder that image names are relative to.
        name: name of the source.

    Returns:
        A source whose samples have one question of a conversation, chosen at random, its answer, and no mask. Earlier
        turns are not included, even if the question refers to them.

    Raises:
        ValueError: if a file or folder is missing or in another format, or nothing is usable.
    """
    folder, skipped = ImageFolder(images), Skipped()
    records = []
    for number, entry in enumerate(as_list(read_json(annotations, "conversations"), annotations, "conversations")):
        known_id = entry_id(entry, f"record {number}")
        with skipped.unless_usable(known_id):
            if not entry.get("image"):
                raise RecordError(NO_IMAGE)
            turns = _read_turns(entry["conversations"])
            records.append(ChatRecord(record_id=str(known_id), image=folder.require(entry["image"]), turns=turns))
    return RecordSource(name, annotations, records, skipped, open_image=folder.open, make=ask_chat)


def _read_turns(turns: Any) -> tuple[tuple[str, str], ...]:
    """Return each question with the answer that follows it, without the image mark."""
    pairs = []
    # Not strict: a last question without an answer is left out.
    for asked, said in zip(turns[::2], turns[1::2], strict=False):
        if (asked["from"], said["from"]) != ("human", "gpt"):
            raise RecordError(MALFORMED, "turns of human and gpt must alternate")
        pairs.append((clean_text(asked["value"].replace(IMAGE_MARK, "")), clean_text(said["value"])))
    if not pairs:
        raise RecordError(MALFORMED, "no question with an answer")
    return tuple(pairs)
