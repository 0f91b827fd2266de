"""The fingerprint of a run: everything that can change a row, by name; a resume under another config is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import fsspec

from pipelines.errors import PlanError
from pipelines.storage import explained, open_filesystem


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_fingerprint(run_id: str, planned: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuse to resume a run under another config.

    Raises:
        PlanError: naming each field that differs with both values.
    """
    theirs, ours = dict(planned), json.loads(json.dumps(dict(fingerprint)))
    differing = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]
    if differing:
        lines = [f"  {name}: planned {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in differing]
        raise PlanError(
            f"the output holds run {run_id!r}, planned with another configuration. These fields differ:\n"
            + "\n".join(lines)
            + "\nRestore them to resume it, give another run id to add a run beside it, or choose another output."
        )


def model_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides how a prompt is answered, whichever it is: the model, and the limits on images."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] in ("model", "decode")}


def source_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which image an id stands for: the source, and how its images are named; what is set of it."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] == "source" and value is not None}


def content_hash(uri: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 over a file, or over the names and contents of all files in a folder.

    Within a process nothing is read twice while the listing (names, sizes, times) stays the same.

    Raises:
        StorageError: it cannot be read.
    """
    fs, path = open_filesystem(uri, options)
    with explained(uri):
        found = fs.find(path, detail=True) or {path: fs.info(path)}
        listing = tuple(
            (name, info["size"], str(info.get("mtime") or info.get("ETag") or info.get("created")))
            for name, info in sorted(found.items())
        )
        if listing not in _hashed:
            _hashed[listing] = _hash(fs, path, [name for name, _, _ in listing])
    return _hashed[listing]


_hashed: dict[tuple[tuple[str, int, str], ...], str] = {}


def _hash(fs: fsspec.AbstractFileSystem, path: str, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        if len(names) > 1:
            digest.update(f"{name.removeprefix(path).lstrip('/')}\0{fs.size(name)}\0".encode())
        with fs.open(name, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
