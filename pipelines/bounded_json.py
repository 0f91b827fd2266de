"""Limits on untrusted JSON, checked before it is parsed: nesting depth, and the bytes of one value or entry.

Deep nesting can take a parser memory that grows with the square of the depth, or overflow Python's stack. Only
brackets and quotes are looked at here; whether the text is valid JSON is left to the parser.
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

import numpy as np

# Annotation files nest a handful of levels; Python's own parser fails at some thousand.
MAX_DEPTH = 100
MAX_ENTRY_BYTES = 2**24
"""Limit for a line, a list entry, a string or a number: parsed into Python objects it may take twenty times as much."""

# For documents that are held in memory as a whole, such as a ground truth.
MAX_DOCUMENT_BYTES = 2**30

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
# Input is scanned in pieces with NumPy: no Python loop over bytes, and arrays of a bounded size.
_PIECE_BYTES = 2**18
# By byte value: how a bracket changes the depth, and whether the byte ends a value.
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_ENDS = np.zeros(256, np.bool_)
_ENDS[list(b"[]{},:")] = True
_QUOTE = ord('"')


class BoundsError(ValueError):
    """JSON is nested too deeply, or contains too large a value."""


class JsonGuard:
    """Checks a stream of JSON against the limits, piece by piece.

    Args:
        entry_depth: nesting depth at which entries are limited in bytes, e.g. 2 for the items of a list in an object;
            None to limit strings and numbers only.
    """

    def __init__(self, entry_depth: int | None = None) -> None:
        self._entry_depth = entry_depth
        self._depth = 0
        self._is_text = self._is_escaped = False
        self._of_value = self._of_entry = 0  # bytes so far

    def feed(self, piece: bytes) -> None:
        """Check the next bytes.

        Raises:
            BoundsError: a limit is exceeded; the message says which.
        """
        for start in range(0, len(piece), _PIECE_BYTES):
            self._feed(piece[start : start + _PIECE_BYTES])

    def _feed(self, piece: bytes) -> None:
        piece = self._without_escapes(piece)
        codes = np.frombuffer(piece, np.uint8)
        quotes = np.flatnonzero(codes == _QUOTE)
        steps = _STEP[codes]
        places = np.flatnonzero(steps)
        # A bracket inside a string is not structure: behind an opening quote the number of quotes so far is odd.
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
        """Return the size of a value or entry that may span pieces, counted in whole pieces.

        A piece with anything else in it resets the count, so that only what is longer than a piece is measured.
        """
        if not is_same:
            return 0
        if num_bytes + more > MAX_ENTRY_BYTES:
            raise BoundsError(f"it holds {what} of more than {MAX_ENTRY_BYTES:,} bytes")
        return num_bytes + more

    def _without_escapes(self, piece: bytes) -> bytes:
        """Replace escape sequences by blanks, so that an escaped quote does not count as one."""
        if self._is_escaped:
            piece, self._is_escaped = b" " + piece[1:], False
        if b"\\" in piece:
            piece = _ESCAPED.sub(b"  ", piece)
            self._is_escaped = piece.endswith(b"\\")
        return piece


class GuardedFile:
    """A file object that checks JSON as it is read, for parsers that read streams."""

    def __init__(self, file: IO[bytes], guard: JsonGuard) -> None:
        self._file, self._guard = file, guard

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes.

        Raises:
            BoundsError: as for JsonGuard.feed.
        """
        data = self._file.read(size)
        self._guard.feed(data)
        return data


def load_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        BoundsError: it is nested too deeply.
        ValueError: it is not valid JSON.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Fewer brackets than the limit cannot nest deeper than it: most documents need no scan.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        JsonGuard().feed(data)
    return json.loads(text)
