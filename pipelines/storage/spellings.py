"""Other spellings of a path that was written elsewhere: on Windows or macOS, as a URL, or by an inventory of a bucket.

A path is always tried as written first: names may really hold a backslash or a percent sign.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal
from urllib.parse import unquote, unquote_plus

_FILE_URL = re.compile(r"file:(?://(?:localhost|127\.0\.0\.1)?(?=/))?(?!//)", re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def path_of_url(uri: str) -> str | None:
    """Return the path of a ``file:`` URL, as written; None if it is none, or names another machine.

    ``file:///a``, ``file://localhost/a`` and ``file:/a`` are all ``/a``.
    """
    found = _FILE_URL.match(uri)
    return uri[found.end() :] if found and uri[found.end() :].startswith("/") else None


def is_windows_path(path: str) -> bool:
    """Return whether a path begins with a drive or a share of Windows, as in ``C:\\a.jpg``."""
    return _WINDOWS.match(path) is not None


def other_spellings(path: str, *, is_url: bool = True) -> Iterator[str]:
    """Yield the other spellings of a path, the likelier ones first; none for plain ones, which nearly all are.

    Args:
        path: with or without a protocol in front.
        is_url: whether percent escapes may stand for characters.
    """
    seen = {path}
    for plain in _unescaped(path) if is_url else (path,):
        for slashed in (plain, _with_slashes(plain)):
            for spelled in (slashed, *(unicodedata.normalize(form, slashed) for form in _FORMS)):
                if spelled not in seen:
                    seen.add(spelled)
                    yield spelled


def spelling_on_disk(path: str, *, is_url: bool = False) -> str:
    """Return the spelling under which a local path exists; the path itself if it does, or if none does.

    Args:
        path: absolute.
        is_url: whether it comes from a ``file:`` URL.
    """
    if path.isascii() and "\\" not in path and not (is_url and "%" in path):
        return path
    if os.path.lexists(path):
        return path
    for spelled in other_spellings(path, is_url=is_url):
        # Part by part: one folder may be written in one form, and the file in another.
        if (found := _found(spelled)) is not None:
            return found
    return path


def written_here(uri: str) -> str:
    """Return a location as it is written on this machine: of a local one that exists, the spelling that is there."""
    path = path_of_url(uri)
    if path is None and ("://" in uri or uri.isascii()):
        return uri
    on_disk = spelling_on_disk(os.path.abspath(os.path.expanduser(path or uri)), is_url=path is not None)
    return f"{on_disk}/" if uri.endswith("/") and on_disk != "/" else on_disk


def _unescaped(path: str) -> tuple[str, ...]:
    return (path, unquote(path), unquote_plus(path)) if _ESCAPE.search(path) else (path,)


def _with_slashes(path: str) -> str:
    """Return a path with slashes for backslashes, and without the ``..`` that this may bring."""
    if "\\" not in path:
        return path
    scheme, separator, rest = path.rpartition("://")
    return scheme + separator + posixpath.normpath(rest.replace("\\", "/"))


def _found(path: str) -> str | None:
    place = "/"
    for part in path.split("/"):
        spelled = (part, *(unicodedata.normalize(form, part) for form in _FORMS))
        known = next((one for one in spelled if os.path.lexists(os.path.join(place, one))), None)
        if known is None:
            return None
        place = os.path.join(place, known)
    return place
