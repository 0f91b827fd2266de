"""An output folder, local or remote, as a store of whole objects: put, create-only put, list, read, delete.

Transient faults are retried by the client libraries, not here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from pipelines.errors import DamagedError, ProtocolError, StorageError
from pipelines.layout import PROBE_PREFIX
from pipelines.storage.checksummed_json import SealError, unseal
from pipelines.storage.client_errors import error_code, storage_errors
from pipelines.storage.client_limits import REQUEST_TIMEOUT_S
from pipelines.storage.exclusive_names import CLAIM_PREFIX, sync_folder, take_name
from pipelines.storage.filesystems import (
    ALIASES,
    READ_ONLY_PROTOCOLS,
    SCHEMES,
    odd_part,
    open_filesystem,
    path_exists,
    protocol_of,
    read_info,
)

# 412: an object of this name exists. 409: another conditional put of this name is under way; who wins is still open.
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
        """Return the path of a relative name inside the filesystem."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the object cannot be read.
        """
        return self._read(name)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return an object's bytes from ``start`` up to ``end`` (exclusive), in one request; errors as for ``read``."""
        return self._read(name, start=start, end=end)

    def _read(self, name: str, **part: int) -> bytes:
        with self._looking_for(name):
            return bytes(self.fs.cat_file(self.path(name), **part))

    @contextlib.contextmanager
    def _looking_for(self, name: str) -> Iterator[None]:
        """Raise a StorageError in place of a client's exception, but a FileNotFoundError where nothing has the name."""
        try:
            with storage_errors(f"{self.uri}/{name}"):
                yield
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(f"{self.uri}/{name}") from error
            raise

    def read_json(self, name: str) -> Any:
        """Read and parse a JSON object, and verify its checksum if it carries one.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the object cannot be read.
            DamagedError: it is not JSON, or does not match its checksum.
        """
        try:
            return unseal(self.read(name))
        except SealError as error:
            raise DamagedError(f"{self.uri}/{name}: {error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Put an object atomically: a reader sees all of it or nothing. Only for names that no other writer uses."""
        with storage_errors(f"{self.uri}/{name}"):
            if self.is_local:
                _publish_local(self.path(name), data, create=False)
            else:
                self.fs.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object only if none of that name exists: the primitive that plans and commits rest on.

        The bytes must be unique to their writer (contain its attempt or driver id). If the answer to a put is lost, the
        client repeats it and the repeat is refused; reading the object back tells that case from a lost race.

        Returns:
            True if the object now holds exactly these bytes, False if another writer was first.

        Raises:
            StorageError: the store failed, or kept answering "conflict" without an object appearing.
        """
        # Each request has its own timeout; this deadline keeps their sum from becoming a multiple of it.
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
                continue  # refused because of another put that has not landed yet: try again
            # A read that ended early must not count as a lost race: the files of a commit that did land would go.
            if held != data and data.startswith(held):
                raise StorageError(f"{self.uri}/{name}: read {len(held)} of {len(data)} bytes back; try again")
            # The bytes name their writer, so equal ones are our own: from a put whose answer was lost.
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
                # Sends If-None-Match: *. It stays one conditional PUT because objects are far below the size from
                # which clients switch to a multipart upload.
                self.fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            raise
        except Exception as error:
            # s3fs raises FileExistsError for the 412 of some servers and a plain OSError for that of others: only the
            # error code is reliable.
            if error_code(error) in _REFUSED_CODES | _CONFLICT_CODES:
                raise FileExistsError(name) from error
            with storage_errors(f"{self.uri}/{name}"):
                raise

    def find(self, prefix: str) -> dict[str, int]:
        """List all objects below a relative folder as {relative name: size in bytes}; empty if there is no folder."""
        return {name: size for name, size in self._files(prefix).items() if not _is_temporary(name)}

    def unfinished(self, prefix: str) -> list[str]:
        """List the temporary files of writers that died in the middle of a write; only local folders have any."""
        return sorted(name for name in self._files(prefix) if _is_temporary(name)) if self.is_local else []

    def _files(self, prefix: str) -> dict[str, int]:
        entries: Mapping[str, Any] = {}
        with contextlib.suppress(FileNotFoundError), self._looking_for(prefix):
            entries = self.fs.find(self.path(prefix), detail=True)
        skip = len(self.root.rstrip("/")) + 1
        return {path[skip:]: int(info["size"]) for path, info in entries.items() if info["type"] == "file"}

    def folders(self, prefix: str) -> list[str]:
        """List the names of the folders directly below a relative folder, sorted; empty if there is none."""
        return self._level(prefix, "directory")

    def _level(self, prefix: str, kind: str) -> list[str]:
        entries: Sequence[Mapping[str, Any]] = ()
        with contextlib.suppress(FileNotFoundError), self._looking_for(prefix):
            entries = self.fs.ls(self.path(prefix), detail=True)
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == kind)

    def files(self, prefix: str) -> list[str]:
        """List the names of the objects directly in a relative folder, sorted; empty if there is none."""
        return [name for name in self._level(prefix, "file") if not _is_temporary(name)]

    def exists(self, name: str) -> bool:
        """Return whether an object of this name exists."""
        with storage_errors(f"{self.uri}/{name}"):
            return path_exists(self.fs, self.path(name))

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, None if there is no such object.

        Looks the object up by name, since a listing may lag behind.

        Raises:
            StorageError: the store does not answer.
        """
        return None if (info := self._info(name)) is None else int(info["size"])

    def _info(self, name: str) -> Mapping[str, Any] | None:
        with contextlib.suppress(FileNotFoundError), self._looking_for(name):
            return read_info(self.fs, self.path(name))
        return None

    def modified_at(self, name: str) -> float | None:
        """Return when an object was written, in seconds since the epoch by the store's own clock.

        Returns:
            None if there is no such object.

        Raises:
            StorageError: the store does not answer, or does not report a time.
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
        """Delete an object. Deleting one that does not exist is not an error."""
        with storage_errors(f"{self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    @property
    def is_local(self) -> bool:
        """Whether the objects are local files."""
        return protocol_of(self.uri) == "file"


def open_store(uri: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open an output folder. Nothing is created or contacted yet.

    Raises:
        StorageError: the location is the root of a file system, of a read-only protocol, or has a name that storage
            clients and servers interpret differently.
    """
    if protocol_of(uri) in READ_ONLY_PROTOCOLS:
        raise ProtocolError(f"{uri!r}: hf:// is only read here, as a source; write to a path, s3:// or gs://")
    _check_output_name(uri)
    fs, root = open_filesystem(uri, options)
    if not root.strip("/"):
        raise StorageError(f"{uri!r}: an output needs a folder name, not the root of the file system")
    return Store(uri=uri.rstrip("/"), fs=fs, root=root)


def _check_output_name(uri: str) -> None:
    """Refuse an output whose objects a listing would not show, or not under the names they were written with."""
    # Lone surrogates are how Python represents file names that are not UTF-8.
    if "\0" in uri or any("\ud800" <= char <= "\udfff" for char in uri):
        raise StorageError(f"{uri!r}: an output's name must be UTF-8 without null characters; give another")
    if part := odd_part(uri):
        raise StorageError(
            f"{uri!r}: an output's name must not hold {part}, which stores write and list under different names; give "
            "one without it"
        )
    # s3fs takes ?versionId= inside a key for a version of the object before it.
    if protocol_of(uri) == "s3" and "?versionId=" in uri:
        raise StorageError(
            f"{uri!r}: an output's name must not end in ?versionId=..., which means one object's version"
        )
    scheme, colon, rest = uri.partition(":")
    if colon and "://" not in uri and rest.startswith("/") and scheme.lower() in SCHEMES:
        slashes = ":///" if ALIASES.get(scheme.lower(), scheme.lower()) == "file" else "://"
        raise StorageError(f"{uri!r}: a URI has two slashes; did you mean {scheme}{slashes}{rest.lstrip('/')} ?")


def probe_create_only(
    store: Store, without: str = "set output.single_driver = true and run one driver at a time"
) -> None:
    """Check that the store refuses a second create-only put; without that, two drivers could both commit a shard.

    Some S3 servers ignore If-None-Match and answer "success", so only trying tells.

    Args:
        store: the output.
        without: what else can be done than to use another store.

    Raises:
        StorageError: the store cannot be written, or accepts the second put.
    """
    # A new name each time: an object left by an earlier probe would refuse both puts.
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
            f"is committed once. Use another store, or {without}."
        )


def _is_temporary(name: str) -> bool:
    return PurePosixPath(name).name.startswith(_TEMPORARY)


def _publish_local(path: str, data: bytes, *, create: bool) -> None:
    """Write a file atomically and durably: temporary file, fsync, link or rename, fsync of the folder."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            # Before the name: after a power cut a name could otherwise point to an empty or partial file.
            os.fsync(file.fileno())
        if create:
            take_name(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        # After a hard link the temporary name still exists; after a rename it does not.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_folder(folder)
