"""What a person can mend: the errors that every command tells in one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.redaction import redacted


class UserError(Exception):
    """What was asked cannot be done; the message says what is wrong, where, and what to do about it."""


class StorageError(UserError, OSError):
    """A storage location cannot be used; the message says which one, why, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class DamagedError(StorageError):
    """An object of an output does not hold what it must; the message names it."""


class ProtocolError(StorageError):
    """A URI's protocol is none of those that may be used here."""


class SourceError(UserError, ValueError):
    """An input cannot be used; the message says what is wrong, where, and what to do, and holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class PromptTableError(SourceError):
    """A prompt table that cannot be used as a whole; the message says what is missing."""


class QueryError(SourceError):
    """A query cannot be answered; the message says why, and what to do."""


class PlanError(UserError, ValueError):
    """A run cannot be planned or resumed as asked; the message says why and what to do."""


def some_of(names: Iterable[str]) -> str:
    """Return a few names to recognize the others by."""
    every = list(names)
    return ", ".join(every[:3]) + (", ..." if len(every) > 3 else "")
