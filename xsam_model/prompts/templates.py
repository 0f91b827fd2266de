"""Prompt templates: one fixed wording for each task, among those that the weights were trained with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import normalize

IMAGE_MARK, REGION_MARK = "<image>", "<region>"
SEG_TOKEN, PHRASE_START, PHRASE_END = "<SEG>", "<p>", "</p>"
TASKS = ("genseg", "ovseg", "vgdseg", "refseg", "reaseg", "intseg", "gcgseg", "chat")
CATEGORY_TASKS = ("genseg", "ovseg")
VISUAL_TASKS = ("vgdseg", "intseg")
# They have no fixed answer, so it must be generated or given.
SPOKEN_TASKS = ("gcgseg", "chat")
_SHOWN_CHARS = 80

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
    # "the this" is what the weights were trained with.
    "gcgseg": "Can you provide a brief description of the this image? "
    "Please output interleaved segmentation masks for the corresponding phrases.",
    "chat": "{}",
}
# Instead of QUESTIONS["reaseg"]: for a condition that is not a sentence, and to ask for an explanation.
REASEG_PHRASE_QUESTION = "Can you segment {} in this image? Please output the segmentation mask."
REASEG_EXPLAIN_QUESTION = "{} Please explain why and output the corresponding segmentation mask."
ANSWERS = {
    "genseg": "Sure, it is <SEG>.",
    "ovseg": "Sure, it is <SEG>.",
    "vgdseg": "Sure, it is <SEG>.",
    "refseg": "It is <SEG>.",
    "reaseg": "It is <SEG>.",
    "intseg": "Sure, <SEG>.",
}


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a language model marks the turns of a conversation.

    Attributes:
        user: text before a question.
        end: text after a question or an answer.
        assistant: text between the end of a question and its answer.
        stops: tokens that end a generated answer.
    """

    user: str
    end: str
    assistant: str
    stops: tuple[str, ...]

    def question(self, text: str) -> str:
        """Return a conversation about an image up to where the answer begins."""
        return f"{self.user}{IMAGE_MARK}\n{text}{self.end}{self.assistant}"


CHAT_FORMATS = {
    "phi3": ChatFormat("<|user|>\n", "<|end|>", "\n<|assistant|>\n", ("<|end|>",)),
    "qwen3": ChatFormat(
        "<|im_start|>user\n", "<|im_end|>", "\n<|im_start|>assistant\n", ("<|im_end|>", "<|endoftext|>")
    ),
}


CategoryText = Literal["clean", "reference"]
"""How a category is written in a question: as `clean_category` does, or as `reference_category`."""

# Suffixes of COCO's stuff categories; within a name, as in "off-stuffing", they are a part of a word.
_STUFF_SUFFIXES = re.compile(r"(?<=\S)(?:-(?:merged|other|stuff))+$", re.IGNORECASE)


def clean_category(name: str) -> str:
    """Write a category as in the training data: "wall-other-merged" -> "wall", "Cell-Phone" -> "cell phone".

    Letters with accents are composed (NFC): two spellings that look alike are one name.
    """
    return " ".join(_STUFF_SUFFIXES.sub("", normalize("NFC", name.strip())).replace("-", " ").lower().split())


