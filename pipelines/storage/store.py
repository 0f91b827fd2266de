"""One output folder, wherever it lies, as a store of whole objects: put, create only, list, read, delete.

Retries of transient faults are the client library's own; nothing here loops on them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from pipelines.errors import DamagedError, ProtocolError, StorageError
from pipelines.layout import PROBE_PREFIX
from pipelines.storage.client_errors import error_code, storage_errors
from pipelines.storage.client_limits import REQUEST_TIMEOUT_S
from pipelines.storage.exclusive_names import CLAIM_PREFIX, sync_folder, take_name
from pipelines.storage.filesystems import (
    ALIASES,
    READ_ONLY_PROTOCOLS,
    SCHEMES,
    odd_part,
    open_filesystem,
    protocol_of,
    read_info,
)
from pipelines.storage.sealed import SealError, unseal

_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_REFUSED_CODES = frozenset({"PreconditionFailed", "412"})
_MAX_CONFLICT_TRIES = 5
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True)
class Store:
    """One folder of objects, named by paths relative to it with forward slashes.

    Attributes:
        uri: the folder as the user gave it.
        fs: its fsspec filesystem.
        root: the folder's path inside the filesystem.
    """

    uri: str
    fs: Any = field(repr=False)
    root: str = ""

    def path(self, name: str) -> str:
        """Return the path inside the filesystem of a relative name."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: it cannot be read.
        """
        return self._read(name)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return an object's bytes from ``start`` up to ``end``, as ``read`` does, with one request."""
        return self._read(name, start=start, end=end)

    def _read(self, name: str, **part: int) -> bytes:
        try:
            with storage_errors(f"{self.uri}/{name}"):
                return bytes(self.fs.cat_file(self.path(name), **part))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(f"{self.uri}/{name}") from error
            raise

    def read_json(self, name: str) -> Any:
        """Return what a JSON object holds.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: it cannot be read.
            DamagedError: what was read is no JSON, or does not have the checksum that it carries.
        """
        try:
            return unseal(self.read(name))
        except SealError as error:
            raise DamagedError(f"{self.uri}/{name}: {error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Put an object whole; a reader sees all of it or nothing. For names that no other writer uses."""
        with storage_errors(f"{self.uri}/{name}"):
            if self.is_local:
                _publish_local(self.path(name), data, create=False)
            else:
                self.fs.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object only if there is none of that name: the primitive under plans and commits.

        The bytes must be unique to their writer (hold its attempt or driver id): after a lost answer the client repeats
        the put, and the refusal of the repeat is told from a true loss by reading the object back.

        Returns:
            True if the object now holds exactly these bytes, False if somebody else's were there first.

        Raises:
            StorageError: the store failed, or kept answering "conflict" without an object appearing.
        """
        # Each try has its own time: all of them together may take hardly more than one.
        deadline = time.monotonic() + getattr(self.fs, "request_timeout_s", REQUEST_TIMEOUT_S)
        for number in range(_MAX_CONFLICT_TRIES):
            if number and time.monotonic() > deadline:
                break
            try:
                self._create_once(name, data)
                return True
            except FileExistsError:
                pass
            try:
                held = self.read(name)
            except FileNotFoundError:
                continue  # a conflicting put was refused while the other one has not landed: ask again
            if held != data and data.startswith(held):
                raise StorageError(f"{self.uri}/{name}: read {len(held)} of {len(data)} bytes back; try again")
            return held == data
        claim = f"{PurePosixPath(name).parent}/{CLAIM_PREFIX}{PurePosixPath(name).name}"
        if self.is_local and os.path.exists(self.path(claim)):
            raise StorageError(
                f"{self.uri}/{name}: another driver is about to write it, or has died doing so; if none is running, "
                f"remove {self.path(claim)}, or run vacuum"
            )
        raise StorageError(f"{self.uri}/{name}: the store refuses a create-only put although the object does not exist")

    def _create_once(self, name: str, data: bytes) -> None:
        try:
            if self.is_local:
                _publish_local(self.path(name), data, create=True)
            else:
                self.fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            raise
        except Exception as error:
            if error_code(error) in _REFUSED_CODES | _CONFLICT_CODES:
                raise FileExistsError(name) from error
            with storage_errors(f"{self.uri}/{name}"):
                raise

    def find(self, prefix: str) -> dict[str, int]:
        """List all objects below a relative folder: {relative name: size in bytes}. Empty if the folder is missing."""
        return {name: size for name, size in self._files(prefix).items() if not _is_temporary(name)}

    def unfinished(self, prefix: str) -> list[str]:
        """List what writers that died were in the middle of: temporary files, which only local folders have."""
        return sorted(name for name in self._files(prefix) if _is_temporary(name)) if self.is_local else []

    def _files(self, prefix: str) -> dict[str, int]:
        base = self.path(prefix)
        try:
            with storage_errors(f"{self.uri}/{prefix}"):
                entries = self.fs.find(base, detail=True)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise
        skip = len(self.root.rstrip("/")) + 1
        return {path[skip:]: int(info["size"]) for path, info in entries.items() if info["type"] == "file"}

    def folders(self, prefix: str) -> list[str]:
        """List the names of the folders directly below a relative folder, sorted; empty if it is missing."""
        try:
            with storage_errors(f"{self.uri}/{prefix}"):
                entries = self.fs.ls(self.path(prefix), detail=True)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")

    def exists(self, name: str) -> bool:
        """Say whether an object of this name exists."""
        with storage_errors(f"{self.uri}/{name}"):
            return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Return an object's bytes, None if there is no such object; asks for it by name.

        Raises:
            StorageError: the store does not answer.
        """
        return None if (info := self._info(name)) is None else int(info["size"])

    def _info(self, name: str) -> Mapping[str, Any] | None:
        try:
            with storage_errors(f"{self.uri}/{name}"):
                return read_info(self.fs, self.path(name))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def modified_at(self, name: str) -> float | None:
        """Return when an object was written, by the store's own clock, in seconds; None if there is no such object.

        Raises:
            StorageError: the store does not answer, or does not say when.
        """
        if (info := self._info(name)) is None:
            return None
        # Local files: mtime; memory: created; S3: LastModified; GCS: mtime or updated.
        found = next((info[key] for key in ("LastModified", "mtime", "updated", "created") if info.get(key)), None)
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found.timestamp()
        if found is None:
            raise StorageError(f"{self.uri}/{name}: the store does not say when it was written")
        return float(found)

    def delete(self, name: str) -> None:
        """Delete an object; deleting a missing one is not an error."""
        with storage_errors(f"{self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine."""
        return protocol_of(self.uri) == "file"


def open_store(uri: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open an output folder. Nothing is created or contacted yet.

    Raises:
        StorageError: it is the root of a file system, of a kind that is only read, or a name that not every client
            takes as it is written.
    """
    if protocol_of(uri) in READ_ONLY_PROTOCOLS:
        raise ProtocolError(f"{uri!r}: hf:// is only read here, as a source; write to a path, s3:// or gs://")
    _check_output_name(uri)
    fs, root = open_filesystem(uri, options)
    if not root.strip("/"):
        raise StorageError(f"{uri!r}: an output needs a folder name, not the root of the file system")
    return Store(uri=uri.rstrip("/"), fs=fs, root=root)


def _check_output_name(uri: str) -> None:
    """Refuse an output whose objects a listing would show under other names than they were written, or not at all."""
    if "\0" in uri or any("\ud800" <= char <= "\udfff" for char in uri):
        raise StorageError(f"{uri!r}: an output's name must be UTF-8 without null characters; give another")
    if part := odd_part(uri):
        raise StorageError(
            f"{uri!r}: an output's name must not hold {part}, which stores write and list under different names; give "
            "one without it"
        )
    if protocol_of(uri) == "s3" and "?versionId=" in uri:
        raise StorageError(
            f"{uri!r}: an output's name must not end in ?versionId=..., which means one object's version"
        )
    scheme, colon, rest = uri.partition(":")
    if colon and "://" not in uri and rest.startswith("/") and scheme.lower() in SCHEMES:
        slashes = ":///" if ALIASES.get(scheme.lower(), scheme.lower()) == "file" else "://"
        raise StorageError(f"{uri!r}: a URI has two slashes; did you mean {scheme}{slashes}{rest.lstrip('/')} ?")


def probe_create_only(store: Store) -> None:
    """Check that the store refuses a second create-only put: without that two drivers could both commit a shard.

    Raises:
        StorageError: the store cannot be written, or it accepts the second put.
    """
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    try:
        store.create(name, b"first")
        accepted = store.create(name, b"second")
    finally:
        with contextlib.suppress(OSError):
            store.delete(name)
    if accepted:
        raise StorageError(
            f"{store.uri}: this store ignores conditional writes (If-None-Match), so it cannot guarantee that a shard "
            "is committed once. Use another store, or set single_driver = true and run one driver at a time."
        )


def _is_temporary(name: str) -> bool:
    return PurePosixPath(name).name.startswith(_TEMPORARY)


def _publish_local(path: str, data: bytes, *, create: bool) -> None:
    """Write a file whole or not at all, and durably: temporary file, fsync, link or rename, fsync of the folder."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if create:
            take_name(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_folder(folder)
