"""Limits on tar headers: Python's tarfile allocates and reads whatever length a header claims."""

from __future__ import annotations

import re
import tarfile
import zlib
from typing import Any

MAX_HEADER_BYTES = 2**16
"""Limit for a long name or a pax header; real names and attributes take some hundred bytes."""

_BLOCK_BYTES = 512
_IS_EXTENDED = 504  # offset of the byte in a sparse file's map that says whether another block of it follows
_NO_MAP: Any = []
# tarfile searches pax headers for a pattern that begins with \d+: quadratic time over a long run of digits.
_MANY_DIGITS = re.compile(rb"\d{1000}")


class HeaderBoundsError(ValueError):
    """A header claims to be longer than any real one, or is built so that it would be read endlessly."""


class Member(tarfile.TarInfo):
    """A tar member with the CRC-32 of its header; of several header blocks that of the last, just before the data.

    The maps of sparse files are skipped, since sparse members are not read.
    """

    header = 0

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Member:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        member.header = zlib.crc32(buf)
        return member

    # The methods below override tarfile's internal ones: it has no public hook before a header is read.

    def _proc_gnulong(self, archive: Any) -> Any:
        self._check_length()
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _proc_pax(self, archive: Any) -> Any:
        self._check_length()
        start = archive.fileobj.tell()
        _check_records(archive.fileobj.read(self.size))
        archive.fileobj.seek(start)
        member = super()._proc_pax(archive)  # type: ignore[misc]
        # tarfile keeps global headers, and copies them for every member.
        if sum(len(name) + len(value) for name, value in archive.pax_headers.items()) > MAX_HEADER_BYTES:
            raise HeaderBoundsError(f"its global headers hold more than {MAX_HEADER_BYTES:,} characters")
        return member

    def _proc_sparse(self, archive: Any) -> Any:
        _, is_extended, size = self._sparse_structs  # type: ignore[attr-defined]
        del self._sparse_structs  # type: ignore[attr-defined]
        while is_extended:
            block = archive.fileobj.read(_BLOCK_BYTES)
            if len(block) < _BLOCK_BYTES:
                raise EOFError("it is cut short inside the map of a sparse file")
            is_extended = block[_IS_EXTENDED]
        self.sparse = _NO_MAP
        self.offset_data = archive.fileobj.tell()
        archive.offset = self.offset_data + -(-self.size // _BLOCK_BYTES) * _BLOCK_BYTES
        self.size = size
        return self

    def _proc_gnusparse_00(self, member: tarfile.TarInfo, *_: Any) -> None:
        member.sparse = _NO_MAP

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00

    def _check_length(self) -> None:
        if not 0 <= self.size <= MAX_HEADER_BYTES:
            raise HeaderBoundsError(
                f"a header of {self.size:,} bytes; a long name or attributes may have {MAX_HEADER_BYTES:,} at most"
            )


def _check_records(data: bytes) -> None:
    """Refuse pax records and runs of digits that tarfile would read over and over again.

    A record states its own length; one shorter than itself leads the reader back to where it was.
    """
    position = 0
    while (equals := data.find(b"=", position)) >= 0:
        length = data[position : position + 20].partition(b" ")[0]
        if not length.isdigit():
            break  # tarfile stops here, too
        if int(length) <= equals - position:
            raise HeaderBoundsError("a record of a pax header is longer than it says")
        position += int(length)
    if _MANY_DIGITS.search(data):
        raise HeaderBoundsError("a pax header holds a number of a thousand digits")