def reference_category(name: str) -> str:
    """Write a category exactly as the reference implementation's evaluation does.

    It differs from `clean_category` only in names that training had not: outer white space stays, such as that of
    "window " in its list for ADE20K, and a suffix goes wherever it stands.
    """
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    return name.replace("-", " ").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The text of a conversation around its conditions.

    Attributes:
        task: one of `TASKS`.
        question, answer: wordings to use instead of the task's; `{}` in the question stands for the conditions.
        explain: ask for an explanation (reaseg).
        category_text: how categories are written.
        generate: stop where the answer begins, for the model to generate it.
        chat: how the language model marks turns.
    """

    task: str
    question: str | None = None
    answer: str | None = None
    explain: bool = False
    category_text: CategoryText = "clean"
    generate: bool = False
    chat: ChatFormat = CHAT_FORMATS["phi3"]

    def __post_init__(self) -> None:
        """Refuse inconsistent wordings.

        Raises:
            ValueError: if the task is unknown, options contradict each other, or the answer is missing or does not
                have exactly one `<SEG>`.
        """
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")
        if self.explain and self.task != "reaseg":
            raise ValueError(f"explain goes with the task reaseg, not with {self.task}")
        if self.generate:
            if self.answer is not None:
                raise ValueError("an answer is given and generate is set: choose one")
            return
        if self.answer is None and (self.explain or self.task in SPOKEN_TASKS):
            what = "reaseg with explain" if self.explain else self.task
            raise ValueError(f"{what} has no fixed answer: set generate, or give the text as `answer`")
        if self.task != "chat" and self.spoken.count(SEG_TOKEN) != 1:
            raise ValueError(f"the answer must hold {SEG_TOKEN} exactly once: {self.answer!r}")

    @property
    def spoken(self) -> str:
        """The fixed or given answer, without generation."""
        return ANSWERS[self.task] if self.answer is None else self.answer

    def conversation(self, conditions: Sequence[Any], reserved: Sequence[str]) -> str:
        """Return the text of the whole conversation about one image.

        Args:
            conditions: categories, phrases, the question (chat), or the visual prompts, which are only counted.
            reserved: strings that no condition may contain, because they are tokens with a meaning of their own.

        Raises:
            ValueError: if conditions are missing, one is blank or contains a reserved string, there are several for a
                task that takes one, or the question has no `{}` for them.
        """
        asked = self.chat.question(self._asked(conditions, reserved))
        return asked if self.generate else asked + self.spoken + self.chat.end

    def _asked(self, conditions: Sequence[Any], reserved: Sequence[str]) -> str:
        if self.task == "gcgseg":
            if conditions:
                raise ValueError("gcgseg finds its phrases by itself: it takes no conditions")
            return QUESTIONS["gcgseg"] if self.question is None else self.question
        if self.task == "chat" and self.question is not None and "{}" not in self.question and not conditions:
            return self.question
        if not conditions:
            raise ValueError("visual prompts are missing" if self.task in VISUAL_TASKS else "conditions are missing")
        if self.task == "chat" and len(conditions) > 1:
            raise ValueError(f"chat takes one question at a time, got {len(conditions)}")
        phrases = [REGION_MARK] * len(conditions)
        if self.task not in VISUAL_TASKS:
            phrases = [_phrase(self.task, condition, reserved, self.category_text) for condition in conditions]
            if self.task in CATEGORY_TASKS and self.category_text == "clean":
                _check_distinct(conditions, phrases)
        question = self._template(phrases)
        if "{}" not in question:
            raise ValueError(f"the question has no {{}} for the conditions: {question!r}")
        marked = phrases if self.task == "chat" else [f"{PHRASE_START}{phrase}{PHRASE_END}" for phrase in phrases]
        return question.replace("{}", ", ".join(marked))

    def _template(self, phrases: Sequence[str]) -> str:
        if self.question is not None:
            return self.question
        if self.explain:
            return REASEG_EXPLAIN_QUESTION
        if self.task == "reaseg" and not all(phrase.endswith((".", "?", "!")) for phrase in phrases):
            return REASEG_PHRASE_QUESTION
        return QUESTIONS[self.task]


def _check_distinct(conditions: Sequence[str], phrases: Sequence[str]) -> None:
    """Refuse categories that are written alike: they would compete for each mask, and share its score.

    Raises:
        ValueError: if there are any.
    """
    if len(set(phrases)) == len(phrases):
        return
    twice = next(phrase for place, phrase in enumerate(phrases) if phrase in phrases[:place])
    alike = [_shortened(name) for name, phrase in zip(conditions, phrases, strict=True) if phrase == twice]
    raise ValueError(
        f"the categories {', '.join(alike[:5])} are all written {_shortened(twice)}, so each would get a "
        "part of a mask's score: keep one of them"
    )


def _shortened(text: str) -> str:
    """Return a text in quotes, of a long one its beginning."""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def _phrase(task: str, condition: str, reserved: Sequence[str], category_text: CategoryText) -> str:
    for token in reserved:
        if token in condition:
            raise ValueError(f"condition {_shortened(condition)} contains {token!r}, which the tokenizer reserves")
    if task in CATEGORY_TASKS:
        phrase = clean_category(condition) if category_text == "clean" else reference_category(condition)
    else:
        # As in training: referring phrases are lower-cased, reasoning questions are not.
        phrase = condition.strip().lower() if task == "refseg" else condition.strip()
    if not phrase.strip():
        raise ValueError(f"condition {_shortened(condition)} is blank")
    return phrase
