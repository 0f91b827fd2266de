"""A tar's headers with all that they say bounded: Python's own reader takes their word for how long they are."""

from __future__ import annotations

import re
import tarfile
import zlib
from typing import Any

MAX_HEADER_BYTES = 2**16
"""Of a long name, or of what a pax header adds; names and attributes take some hundred bytes."""

_BLOCK_BYTES = 512
_IS_EXTENDED = 504  # where a block of a sparse file's map says that another one follows
_NO_MAP: Any = []
_MANY_DIGITS = re.compile(rb"\d{1000}")


class HeaderBoundsError(ValueError):
    """A header claims to be longer than any real one, or is made to be read for ever."""


class Member(tarfile.TarInfo):
    """A member that knows the CRC-32 of its header; of several blocks that of the last, before its data.

    Maps of sparse files are passed over: what is sparse is not read here.
    """

    header = 0

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Member:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        member.header = zlib.crc32(buf)
        return member

    def _proc_gnulong(self, archive: Any) -> Any:
        self._check_length()
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _proc_pax(self, archive: Any) -> Any:
        self._check_length()
        start = archive.fileobj.tell()
        _check_records(archive.fileobj.read(self.size))
        archive.fileobj.seek(start)
        member = super()._proc_pax(archive)  # type: ignore[misc]
        # What is said of all members is kept, and copied for each.
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
    """Refuse records that lead back into themselves, and numbers that are none: both would be read again and again."""
    position = 0
    while (equals := data.find(b"=", position)) >= 0:
        length = data[position : position + 20].partition(b" ")[0]
        if not length.isdigit():
            break  # as the reader does
        if int(length) <= equals - position:
            raise HeaderBoundsError("a record of a pax header is longer than it says")
        position += int(length)
    if _MANY_DIGITS.search(data):
        raise HeaderBoundsError("a pax header holds a number of a thousand digits")
