"""The location of an image inside a larger file, written as a fragment at the end of the file's URI.

``...tar#offset=1024&size=9731&header=5d3c0a11`` a byte range; with ``header``, the CRC-32 of the tar header before it
``...parquet#column=image&row=17``               a row of a binary column
``...#whole``                                    the whole file: for a file whose real name ends like one of the above
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_PLACE = re.compile(
    r"#(?:offset=(?P<offset>\d{1,18})&size=(?P<size>\d{1,18})(?:&header=(?P<header>[0-9a-f]{8}))?"
    r"|column=(?P<column>[^#&]+)&row=(?P<row>\d{1,18})"
    r"|(?P<whole>whole))\Z"
)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A byte range of a file.

    Attributes:
        offset, size: in bytes.
        header: CRC-32 of the 512 bytes before the range, a tar member's header; None outside of tars.
    """

    offset: int
    size: int
    header: int | None = None

    def __str__(self) -> str:
        """Return the fragment to append to the file's URI."""
        header = "" if self.header is None else f"&header={self.header:08x}"
        return f"#offset={self.offset}&size={self.size}{header}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A value of a Parquet file: the name of its column, and its row from 0."""

    column: str
    row: int

    def __str__(self) -> str:
        """Return the fragment to append to the file's URI."""
        return f"#column={quote(self.column, safe='')}&row={self.row}"


def split_location(text: str) -> tuple[str, ByteRange | ParquetCell | None]:
    """Split an image's URI or version tag into that of the file and the location inside it.

    Returns:
        The file's part, and the location, None for a whole file.
    """
    found = _PLACE.search(text) if "#" in text else None
    if found is None:
        return text, None
    before, parts = text[: found.start()], found.groupdict()
    if parts["offset"] is not None:
        header = None if parts["header"] is None else int(parts["header"], 16)
        return before, ByteRange(int(parts["offset"]), int(parts["size"]), header)
    if parts["row"] is not None:
        return before, ParquetCell(unquote(parts["column"]), int(parts["row"]))
    return before, None
