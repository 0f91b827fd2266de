"""A driver that pauses in the middle of its run, while something else happens to its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Pausing:
    """A Watcher that does something else right before or right after a side effect, once."""

    at: int
    after: bool
    meanwhile: Callable[[], Any]
    _number: int = field(default=0)
    _away: bool = False

    def effect(self, _name: str, do: Callable[[], Any]) -> Any:
        if self._away:
            return do()
        number, self._number = self._number, self._number + 1
        if number != self.at:
            return do()
        if not self.after:
            self._leave()
        try:
            return do()
        finally:
            if self.after:
                self._leave()

    def reading(self, _name: str, do: Callable[[], Any]) -> Any:
        return do()

    def _leave(self) -> None:
        self._away = True
        self.meanwhile()
        self._away = False
