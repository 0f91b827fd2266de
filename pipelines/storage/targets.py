"""Where a result goes: a new file or folder, on this machine's disks or in an object store.

On disk it appears under its name once it is complete. In an object store a file does; of a folder the files at its top
(an export's own index) come last, so that whoever sees them sees all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import StorageError
from pipelines.storage.client_errors import storage_errors
from pipelines.storage.filesystems import PROTOCOLS, absolute_uri, odd_part, open_filesystem, protocol_of
from pipelines.storage.local_files import publish, temporary_beside

_RUNS = "_runs"
_OF_THE_TABLE = ("annotations", "images", _RUNS)
_UPLOADS = 16
# Endings that a folder has by mistake alone; others may be part of its name, as in labels.v2.
_OF_FILES = (
    *(".csv", ".gz", ".html", ".htm", ".jpg", ".json", ".jsonl", ".ndjson", ".parquet", ".pdf", ".png", ".svg", ".tar"),
    *(".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A file or folder to be written.

    Attributes:
        uri: an absolute path, or the URI of an object or prefix.
        overwrite: whether what is there may be replaced.
        replaces: patterns of the names that a folder may hold for it to be replaced as a whole.
    """

    uri: str
    overwrite: bool = False
    replaces: Sequence[str] = ()

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's disks."""
        return protocol_of(self.uri) == "file"

    @property
    def suffix(self) -> str:
        """The name's suffix, with its dot; empty if it has none."""
        return PurePosixPath(self.uri).suffix

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.uri).name

    def check(self) -> None:
        """Check, before any work is done, that nothing is there that may not be replaced.

        Raises:
            StorageError: something is.
        """
        held = self._held()
        if held is None:
            return
        if _RUNS in held:
            raise StorageError(f"{self.uri} is an output of runs, which nothing replaces; name another place")
        others = [name for name in held if not any(fnmatchcase(name, pattern) for pattern in self.replaces)]
        if others and not self.overwrite:
            raise StorageError(
                f"{self.uri} exists already, and holds {others[0]}, which is no part of such a result; name a new one"
            )
        if others:
            raise StorageError(
                f"{self.uri} holds {others[0]}, which is no part of such a result: --overwrite leaves it as it is"
            )
        if not self.overwrite:
            raise StorageError(f"{self.uri} exists already; name a new one, remove it, or add --overwrite")

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """Make a private folder in which the result is prepared, and remove it at the end.

        Missing parent folders are made, and removed again if there is an error.

        Raises:
            StorageError: it cannot be made.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="xsam-label-") as temporary:
                yield Path(temporary)
            return
        path = Path(self.uri)
        missing = [folder for folder in path.parents if not os.path.lexists(folder)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent} is no folder and cannot be made one: {error}") from error
        try:
            with temporary_beside(path) as folder:
                yield folder
        except BaseException:
            for empty in missing:
                with contextlib.suppress(OSError):
                    empty.rmdir()
            raise

    def publish(self, whole: Path) -> None:
        """Give a complete file or folder its final name.

        Args:
            whole: the file or folder, below what ``place`` made.

        Raises:
            StorageError: something is there by now that may not be replaced, or it cannot be written.
        """
        if not self.is_local:
            self._upload(whole)
        elif whole.is_dir() and self.overwrite and os.path.lexists(self.uri):
            self._replace_folder(whole)
        else:
            publish(whole, Path(self.uri), overwrite=self.overwrite)

    def _held(self) -> list[str] | None:
        """Return the names at the top of the folder that is there; empty for a file, None if there is nothing."""
        if self.is_local:
            path = Path(self.uri)
            if path.is_dir() and not path.is_symlink():
                return sorted(os.listdir(path))
            return [] if os.path.lexists(path) else None
        fs, path_there = open_filesystem(self.uri)
        with storage_errors(self.uri):
            if fs.isfile(path_there):
                return []
            if not fs.exists(path_there):
                return None
            return sorted(PurePosixPath(name).name for name in fs.ls(path_there, detail=False))

    def _replace_folder(self, whole: Path) -> None:
        self.check()
        target = Path(self.uri)
        aside = target.with_name(f".{target.name[:100]}.replaced-{secrets.token_hex(4)}")
        try:
            target.rename(aside)
            try:
                publish(whole, target)
            except StorageError:
                aside.rename(target)
                raise
        except OSError as error:
            raise StorageError(f"{target} cannot be replaced: {error}") from error
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()

    def _upload(self, whole: Path) -> None:
        fs, path = open_filesystem(self.uri)
        with storage_errors(self.uri):
            if not whole.is_dir():
                self._put(fs, whole, path)
                return
            self.check()
            held = (file for file in whole.rglob("*") if file.is_file())
            files = {f"{path}/{file.relative_to(whole).as_posix()}": file for file in held}
            stale = set(fs.find(path)) - files.keys()
            top = {name for name, file in files.items() if file.parent == whole}
            with ThreadPoolExecutor(_UPLOADS) as uploads:
                for part in (files.keys() - top, top):
                    list(uploads.map(lambda name: self._put(fs, files[name], name), sorted(part)))
            # What an earlier result had and this one has not would be taken for a part of it.
            for name in sorted(stale):
                fs.rm_file(name)

    def _put(self, fs: Any, file: Path, name: str) -> None:
        try:
            fs.put_file(str(file), name, mode="overwrite" if self.overwrite else "create")
        except FileExistsError:
            raise StorageError(f"{self.uri} was made by another meanwhile; it is left as it is") from None


def open_target(
    uri: str,
    *,
    overwrite: bool = False,
    replaces: Sequence[str] = (),
    output: str = "",
    suffixes: Sequence[str] = (),
    what: str = "",
) -> Target:
    """Check that a result can be written, and return where.

    Args:
        uri: path or URI of a file or folder.
        overwrite: whether a file that is there may be replaced, and a folder that holds nothing but such a result.
        replaces: patterns of the names at the top of such a folder.
        output: the output that is read, in whose own folders nothing may be written.
        suffixes: endings of files that suit the result, in lower case.
        what: what the result is, for the message where its name ends like another kind of file; if empty any name does.

    Raises:
        StorageError: something is there that may not be replaced, it lies inside the table, it is no place to write, or
            its name is that of another kind of file.
    """
    if (protocol := protocol_of(uri)) not in PROTOCOLS:
        raise StorageError(f"{uri}: nothing can be written to {protocol}://; name a path, or one of s3://, gs://")
    if odd := odd_part(uri):
        raise StorageError(f"{uri} contains {odd}, which stores read differently; write it without")
    place = absolute_uri(uri)
    if output:
        own = [f"{absolute_uri(output)}/{part}" for part in _OF_THE_TABLE]
        if inside := next((folder for folder in own if f"{place}/".startswith(f"{folder}/")), None):
            raise StorageError(f"{place} lies inside the table's own folder {inside}; name another place")
    target = Target(place, overwrite, tuple(replaces))
    suffix = "" if uri.endswith("/") else target.suffix.lower()
    if what and suffix in _OF_FILES and suffix not in suffixes:
        raise StorageError(f"{place} is named like another kind of file: {what}")
    target.check()
    return target


def write_target(target: Target, data: bytes) -> None:
    """Write one file.

    Raises:
        StorageError: as for ``Target.publish``.
    """
    with target.place() as place:
        whole = place / "whole"
        try:
            whole.write_bytes(data)
        except OSError as error:
            raise StorageError(f"{target.uri} cannot be written: {error}") from error
        target.publish(whole)
