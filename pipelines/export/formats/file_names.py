"""File names made of image ids, which may be anything: never outside the folder, never one name for two images."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

_MAX_PART_BYTES = 150
_MAX_BYTES = 600
_FORBIDDEN = frozenset('<>:"|?*\\~$`')


def new_file(folder: Path, image_id: str, suffix: str, *, reserved: Collection[str] = ()) -> Path:
    """Create an empty file named after an image, and the folders that its id names.

    An id that is a harmless relative path keeps it, ``cats/a.jpg`` becomes ``cats/a`` and the suffix. Elsewhere odd
    characters become ``_``. Where that name is taken, the image gets one that ends in a part of its id's SHA-256, so
    the same images in the same order get the same names.

    Args:
        folder: an existing folder; the file lies in it or below.
        image_id: the image.
        suffix: of the file, with its dot.
        reserved: names that no folder may have.

    Returns:
        The path, below ``folder``.
    """
    stem = _stem(image_id, reserved)
    distinct = f"{PurePosixPath(stem).name[:60]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
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
    """Return a name that is one harmless part of a path on any system."""
    clean = "".join("_" if _is_odd(char) else char for char in text)
    clean = clean.encode()[:_MAX_PART_BYTES].decode(errors="ignore").rstrip(". ")
    return clean if clean.strip(".") and not clean.startswith((".", "-", " ")) else f"_{clean.lstrip('. ')}"


def _is_odd(char: str) -> bool:
    return char in _FORBIDDEN or (char != " " and unicodedata.category(char)[0] in "CZ")
