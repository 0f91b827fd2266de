"""What an Arrow message says of itself, read from its metadata alone: before anything of its body is."""

from __future__ import annotations

import struct
from typing import NamedTuple

# Places of fields in the tables of Arrow's flatbuffers.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_RECORD_BATCH = 3
_COMPRESSION = 3


class MessageFacts(NamedTuple):
    """Bytes of a message's body, and whether the buffers in it are compressed."""

    body_bytes: int
    is_compressed: bool


def message_facts(metadata: bytes) -> MessageFacts | None:
    """Read a message's metadata; None if it is none.

    Args:
        metadata: the flatbuffer between a message's length and its body.
    """
    try:
        (message,) = struct.unpack_from("<I", metadata, 0)
        body = _field(metadata, message, _BODY_LENGTH)
        num_bytes = struct.unpack_from("<q", metadata, body)[0] if body else 0
        kind, header = _field(metadata, message, _HEADER_TYPE), _field(metadata, message, _HEADER)
        is_batch = bool(kind and header and metadata[kind] == _RECORD_BATCH)
        if not is_batch:
            return MessageFacts(num_bytes, False)
        (offset,) = struct.unpack_from("<I", metadata, header)
        return MessageFacts(num_bytes, _field(metadata, header + offset, _COMPRESSION) != 0)
    except (struct.error, IndexError):
        return None


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies; 0 if it is left out."""
    (back,) = struct.unpack_from("<i", metadata, table)
    fields = table - back
    if fields < 0:
        raise IndexError
    (num_bytes,) = struct.unpack_from("<H", metadata, fields)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", metadata, fields + place) if place + 2 <= num_bytes else (0,)
    return table + int(offset) if offset else 0
