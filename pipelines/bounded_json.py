"""JSON that other people wrote, looked over before a parser sees it.

A parser's memory may grow with the square of the depth, and Python's stack ends at some thousand levels. What is looked
at here is brackets and quotes alone: whether it is JSON at all is for the parser to say.
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

import numpy as np

MAX_DEPTH = 100
MAX_ENTRY_BYTES = 2**24
"""Of a line, an entry of a list, a text or a number: as Python values they may take twenty times as much."""

MAX_DOCUMENT_BYTES = 2**30

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_PIECE_BYTES = 2**18
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_ENDS = np.zeros(256, np.bool_)
_ENDS[list(b"[]{},:")] = True
_QUOTE = ord('"')


class BoundsError(ValueError):
    """JSON is nested too deeply, or holds too large a value."""


class JsonGuard:
    """Watches JSON pass by, piece by piece.

    Args:
        entry_depth: brackets around an entry, whose bytes are bounded: 2 for the items of a list in an object; None
            where texts and numbers alone are.
    """

    def __init__(self, entry_depth: int | None = None) -> None:
        self._entry_depth = entry_depth
        self._depth = 0
        self._is_text = self._is_escaped = False
        self._of_value = self._of_entry = 0  # bytes so far

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes.

        Raises:
            BoundsError: saying what is too much.
        """
        for start in range(0, len(piece), _PIECE_BYTES):
            self._feed(piece[start : start + _PIECE_BYTES])

    def _feed(self, piece: bytes) -> None:
        piece = self._without_escapes(piece)
        codes = np.frombuffer(piece, np.uint8)
        quotes = np.flatnonzero(codes == _QUOTE)
        steps = _STEP[codes]
        places = np.flatnonzero(steps)
        # Odd behind the quote that opens a text, and up to the one that closes it.
        in_text = (np.searchsorted(quotes, places) + self._is_text) % 2 == 1
        depths = np.cumsum(steps[places[~in_text]], dtype=np.int64) + self._depth
        if depths.max(initial=0) > MAX_DEPTH:
            raise BoundsError(f"it is nested more than {MAX_DEPTH} levels deep")
        is_one_value = not len(quotes) and (self._is_text or not _ENDS[codes].any())
        self._of_value = self._longer(self._of_value, len(piece), is_one_value, "a value")
        if self._entry_depth is not None:
            is_one_entry = depths.min(initial=self._depth) > self._entry_depth
            self._of_entry = self._longer(self._of_entry, len(piece), is_one_entry, "an entry")
        self._is_text = bool((len(quotes) + self._is_text) % 2)
        self._depth = int(depths[-1]) if len(depths) else self._depth

    @staticmethod
    def _longer(num_bytes: int, more: int, is_same: bool, what: str) -> int:
        """Return how many bytes something has now; whole pieces are counted."""
        if not is_same:
            return 0
        if num_bytes + more > MAX_ENTRY_BYTES:
            raise BoundsError(f"it holds {what} of more than {MAX_ENTRY_BYTES:,} bytes")
        return num_bytes + more

    def _without_escapes(self, piece: bytes) -> bytes:
        """Return the bytes with blanks for what a backslash escapes."""
        if self._is_escaped:
            piece, self._is_escaped = b" " + piece[1:], False
        if b"\\" in piece:
            piece = _ESCAPED.sub(b"  ", piece)
            self._is_escaped = piece.endswith(b"\\")
        return piece


class GuardedFile:
    """A file of JSON that is read through a guard: for parsers that read streams."""

    def __init__(self, file: IO[bytes], guard: JsonGuard) -> None:
        self._file, self._guard = file, guard

    def read(self, size: int = -1) -> bytes:
        """Read up to so many bytes.

        Raises:
            BoundsError: as JsonGuard.feed.
        """
        data = self._file.read(size)
        self._guard.feed(data)
        return data


def load_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        BoundsError: it is nested too deeply.
        ValueError: it is no JSON.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        JsonGuard().feed(data)
    return json.loads(text)
