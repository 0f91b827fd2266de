"""Why an image cannot be decoded, and how a decoder's exceptions are translated into reasons."""

from __future__ import annotations

import struct
import zlib

from PIL import Image as PilImage
from PIL.ImageFile import ImageFile

from pipelines.images.cut_short import ends_early
from pipelines.types import Reason

# Exceptions that Pillow raises on broken files: OSError, SyntaxError and ValueError deliberately, the others escape
# from its parsers. DecompressionBombError derives from none of them.
PIL_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,
    PilImage.DecompressionBombError,
)


class DecodeError(Exception):
    """An image cannot be decoded.

    Attributes:
        reason: one of the closed list of reasons.
        message: details for a person.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        """Create the error; both values go to Exception, so that it survives pickling between processes."""
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return ``reason: message``."""
        return f"{self.reason}: {self.message}"


def translated(error: Exception, data: bytes, plugin: type[ImageFile]) -> DecodeError:
    """Translate an exception of Pillow into a reason."""
    # Pillow has no exception classes for these cases: its messages, and the file itself, have to tell.
    words = str(error).lower()
    if isinstance(error, PilImage.DecompressionBombError):
        reason = Reason.TOO_MANY_PIXELS
    elif isinstance(error, MemoryError) or "out of memory" in words:
        reason = Reason.OUT_OF_MEMORY
    elif "truncated" in words or ends_early(data, plugin):
        reason = Reason.TRUNCATED
    elif "unsupported" in words or "unknown pixel mode" in words:
        reason = Reason.UNSUPPORTED_MODE
    else:
        reason = Reason.CORRUPT
    name = plugin.format or plugin.__name__
    return DecodeError(reason, f"{name}: {type(error).__name__}: {error}")
