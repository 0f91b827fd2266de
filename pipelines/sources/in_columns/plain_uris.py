"""Make many URIs absolute at once, as far as they are plain: as far as nothing but their form has to be looked at."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A path of a bucket; an address of the web without a query, a fragment or a user; a path of this machine in ASCII and
# without backslashes or colons, which has one spelling. Text with a dot is no base64.
_ABSOLUTE = (
    r"^(?:(?:s3a?|gs|gcs|hf)://[A-Za-z0-9._-]+/"
    r"|https?://[A-Za-z0-9.-]+(?::[0-9]+)?/[^?#]*$"
    r"|/[ -9;-\[\]-~]*\.[ -9;-\[\]-~]*$)"
)
# Parts of a path that normalization leaves as they are: not empty, without a dot in front. In a bucket they may have
# any letters.
_FIRST, _OTHERS = r'!"$-\-0-9;-\[\]-}', r" -.0-9;-\[\]-~"
_LETTERS = r"\x{80}-\x{10ffff}"


def _relative(more: str) -> str:
    part = f"[{_FIRST}{more}][{_OTHERS}{more}]*"
    return rf"^(?:{part}/)*{part}\.[{_OTHERS}{more}]*$"


_RELATIVE, _RELATIVE_IN_BUCKET = _relative(""), _relative(_LETTERS)


def plain_uris(written: pa.StringArray, folder: str) -> tuple[pa.StringArray, NDArray[np.bool_]]:
    """Return absolute URIs, and which of them are valid: for others nothing is known yet.

    Args:
        written: URIs as written in a source; null ones are not plain.
        folder: what relative ones are relative to; an absolute path or URI that ends in a slash, and is normalized.
    """
    is_absolute = _matches(written, _ABSOLUTE)
    if is_absolute.all():
        return written, is_absolute
    is_local = "://" not in folder
    if is_local and not (folder.isascii() and "\\" not in folder):  # each path may be spelled otherwise on disk
        return written, is_absolute
    is_relative = _matches(written, _RELATIVE if is_local else _RELATIVE_IN_BUCKET)
    joined = pc.binary_join_element_wise(pa.scalar(folder), written, pa.scalar(""))
    return pc.if_else(pa.array(is_absolute), written, joined), is_absolute | is_relative


def _matches(texts: pa.StringArray, pattern: str) -> NDArray[np.bool_]:
    found = pc.fill_null(pc.match_substring_regex(texts, pattern), False)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
