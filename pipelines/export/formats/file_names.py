"""Make file names from image ids, which may be arbitrary text: always inside the folder, and unique for each image."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

# Most file systems allow 255 bytes in a name; a suffix and a hash may be appended.
_MAX_PART_BYTES = 150
_MAX_BYTES = 600
# What Windows refuses in names, and what shells expand.
_FORBIDDEN = frozenset('<>:"|?*\\~$`')
# Devices of Windows, whatever follows after a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE)


class FileNames:
    """Names the files of a folder after images, so that the folder can be copied to any system."""

    def __init__(self, folder: Path, suffix: str, *, reserved: Collection[str] = (), is_flat: bool = False) -> None:
        """Begin with a folder.

        Args:
            folder: an existing folder, in or below which files are created.
            suffix: the files' suffix, with its dot.
            reserved: names that folders must not have.
            is_flat: whether all files lie in the folder itself, and not in folders below it that ids name.
        """
        self._folder, self._suffix, self._reserved, self._is_flat = folder, suffix, reserved, is_flat
        self._taken: set[bytes] = set()

    def new_file(self, image_id: str) -> Path:
        """Create an empty file named after an image, and the folders that its id names.

        An id that is a harmless relative path is kept: ``cats/a.jpg`` becomes ``cats/a`` plus the suffix, or ``cats_a``
        in a flat folder. Odd characters become ``_``. If the name is taken, in any case of letters and any encoding of
        accents, part of the id's SHA-256 is appended, so the same images in the same order get the same names again.
        """
        stem = _stem(image_id, self._reserved, self._is_flat)
        distinct = f"{PurePosixPath(stem).name[:60]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
        for name in (stem, distinct):
            # What Windows and macOS take for one name. Hashed, since there may be millions.
            alike = unicodedata.normalize("NFC", name).casefold().encode()
            if (key := hashlib.blake2b(alike, digest_size=12).digest()) in self._taken:
                continue
            path = self._folder / f"{name}{self._suffix}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("xb").close()
            except (FileExistsError, NotADirectoryError):  # a folder of this name, or a file where a folder would be
                continue
            self._taken.add(key)
            return path
        raise FileExistsError(f"{self._folder / distinct}{self._suffix}")


def _stem(image_id: str, reserved: Collection[str], is_flat: bool) -> str:
    *folders, name = image_id.split("/")
    stem = name.rpartition(".")[0] or name
    if is_flat:
        return _part("_".join([folder for folder in folders if folder] + [stem]))
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
    if not clean.strip(".") or clean.startswith((".", "-", " ")):
        clean = f"_{clean.lstrip('. ')}"
    return f"_{clean}" if _DEVICES.fullmatch(clean.partition(".")[0].rstrip(" ")) else clean


def _is_odd(char: str) -> bool:
    return char in _FORBIDDEN or (char != " " and unicodedata.category(char)[0] in "CZ")
