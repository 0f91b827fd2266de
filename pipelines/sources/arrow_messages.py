"""Read the size and compression of an Arrow IPC message from its metadata, before any of its body is read.

pyarrow does not expose either before it has read the message, so the flatbuffer is read here, by Arrow's Message.fbs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

# Numbers of fields in the tables Message and RecordBatch, and of RecordBatch in the union of headers.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_RECORD_BATCH = 3
_COMPRESSION = 3


class MessageFacts(NamedTuple):
    """The size of a message's body in bytes, and whether its buffers are compressed."""

    body_bytes: int
    is_compressed: bool


def message_facts(metadata: bytes) -> MessageFacts | None:
    """Read a message's metadata; None if it is not valid.

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
    """Return the offset of a table's field; 0 if the field is absent.

    A table begins with the distance back to its vtable, which holds its own size, the table's, and then for each field
    the offset in the table, 0 for an absent one.
    """
    (back,) = struct.unpack_from("<i", metadata, table)
    fields = table - back
    if fields < 0:
        raise IndexError
    (num_bytes,) = struct.unpack_from("<H", metadata, fields)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", metadata, fields + place) if place + 2 <= num_bytes else (0,)
    return table + int(offset) if offset else 0
