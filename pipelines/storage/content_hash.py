"""The SHA-256 of a file or folder, local or remote, cached within a process for as long as its listing is unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec

from pipelines.storage.client_errors import storage_errors
from pipelines.storage.filesystems import open_filesystem


def content_hash(uri: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of a file, or of the names, sizes and contents of all files in a folder, as a hex digest.

    Within a process nothing is read twice while the listing (names, sizes, times) stays the same.

    Raises:
        StorageError: the location cannot be read.
    """
    fs, path = open_filesystem(uri, options)
    with storage_errors(uri):
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
        # Names and sizes separate the files: without them, bytes moved from one file to the next would keep the digest.
        if len(names) > 1:
            digest.update(f"{name.removeprefix(path).lstrip('/')}\0{fs.size(name)}\0".encode())
        with fs.open(name, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
