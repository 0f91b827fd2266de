"""Reads images from folders: checks that they exist, and returns upright RGB pixels."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.datasets.records import MISSING_IMAGE, UNREADABLE_IMAGE, RecordError
from xsam_model.training.upright import upright

# Exceptions that Pillow's parsers raise on broken files, most often the first three. pipelines/images/decode_error.py
# has the same list; neither package may import the other.
_PIL_ERRORS = (
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
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Pillow's modes with at most 8 bits a channel.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def open_image(path: str | Path) -> NDArray[np.uint8]:
    """Return the pixels of an image.

    Args:
        path: path of a file in any format that Pillow reads.

    Returns:
        uint8 (H, W, 3), RGB, 0 to 255, with EXIF orientation applied and transparent pixels on white.

    Raises:
        RecordError: if the file is missing or broken, or its pixel format has no defined conversion to 8 bits.
    """
    try:
        with Image.open(path) as file:
            image = upright(file)
            if image.mode not in _MODES:
                raise RecordError(UNREADABLE_IMAGE, f"{path}: pixels of mode {image.mode}")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except RecordError:
        raise
    except FileNotFoundError as error:
        raise RecordError(MISSING_IMAGE, str(path)) from error
    except _PIL_ERRORS as error:
        raise RecordError(UNREADABLE_IMAGE, f"{path}: {error}") from error


class ImageFolder:
    """A folder of images, to which the image paths of records are relative.

    Args:
        path: path of the folder.

    Raises:
        ValueError: if there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_dir():
            raise ValueError(f"{path}: no such folder; give the one that holds the images")
        self.path = Path(path)
        self._listings: dict[Path, frozenset[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the listings, which are needed only while a source is opened."""
        return {"path": self.path, "_listings": {}}

    def require(self, name: str) -> str:
        """Return the name of an image if it exists. Each folder is listed once, instead of one lookup for each file.

        Raises:
            RecordError: if it does not exist.
        """
        if not isinstance(name, str) or not name:
            raise RecordError(MISSING_IMAGE, f"no file name: {name!r}")
        file = self.path / name
        if file.parent not in self._listings:
            self._listings[file.parent] = frozenset(os.listdir(file.parent) if file.parent.is_dir() else ())
        if file.name not in self._listings[file.parent]:
            raise RecordError(MISSING_IMAGE, str(file))
        return name

    def open(self, name: str) -> NDArray[np.uint8]:
        """Return the pixels of an image; see `open_image`.

        Raises:
            RecordError: if it cannot be read.
        """
        return open_image(self.path / name)
