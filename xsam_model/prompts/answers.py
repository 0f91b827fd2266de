"""Generated text without its marks: what the model said, and where in it the phrases are that it has segmented."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, SEG_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

# A sentence without a phrase that holds `<SEG>`: "Sure, it is <SEG>."
_ANNOUNCEMENT = re.compile(
    rf"(?:^\s*|(?<=[.!?])\s+|(?<=[.!?])(?={SEG_TOKEN}))(?:[^.!?<]|[.!?](?!\s|<))*{SEG_TOKEN}\s*[.!?]?"
)


@dataclass(frozen=True, slots=True)
class CaptionPhrase:
    """A phrase that the model has grounded.

    Attributes:
        text: the phrase.
        start, end: where it stands in the caption, as for slicing: `caption.text[start:end] == text`.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Caption:
    """What the model said about an image.

    Attributes:
        text: without marks, and without the words that only announce the masks ("It is <SEG>.").
        phrases: in the order of their masks; numbered as the conditions of the conversation.
    """

    text: str
    phrases: tuple[CaptionPhrase, ...] = ()


def read_caption(raw: str, special_tokens: Sequence[str]) -> Caption:
    """Read a generated answer.

    A sentence with `<SEG>` says nothing about the image and is left out; of one that holds a phrase as well, only the
    token.

    Args:
        raw: the answer as decoded, special tokens included.
        special_tokens: the tokenizer's, all of which are dropped.
    """
    marks = "|".join(re.escape(token) for token in {*special_tokens, PHRASE_START, PHRASE_END, SEG_TOKEN})
    text, start = "", None
    phrases: list[CaptionPhrase] = []
    for piece in re.split(f"({marks})", _ANNOUNCEMENT.sub(" ", raw)):
        if piece == PHRASE_START:
            start = len(text)
        elif piece == PHRASE_END:
            if start is not None:
                phrases.append(_phrase(text, start))
            start = None
        elif not re.fullmatch(marks, piece):
            words = re.sub(r"\s+", " ", piece)
            text += words.lstrip() if not text or text.endswith(" ") else words
    return Caption(text.rstrip(), tuple(phrases))


def _phrase(text: str, start: int) -> CaptionPhrase:
    span = text[start:]
    start += len(span) - len(span.lstrip())
    return CaptionPhrase(span.strip(), start, start + len(span.strip()))


__all__ = ["Caption", "CaptionPhrase", "read_caption"]
