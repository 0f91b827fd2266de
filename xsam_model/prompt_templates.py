"""The words around the conditions: one fixed wording per task, out of those the weights were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE_MARK, REGION_MARK = "<image>", "<region>"
SEG_TOKEN, PHRASE_START, PHRASE_END = "<SEG>", "<p>", "</p>"
TASKS = ("genseg", "ovseg", "vgdseg", "refseg", "reaseg", "intseg", "gcgseg")
VISUAL_TASKS = ("vgdseg", "intseg")

_CATEGORIES = (
    "Can you generate segmentation masks for this image based on the specified categories: {}? "
    "Please generate the segmentation masks."
)
QUESTIONS = {
    "genseg": _CATEGORIES,
    "ovseg": _CATEGORIES,
    "vgdseg": "Can you segment the image based on the following regions: {}? "
    "Please output the corresponding segmentation mask.",
    "refseg": "Can you segment {} in this image? Please generate the segmentation mask.",
    "reaseg": "{} Please segment the image.",
    "intseg": "Could you provide segmentation masks for this image according to the specified regions: {}? "
    "Please respond with the segmentation masks.",
    "gcgseg": "Can you provide a brief description of the this image? "
    "Please output interleaved segmentation masks for the corresponding phrases.",
}
ANSWERS = {
    "genseg": "Sure, it is <SEG>.",
    "ovseg": "Sure, it is <SEG>.",
    "vgdseg": "Sure, it is <SEG>.",
    "refseg": "It is <SEG>.",
    "reaseg": "It is <SEG>.",
    "intseg": "Sure, <SEG>.",
}
_CHAT = "<|user|>\n<image>\n{question}<|end|>\n<|assistant|>\n{answer}<|end|>"


def clean_category(name: str) -> str:
    """Write a category as the training data did: "wall-other-merged" -> "wall", "Cell-Phone" -> "cell phone"."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    return " ".join(name.replace("-", " ").lower().split())


def conversation(
    task: str, conditions: Sequence[Any], question: str | None, answer: str | None, reserved: Sequence[str]
) -> str:
    """Write the whole conversation about one image.

    Args:
        task: one of `TASKS`.
        conditions: categories, phrases, or anything countable for visual prompts.
        question, answer: wordings to use instead of the task's.
        reserved: strings that no condition may contain, because the tokenizer gives them a meaning of their own.

    Raises:
        ValueError: if there is no condition, one is blank or holds a reserved string, or the answer is missing or has
            not exactly one `<SEG>`.
    """
    question = QUESTIONS[task] if question is None else question
    answer = ANSWERS.get(task) if answer is None else answer
    if answer is None:
        raise ValueError(f"{task} has no fixed answer: give the caption as `answer`")
    if answer.count(SEG_TOKEN) != 1:
        raise ValueError(f"the answer must hold {SEG_TOKEN} exactly once: {answer!r}")
    if task == "gcgseg":
        return _CHAT.replace("{question}", question).replace("{answer}", answer)
    if not conditions:
        raise ValueError("visual prompts are missing" if task in VISUAL_TASKS else "conditions are missing")
    phrases = [REGION_MARK] * len(conditions)
    if task not in VISUAL_TASKS:
        phrases = [_phrase(task, condition, reserved) for condition in conditions]
    if "{}" not in question:
        raise ValueError(f"the question has no {{}} for the conditions: {question!r}")
    listed = ", ".join(f"{PHRASE_START}{phrase}{PHRASE_END}" for phrase in phrases)
    return _CHAT.replace("{answer}", answer).replace("{question}", question.replace("{}", listed))


def _phrase(task: str, condition: str, reserved: Sequence[str]) -> str:
    for token in reserved:
        if token in condition:
            raise ValueError(f"condition {condition!r} contains {token!r}, which the tokenizer reserves")
    if task in ("genseg", "ovseg"):
        phrase = clean_category(condition)
    else:
        phrase = condition.strip().lower() if task == "refseg" else condition.strip()
    if not phrase:
        raise ValueError(f"condition {condition!r} is blank")
    return phrase


__all__ = ["ANSWERS", "QUESTIONS", "TASKS", "VISUAL_TASKS", "clean_category", "conversation"]
