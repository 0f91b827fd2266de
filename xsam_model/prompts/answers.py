"""Parses generated answers into plain text and the positions of their grounded phrases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, SEG_TOKEN

# A sentence without a phrase that holds `<SEG>`: "Sure, it is <SEG>."
_ANNOUNCEMENT = re.compile(
    rf"(?:^\s*|(?<=[.!?])\s+|(?<=[.!?])(?={SEG_TOKEN}))(?:[^.!?<]|[.!?](?!\s|<))*{SEG_TOKEN}\s*[.!?]?"
)


@dataclass(frozen=True, slots=True)
class CaptionPhrase:
    """A grounded phrase of a caption.

    Attributes:
        text: the phrase.
        start, end: its position in the caption: `caption.text[start:end] == text`.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A generated answer as plain text.

    Attributes:
        text: the answer without special tokens and without sentences that only announce masks ("It is <SEG>.").
        phrases: its grounded phrases, in the order of their masks and of the conditions of the conversation.
    """

    text: str
    phrases: tuple[CaptionPhrase, ...] = ()


def read_caption(raw: str, special_tokens: Sequence[str]) -> Caption:
    """Parse a generated answer.

    A sentence with `<SEG>` says nothing about the image and is left out, unless it contains a phrase; then only the
    token is, so that each phrase has its place (the reference implementation drops that sentence, too). Phrases are
    those of `modeling_xsam.number_phrases`.

    Args:
        raw: the decoded answer, special tokens included.
        special_tokens: special tokens of the tokenizer, all of which are dropped.
    """
    marks = "|".join(re.escape(token) for token in {*special_tokens, PHRASE_START, PHRASE_END, SEG_TOKEN})
    text, start = "", None
    phrases: list[CaptionPhrase] = []
    for piece in re.split(f"({marks})", _ANNOUNCEMENT.sub(" ", raw)):
        if piece == PHRASE_START:
            start = len(text) if start is None else start
        elif piece == PHRASE_END:
            if start is not None:
                phrases.append(_phrase(text, start))
            start = None
        elif not re.fullmatch(marks, piece):
            words = re.sub(r"\s+", " ", piece)
            # Dropped marks may leave two spaces in a row.
            text += words.lstrip() if not text or text.endswith(" ") else words
    return Caption(text.rstrip(), tuple(phrases))


def _phrase(text: str, start: int) -> CaptionPhrase:
    span = text[start:]
    start += len(span) - len(span.lstrip())
    return CaptionPhrase(span.strip(), start, start + len(span.strip()))
