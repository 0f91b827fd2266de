"""Errors that the user can fix: every command prints them as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.redaction import named, redacted, shown


class UserError(Exception):
    """The request cannot be carried out; the message says what is wrong, where, and what to do about it."""


class StorageError(UserError, OSError):
    """A storage location cannot be used; the message says which one, why, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class DamagedError(StorageError):
    """An object of an output is damaged: missing, truncated or not what it should be; the message names it."""


class ProtocolError(StorageError):
    """A URI's protocol is not supported, or not allowed here."""


class SourceError(UserError, ValueError):
    """An input (source, prompts, ground truth) cannot be used; the message says why and what to do, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class PromptTableError(SourceError):
    """A prompt table cannot be used as a whole; the message says what is missing."""


class QueryError(SourceError):
    """A query cannot be answered; the message says why, and what to do."""


class PlanError(UserError, ValueError):
    """A run cannot be planned or resumed as asked; the message says why and what to do."""


def some_of(names: Iterable[str]) -> str:
    """Join the first three names with commas, each as ``named`` has it, and add an ellipsis if there are more."""
    return some_texts(map(named, names))


def some_texts(texts: Iterable[str]) -> str:
    """Join the first three texts with commas, and add an ellipsis if there are more; long ones are cut."""
    every = list(texts)
    return ", ".join(map(shown, every[:3])) + (", ..." if len(every) > 3 else "")
