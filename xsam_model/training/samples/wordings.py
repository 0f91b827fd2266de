"""Additional wordings of every task, for training only: a model trained on a single one would not understand others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xsam_model.prompts.templates import ANSWERS, QUESTIONS, REASEG_PHRASE_QUESTION

_CATEGORIES = (
    "Please segment every {} in this image.",
    "Segment the image into the following categories: {}.",
    "Which of these does the image show, and where: {}? Give a mask for each.",
    "Find all objects of these kinds: {}. Please answer with masks.",
    "Mark {} in the picture.",
)
_REGIONS = (
    "Please segment what is marked here: {}.",
    "Segment all objects like these regions: {}.",
    "Given the regions {}, which objects do they stand for? Please answer with masks.",
    "Find the masks of these regions: {}.",
)
_PHRASES = (
    "Please segment {} in this image.",
    "Where is {}? Please answer with a mask.",
    "Find {} in the picture and give its mask.",
    "Show me {}.",
)
_MORE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "genseg": _CATEGORIES,
    "ovseg": _CATEGORIES,
    "vgdseg": _REGIONS,
    "intseg": _REGIONS,
    "refseg": _PHRASES,
    "reaseg": (
        "{} Please answer with a mask.",
        "{} Please show it in the image.",
        "{} Please output the segmentation mask.",
    ),
    "gcgseg": (
        "Please describe the image and segment what you mention.",
        "What does this image show? Answer in a sentence and give masks for its phrases.",
        "Give a short caption of the picture with masks.",
    ),
}
_MORE_ANSWERS = (
    "It is <SEG>.",
    "Sure, it is <SEG>.",
    "Sure, <SEG>.",
    "Here it is: <SEG>.",
    "The segmentation is <SEG>.",
)


def questions(task: str, conditions: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the wordings of a question, the fixed one of `prompts.templates` first.

    Args:
        task: one of `prompts.templates.TASKS`.
        conditions: what is asked for; reaseg has other wordings for phrases than for sentences.
    """
    if task == "reaseg" and not all(text.strip().endswith((".", "?", "!")) for text in conditions):
        return (REASEG_PHRASE_QUESTION, *_PHRASES)
    return (QUESTIONS[task], *_MORE_QUESTIONS.get(task, ()))


def answers(task: str) -> tuple[str, ...]:
    """Return the wordings of an answer, the fixed one first; none for tasks without a fixed answer."""
    if task not in ANSWERS:
        return ()
    return (ANSWERS[task], *(text for text in _MORE_ANSWERS if text != ANSWERS[task]))


def draw(wordings: Sequence[str], fixed_share: float, random: np.random.Generator) -> str | None:
    """Draw a wording: with probability `fixed_share` the first one, which inference uses, else any of them.

    Returns:
        The wording; None if there is nothing to draw from.
    """
    if not wordings:
        return None
    return wordings[0] if random.random() < fixed_share else wordings[int(random.integers(len(wordings)))]


def all_wordings() -> list[str]:
    """Return every question and answer, for training a tokenizer."""
    asked = [text for task in QUESTIONS for text in (*questions(task, ["?"]), *questions(task, ["a"]))]
    return list(dict.fromkeys([*asked, *_MORE_ANSWERS, *ANSWERS.values()]))
