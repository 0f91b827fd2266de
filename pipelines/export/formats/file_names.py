"""Make file names from image ids, which may be arbitrary text: always inside the folder, and unique for each image."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

# Most file systems allow 255 bytes in a name; a suffix and a hash may be appended.
_MAX_PART_BYTES = 150
_MAX_BYTES = 600
# What Windows refuses in names, and what shells expand.
_FORBIDDEN = frozenset('<>:"|?*\\~$`')


def new_file(folder: Path, image_id: str, suffix: str, *, reserved: Collection[str] = ()) -> Path:
    """Create an empty file named after an image, and the folders that its id names.

    An id that is a harmless relative path is kept: ``cats/a.jpg`` becomes ``cats/a`` plus the suffix. Odd characters
    become ``_``. If the name is taken, part of the id's SHA-256 is appended, so the same images in the same order get
    the same names again.

    Args:
        folder: an existing folder, in or below which the file is created.
        image_id: the image.
        suffix: the file's suffix, with its dot.
        reserved: names that folders must not have.

    Returns:
        The path, below ``folder``.
    """
    stem = _stem(image_id, reserved)
    distinct = f"{PurePosixPath(stem).name[:60]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
    # Creating the file is the test whether the name is free, on file systems that ignore case, too.
    for name in (stem, distinct):
        path = folder / f"{name}{suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("xb").close()
        except (FileExistsError, NotADirectoryError):
            continue
        return path
    raise FileExistsError(f"{folder / distinct}{suffix}")


def _stem(image_id: str, reserved: Collection[str]) -> str:
    *folders, name = image_id.split("/")
    stem = name.rpartition(".")[0] or name
    parts = [_part(part) for part in folders] + [_part(stem)]
    parts[:-1] = [f"{part}_" if part.lower() in reserved else part for part in parts[:-1]]
    whole = "/".join(parts)
    if len(whole.encode()) > _MAX_BYTES:
        whole = parts[-1]
    return whole


def _part(text: str) -> str:
    """Turn a text into one path component that is harmless on any system."""
    clean = "".join("_" if _is_odd(char) else char for char in text)
    clean = clean.encode()[:_MAX_PART_BYTES].decode(errors="ignore").rstrip(". ")
    return clean if clean.strip(".") and not clean.startswith((".", "-", " ")) else f"_{clean.lstrip('. ')}"


def _is_odd(char: str) -> bool:
    return char in _FORBIDDEN or (char != " " and unicodedata.category(char)[0] in "CZ")
