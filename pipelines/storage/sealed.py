"""JSON objects that carry a checksum of their own bytes: any damage to one is seen when it is read.

The checksum is of the whole object, with the checksum itself written as zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SEAL, _DIGEST = "sealed", "sealed_sha256"
_ZEROS = "0" * 64
# Two keys: damage to the name of one does not make it an object of an earlier version, which has neither.
BLANK: Mapping[str, str] = {SEAL: "sha256", _DIGEST: _ZEROS}
"""What a document holds somewhere, once, for ``seal`` to fill in."""
# Inside of a string these quotes would stand behind backslashes.
_WHOLE = re.compile(rb'"sealed": "sha256",\s*"sealed_sha256": "([0-9a-f]{64})"')
_TRACE = re.compile(rb'"sealed(_sha256)?":')


class SealError(ValueError):
    """What was read is not what was written; the message says of the object how that is seen."""


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document that holds BLANK as bytes of JSON, with its checksum.

    Raises:
        ValueError: it does not hold BLANK just once.
    """
    data = json.dumps(document, indent=1).encode()
    found = list(_WHOLE.finditer(data))
    if len(found) != 1 or found[0][1] != _ZEROS.encode():
        raise ValueError("a document to be sealed holds BLANK once, and nothing that looks like it")
    return _with_digest(data, found[0], hashlib.sha256(data).hexdigest().encode())


def unseal(data: bytes) -> Any:
    """Return what bytes of JSON hold, and check the checksum if there is one: earlier versions wrote none.

    Raises:
        SealError: it is not JSON, or not what was sealed.
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
    """Say in words why what an object holds is not read as what it is to be.

    Args:
        document: what it holds.
        error: what reading it has raised.
    """
    if not isinstance(document, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        return f"it holds {kinds.get(type(document), 'a number')}, not a JSON object"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return f"{type(error).__name__}: {error}"


def _with_digest(data: bytes, found: re.Match[bytes], digest: bytes) -> bytes:
    return data[: found.start(1)] + digest + data[found.end(1) :]
