"""What a file holds that came back from another tool: images, and the masks that a person has left in them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.bounded_json import MAX_DOCUMENT_BYTES, load_json
from pipelines.errors import SourceError
from pipelines.masks import rle
from pipelines.masks.rle import MAX_PIXELS
from pipelines.redaction import shown
from pipelines.sources.tabular import source_errors
from pipelines.storage.filesystems import open_filesystem, read_range
from pipelines.types import Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedMask:
    """One mask of a file.

    Attributes:
        annotation_id: the id that it was exported with; None if it has none.
        name: of its category.
        segmentation: RLE at the image's size, with at least one pixel.
        task: for which it was found, where the file tells.
    """

    annotation_id: str | None
    name: str
    segmentation: Rle
    task: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedImage:
    """One image of a file.

    Attributes:
        image_id: its id in the output.
        size_hw: (height, width) as the file tells it; None if it does not.
        masks: what a person has left in it; incomplete if there is a problem.
        shown: ids of the masks that it was exported with; None if the file does not tell.
        is_reviewed: whether the tool says that a person has looked at it; False where tools do not tell.
        problem: why nothing of it can be used; empty if it can.
        author, edited_at: who edited it and when, in the tool's words; None if it does not tell.
    """

    image_id: str
    size_hw: tuple[int, int] | None
    masks: tuple[EditedMask, ...] = ()
    shown: frozenset[str] | None = None
    is_reviewed: bool = False
    problem: str = ""
    author: str | None = None
    edited_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedFile:
    """A file.

    Attributes:
        images: in its order, each once.
        names: of all categories that could be given in the tool, as far as the file tells.
        num_unreviewed: images that the tool says nobody has finished; they are not among ``images``.
    """

    images: tuple[EditedImage, ...]
    names: frozenset[str] = frozenset()
    num_unreviewed: int = 0


# Pairs of them are characters beyond the first 65,536; one alone is none, and no text that can be written.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class MaskError(ValueError):
    """A mask cannot be used; the message says which, and why."""


@contextlib.contextmanager
def mask_errors(what: str) -> Iterator[None]:
    """Raise a MaskError in place of the exceptions of reading one mask."""
    try:
        yield
    except MaskError:
        raise
    except KeyError as error:
        raise MaskError(f"{what} has no {shown(str(error))}") from error
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise MaskError(f"{what}: {shown(str(error))}") from error


def with_pixels(mask: Rle) -> Rle:
    """Return a mask that has pixels.

    Raises:
        ValueError: it has none.
    """
    if not rle.area(mask):
        raise ValueError("the mask has no pixel of its image")
    return mask


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """Return an image's size.

    Raises:
        ValueError: it is none of an image that could have been labeled.
    """
    size_hw = (int(height), int(width))
    if min(size_hw) < 1 or size_hw[0] * size_hw[1] > MAX_PIXELS:
        raise ValueError(f"an image of {size_hw[1]} x {size_hw[0]} pixels")
    return size_hw


def text_of(value: Any) -> str | None:
    """Return a text or number as text; None for anything else, and for an empty text."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def parsed_json(data: bytes, uri: str) -> Any:
    """Parse a JSON file.

    Raises:
        SourceError: it is not JSON.
    """
    try:
        document = load_json(data)
    except ValueError as error:
        raise SourceError(f"{uri}: not JSON ({error}); give the file as the tool exported it, unpacked") from error
    if _SURROGATE.search(data):
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = ascii(error.object[error.start : error.end][:1])
            raise SourceError(
                f"{uri}: a text in it is cut within a character ({found}), and cannot be written"
            ) from error
    return document


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        SourceError: it cannot be read, or is too large.
    """
    with source_errors(uri):
        fs, path = open_filesystem(uri)
        data = read_range(fs, path, 0, MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise SourceError(f"{uri}: more than {MAX_DOCUMENT_BYTES:,} bytes; import it in several files")
    if not data.strip():
        raise SourceError(f"{uri}: empty")
    return data
