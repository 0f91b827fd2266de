"""What of a ground truth cannot be used: left out and counted entry by entry, or refused where the user is strict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.errors import SourceError, some_texts
from pipelines.redaction import counted

# One reason for all that has words of its own: notes stay few, however many entries are broken.
_UNREADABLE = "cannot be read"


class EntryError(ValueError):
    """An entry of a truth cannot be used.

    Attributes:
        reason: a few words, by which such entries are counted.
        detail: the field and its value, for the message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


@dataclass(slots=True)
class LeftOut:
    """Collects the entries of a truth that are left out.

    Attributes:
        uri: of the truth.
        is_strict: whether to refuse the truth for the first of them.
        noun: what it is called in messages.
        told: further messages about the truth.
    """

    uri: str
    is_strict: bool = False
    noun: str = "the truth"
    told: list[str] = field(default_factory=list)
    _found: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, what: str, reason: str, detail: str = "") -> None:
        """Count an entry, once however often it is met.

        Raises:
            SourceError: the truth is to be refused.
        """
        if self.is_strict:
            raise SourceError(f"{self.uri}: {what}: {EntryError(reason, detail)}; without --strict it is left out")
        self._found.setdefault(reason, {}).setdefault(what, detail)

    @contextlib.contextmanager
    def unless_usable(self, what: str) -> Iterator[None]:
        """Count an entry instead of failing if the block that reads it finds it unusable."""
        try:
            yield
        except SourceError:
            raise
        except EntryError as error:
            self.add(what, error.reason, error.detail)
        except KeyError as error:
            self.add(what, _UNREADABLE, f"has no {error}")
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            self.add(what, _UNREADABLE, str(error))

    def notes(self) -> list[str]:
        """Return a message for each reason, with its count and a few examples."""
        return self.told + [
            f"{counted(len(found), 'entry', 'entries')} of {self.noun} left out: {reason}: "
            + some_texts(f"{what} ({detail})" if detail else what for what, detail in found.items())
            for reason, found in self._found.items()
        ]

    def __bool__(self) -> bool:
        """Return whether anything was left out."""
        return bool(self._found)

    def __str__(self) -> str:
        return "; ".join(self.notes())
