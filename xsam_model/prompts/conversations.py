"""Writes the conversation of a task and turns it into token ids. Needs a tokenizer and no torch, so that a run can be
planned without it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from xsam_model.prompts.templates import (
    CHAT_FORMATS,
    IMAGE_MARK,
    PHRASE_END,
    PHRASE_START,
    REGION_MARK,
    SEG_TOKEN,
    CategoryText,
    Wording,
)

ADDED_TOKENS = (SEG_TOKEN, PHRASE_START, PHRASE_END)
_MARKS = re.compile(f"({IMAGE_MARK}|{REGION_MARK})")


class TooManyConditionsError(ValueError):
    """There are more conditions than fit into one conversation.

    Attributes:
        num_fitting: how many of them fit, counted from the first; 0 if not even that one does.
    """

    def __init__(self, message: str, num_fitting: int) -> None:
        super().__init__(message)
        self.num_fitting = num_fitting


class TextTokenizer(Protocol):
    """What conversations need of a tokenizer; those of transformers have it."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the language model has one."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens with a meaning of their own; str() of each is its text."""

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""


class TokenizerFile:
    """The tokenizer of a model's folder without transformers, which takes torch with it: a `TextTokenizer`."""

    def __init__(self, folder: Path) -> None:
        """Read tokenizer.json and tokenizer_config.json.

        Raises:
            OSError: one is missing.
            ValueError: transformers would not use tokenizer.json as it stands.
        """
        described = json.loads((folder / "tokenizer_config.json").read_bytes())
        # Tokenizers of earlier versions are rebuilt when transformers reads them, some with other rules.
        if described.get("backend") != "tokenizers" or described.get("split_special_tokens"):
            raise ValueError(f"{folder}: its tokenizer is not read as it stands")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        bos = described.get("bos_token")
        text = bos["content"] if isinstance(bos, dict) else bos
        self.bos_token_id = None if text is None else self._tokenizer.token_to_id(text)

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens with a meaning of their own, by id."""
        return {place: token.content for place, token in self._tokenizer.get_added_tokens_decoder().items()}

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


class ConversationEncoder:
    """Writes conversations and turns them into token ids, as the weights were trained with.

    Args:
        tokenizer: tokenizer of the language model, with `ADDED_TOKENS`.
        max_text_length: most text tokens in one conversation, `XSamConfig.max_text_length`.
        image_token_index, region_token_index: pseudo ids, as in `XSamConfig`.
        chat_format: how the language model marks turns, one of `CHAT_FORMATS`: "phi3" or "qwen3".

    Attributes:
        category_text: how categories are written in questions: "clean", or "reference" to repeat the evaluation of the
            reference implementation to the letter (see `prompts.templates.reference_category`). Not saved.

    Raises:
        ValueError: if the tokenizer lacks a token that conversations need, or the chat format is unknown.
    """

    category_text: CategoryText = "clean"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        max_text_length: int = 2319,
        image_token_index: int = -200,
        region_token_index: int = -300,
        chat_format: str = "phi3",
    ) -> None:
        if chat_format not in CHAT_FORMATS:
            raise ValueError(f"unknown chat format {chat_format!r}; known: {', '.join(CHAT_FORMATS)}")
        self.tokenizer = tokenizer
        self.chat_format = chat_format
        self.max_text_length = max_text_length
        self.image_token_index, self.region_token_index = image_token_index, region_token_index
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in ADDED_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer lacks {missing}: call xsam_model.processing_xsam.add_tokens on it first")
        self._seg_id, self._start_id, self._end_id = (vocabulary[token] for token in ADDED_TOKENS)
        chat = CHAT_FORMATS[chat_format]
        user, end, assistant = (re.escape(mark) for mark in (chat.user.strip(), chat.end, chat.assistant.lstrip()))
        # The weights were trained with questions, answers and the line breaks after answers tokenized separately.
        self._turns = re.compile(f"(?<={end})(\n)(?={user}|$)|(?<={assistant})")

    @classmethod
    def from_folder(cls, folder: Path) -> ConversationEncoder:
        """Return the encoder of a model's folder, as its processor would be.

        Raises:
            OSError: a file is missing.
            ValueError: only transformers can read the tokenizer.
        """
        saved = json.loads((folder / "processor_config.json").read_bytes())
        names = ("max_text_length", "image_token_index", "region_token_index", "chat_format")
        return cls(TokenizerFile(folder), **{name: saved[name] for name in names if name in saved})

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a generated answer."""
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[stop] for stop in CHAT_FORMATS[self.chat_format].stops if stop in vocabulary]

    def token_ids(
        self, conditions: Sequence[str], *, task: str, explain: bool = False, generate: bool = False
    ) -> list[int]:
        """Return the tokens of the conversation about one image; arguments as of the processor.

        Raises:
            ValueError: a condition contains a special token, an option contradicts another, or the conversation is too
                long.
            TooManyConditionsError: it is, and fewer conditions would fit.
        """
        return self._encode_conditions(self._wording(task=task, explain=explain, generate=generate), conditions)

    def _wording(self, **options: Any) -> Wording:
        return Wording(**options, category_text=self.category_text, chat=CHAT_FORMATS[self.chat_format])

    def _encode_conditions(self, wording: Wording, group: Sequence[Any]) -> list[int]:
        reserved = [str(token) for token in self.tokenizer.added_tokens_decoder.values()] + [IMAGE_MARK, REGION_MARK]
        ids = self._encode(wording.conversation(group, reserved), check=False)
        if (excess := len(ids) - self.max_text_length) <= 0:
            return ids
        fits = f"{excess} more than the {self.max_text_length} that fit beside an image"
        if len(group) < 2:
            raise ValueError(f"the conversation has {len(ids)} text tokens, {fits}. Say it in fewer words.")
        # Bisection: only tokenizing tells how many conditions fit.
        low, high = 0, len(group)
        while high - low > 1:
            middle = (low + high) // 2
            length = len(self._encode(wording.conversation(group[:middle], reserved), check=False))
            low, high = (middle, high) if length <= self.max_text_length else (low, middle)
        raise TooManyConditionsError(
            f"{len(group)} conditions make {len(ids)} text tokens, {fits}: the first {low} fit. "
            "Ask for the rest in another call.",
            num_fitting=low,
        )

    def _encode(self, text: str, check: bool = True) -> list[int]:
        """Tokenize a conversation.

        Turns, and the text between pseudo tokens, are tokenized separately as in training: some tokenizers treat the
        first word of a text differently.
        """
        marks = {IMAGE_MARK: self.image_token_index, REGION_MARK: self.region_token_index}
        # As in the reference implementation's training and evaluation; its demo leaves BOS out.
        bos = self.tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        # In training a line break follows every finished answer.
        text = text + "\n" if text.endswith(CHAT_FORMATS[self.chat_format].end) else text
        for turn in filter(None, self._turns.split(text)):
            for piece in [turn] if turn == "\n" else _MARKS.split(turn):
                if piece in marks:
                    ids.append(marks[piece])
                elif piece.strip() or turn == "\n":
                    ids += self.tokenizer.encode(piece, add_special_tokens=False)
        if check and len(ids) > self.max_text_length:
            excess = len(ids) - self.max_text_length
            raise ValueError(
                f"the conversation has {len(ids)} text tokens, {excess} more than the {self.max_text_length} that fit "
                "beside an image"
            )
        return ids
