"""The SHA-256 of a file or folder, local or remote, kept for as long as its listing is unchanged.

Within a process, and of large local files for all processes of this machine and account, in the user's cache folder: a
model's weights are read once, not by every command and every replica.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from pipelines.storage.client_errors import storage_errors
from pipelines.storage.filesystems import open_filesystem

KEPT_FROM_BYTES = 64 * 2**20
"""Less is hashed in a moment, and kept by no file."""
# A file that changes again right after it was hashed may keep its times, whose grain is coarser than that.
_SETTLED_S = 10.0


def content_hash(uri: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the SHA-256 of a file, or of the names, sizes and contents of all files in a folder, as a hex digest.

    Within a process nothing is read twice while the listing (names, sizes, times) stays the same; nor are, within this
    machine and account, local files of KEPT_FROM_BYTES or more, whose inodes count as well.

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
            kept = _kept_at(list(found.values()))
            digest = _read_kept(kept)
            if not digest:
                digest = _hash(fs, path, [name for name, _, _ in listing])
                _keep(kept, digest)
            _hashed[listing] = digest
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


def _kept_at(files: Sequence[Mapping[str, Any]]) -> Path | None:
    """Return the file that keeps the hash of local files as they are now; None if it is not to be kept."""
    if any("ino" not in info for info in files) or sum(info["size"] for info in files) < KEPT_FROM_BYTES:
        return None
    # The time of the last change of the inode is set by the system alone: a copy that keeps times does not have it.
    if max(max(info["mtime"], info["created"]) for info in files) > time.time() - _SETTLED_S:
        return None
    columns = ("name", "size", "ino", "mtime", "created")
    identity = repr(sorted(tuple(info[column] for column in columns) for info in files))
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "xsam-label", "hashes", hashlib.sha256(identity.encode()).hexdigest())


def _read_kept(kept: Path | None) -> str:
    try:
        text = kept.read_text(encoding="ascii") if kept is not None else ""
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""


def _keep(kept: Path | None, digest: str) -> None:
    if kept is None:
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_name(f"{kept.name}-{secrets.token_hex(4)}")
        new.write_text(digest, encoding="ascii")
        new.replace(kept)
    except OSError:
        pass  # a home that cannot be written: it is hashed again next time
