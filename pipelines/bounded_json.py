"""Limits on untrusted JSON, checked before it is parsed: nesting depth, and the bytes of one value or entry.

Deep nesting can take a parser memory that grows with the square of the depth, or overflow Python's stack. Only
brackets and quotes are looked at here; whether the text is valid JSON is left to the parser.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

# Annotation files nest a handful of levels; Python's own parser fails at some thousand.
MAX_DEPTH = 100
MAX_ENTRY_BYTES = 2**24
"""Limit for a line, a list entry, a string or a number: parsed into Python objects it may take twenty times as much."""

# For documents that are held in memory as a whole, such as a ground truth.
MAX_DOCUMENT_BYTES = 2**30

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_MARK = b"\xef\xbb\xbf"
_REST_OF_TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(?P<end>"|\Z)', re.DOTALL)
_WORDS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?P<end>"|\Z)|-?(?:NaN|Infinity)\b', re.DOTALL)
_CUT_WORD = re.compile(rb"(?:-?[NI][A-Za-z]*|-)\Z")
_MAX_WORD = 16
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
    """A file object that checks JSON as it is read, for parsers that read streams.

    Attributes:
        num_bytes: read so far.
    """

    def __init__(self, file: IO[bytes] | PlainJsonFile, guard: JsonGuard) -> None:
        self._file, self._guard = file, guard
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes.

        Raises:
            BoundsError: as for JsonGuard.feed.
        """
        data = self._file.read(size)
        self._guard.feed(data)
        self.num_bytes += len(data)
        return data


class PlainJsonFile:
    """A file object whose JSON is what strict parsers take: without a byte order mark, and with null for NaN.

    Python and what stands on it (pandas) writes NaN and Infinity; a spreadsheet or editor of Windows adds the mark.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._held = b""  # the end of the last piece, which may be part of an escape or a word
        self._is_first, self._is_text = True, False

    def read(self, size: int = -1) -> bytes:
        """Read some ``size`` bytes; none only at the end."""
        while size:
            piece = self._file.read(size)
            data, self._held = self._held + piece, b""
            if self._is_first and len(data) < len(_MARK) and piece:
                self._held = data
                continue
            if self._is_first:
                data, self._is_first = data.removeprefix(_MARK), False
            if piece and (num_cut := _unfinished(data)):
                data, self._held = data[:-num_cut], data[-num_cut:]
            if (plain := self._plain(data)) or not piece:
                return plain
        return b""

    def _plain(self, data: bytes) -> bytes:
        if b"NaN" not in data and b"Infinity" not in data:
            self._is_text ^= _ESCAPED.sub(b"", data).count(b'"') % 2 == 1
            return data
        rest = _REST_OF_TEXT.match(data) if self._is_text else None
        begin = rest[0] if rest else b""
        self._is_text = rest is not None and not rest["end"]
        return begin + _WORDS.sub(self._word, data[len(begin) :])

    def _word(self, found: re.Match[bytes]) -> bytes:
        if not found[0].startswith(b'"'):
            return b"null"
        self._is_text = found["end"] == b""
        return found[0]


def _unfinished(data: bytes) -> int:
    """Return how many bytes at the end may be the beginning of an escape sequence or of a word."""
    if data.endswith(b"\\"):
        return (len(data) - len(data.rstrip(b"\\"))) % 2
    cut = _CUT_WORD.search(data[-_MAX_WORD:])
    return len(cut[0]) if cut else 0


def plain_json(value: Any) -> Any:
    """Return a value as JSON has it: null for NaN and infinities, dates as ISO text, names of members as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


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
