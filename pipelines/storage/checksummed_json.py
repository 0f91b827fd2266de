"""JSON objects with a checksum of their own bytes (a seal), so that any damage is noticed when they are read.

The checksum is the SHA-256 of the whole object with zeros in place of the checksum itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from pipelines.bounded_json import plain_json

SEAL, _DIGEST = "sealed", "sealed_sha256"
_ZEROS = "0" * 64
# Two keys: earlier versions wrote neither, so damage to the name of one cannot pass for an object without a seal.
BLANK: Mapping[str, str] = {SEAL: "sha256", _DIGEST: _ZEROS}
"""Placeholder that a document contains exactly once, at any depth, and ``seal`` fills in."""
# Searched in the bytes, not in the parsed document, since any damaged byte counts. A JSON string cannot imitate it:
# inside one these quotes are escaped.
_WHOLE = re.compile(rb'"sealed": "sha256",\s*"sealed_sha256": "([0-9a-f]{64})"')
# Part of a seal without the whole means that the seal itself is damaged.
_TRACE = re.compile(rb'"sealed(_sha256)?":')


class SealError(ValueError):
    """An object's bytes are not those that were written; the message says what is wrong with them."""


def seal(document: Mapping[str, Any]) -> bytes:
    """Serialize a document that contains BLANK to JSON, with the checksum filled in; NaN and infinities become null.

    Raises:
        ValueError: the document does not contain BLANK exactly once.
    """
    data = json.dumps(plain_json(document), indent=1).encode()
    found = list(_WHOLE.finditer(data))
    if len(found) != 1 or found[0][1] != _ZEROS.encode():
        raise ValueError("a document to be sealed holds BLANK once, and nothing that looks like it")
    return _with_digest(data, found[0], hashlib.sha256(data).hexdigest().encode())


def unseal(data: bytes) -> Any:
    """Parse JSON and verify its checksum; objects without one, from earlier versions, are accepted.

    Raises:
        SealError: the bytes are not JSON, or not those that were sealed.
    """
    found = list(_WHOLE.finditer(data))
    if found:
        blank = _with_digest(data, found[0], _ZEROS.encode())
        if hashlib.sha256(blank).hexdigest().encode() != found[0][1]:
            raise SealError("it does not have the SHA-256 that it was written with")
    elif _TRACE.search(data):
        raise SealError("its checksum is damaged")
    try:
        return json.loads(data)
    except ValueError as error:
        raise SealError(f"the {len(data)} bytes read are no whole JSON document ({error})") from error
    except RecursionError as error:
        raise SealError("it is nested too deeply to be one of ours") from error


def misfit(document: Any, error: Exception) -> str:
    """Explain why a parsed document could not be read as the kind of object expected.

    Args:
        document: the parsed JSON.
        error: the exception that reading it raised.
    """
    if not isinstance(document, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        return f"it holds {kinds.get(type(document), 'a number')}, not a JSON object"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return f"{type(error).__name__}: {error}"


def _with_digest(data: bytes, found: re.Match[bytes], digest: bytes) -> bytes:
    return data[: found.start(1)] + digest + data[found.end(1) :]
