"""The files of a source: what a folder, bucket prefix or pattern holds, with sizes and versions. Opens none of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.utils import glob_translate

from pipelines.category_names import some_of
from pipelines.storage import open_filesystem, protocol_of, read_info
from pipelines.tabular import SourceError, readable

_WILDCARDS = "*?[{"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MAX_NAMES = 100_000


class ListedFile(NamedTuple):
    """A file of a source.

    Attributes:
        path: inside its file system.
        name: below the source's folder; the file's own name where the source is that file.
        num_bytes, etag: as listed; None where the listing does not say.
        is_chosen: whether it is one that the source's pattern, if it has one, means.
    """

    path: str
    name: str
    num_bytes: int | None
    etag: str | None
    is_chosen: bool = True


class _Entry(NamedTuple):
    path: str
    num_bytes: int | None
    etag: str | None


def open_source(source: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Open the file system behind a source, and return it with the path inside it.

    Raises:
        SourceError: an unsupported protocol, or no bucket or dataset named.
    """
    with readable(source):
        fs, root = open_filesystem(source, storage_options)
    if protocol_of(source) in ("s3", "gs") and not root:
        raise SourceError(f"{source}: names no bucket; give {source.rstrip('/')}//<bucket>/<prefix>")
    if protocol_of(source) == "hf" and root.strip("/").count("/") < 2:
        raise SourceError(
            f"{source}: names no dataset; give hf://datasets/<user>/<name>, with a folder or file behind it"
        )
    return fs, root


def uri_of(fs: Any, path: str) -> str:
    """Return how a file of a file system is written in a plan: an absolute path, or a URI."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def has_wildcards(source: str) -> bool:
    """Say whether a source may be a pattern: it holds a wildcard or a brace."""
    return any(char in source for char in _WILDCARDS)


def find_files(source: str, storage_options: Mapping[str, Any] | None, wanted: tuple[str, ...]) -> Iterator[ListedFile]:
    """List the files of a folder, bucket prefix or pattern, linked folders included, in no promised order.

    A pattern holds ``*``, ``**``, ``?``, ``[...]``, ``{a,b}`` or ``{000..123}``; a folder or file whose real name holds
    these is just that.

    Args:
        source: path or URI; one file is fine too.
        storage_options: fsspec options.
        wanted: extensions, in lower case, of the files whose size and version are needed; of others they may be None.

    Raises:
        SourceError: it cannot be listed, or a file that a pattern names without a wildcard is missing.
    """
    fs, root = open_source(source, storage_options)
    with readable(source):
        pattern = None
        if has_wildcards(root) and not fs.exists(root):
            root, pattern = _split_pattern(root)
            if not root.strip("/") and not is_local(fs) and protocol_of(source) != "memory":
                raise SourceError(f"{source}: the bucket's name must be written out")
        choice = _Choice(source, pattern) if pattern else None
        base = root.rstrip("/") + "/"
        for entry in _lister(fs)(fs, root, choice.max_depth if choice else None, wanted):
            name = entry.path[len(base) :] or posixpath.basename(root)
            is_chosen = choice is None or choice.takes(name)
            if is_chosen and name.lower().endswith(wanted):
                _check_name(entry.path)
            yield ListedFile(entry.path, name, entry.num_bytes, entry.etag, is_chosen)
    if choice:
        choice.check_complete()


def look_up(fs: Any, path: str) -> ListedFile:
    """Return one file's size and version tag, as a listing would."""
    if is_local(fs):
        entry = _local_entry(path, os.stat(path))
    else:
        info = read_info(fs, path)
        entry = _Entry(path, info.get("size"), _version(info))
    return ListedFile(path, posixpath.basename(path), entry.num_bytes, entry.etag)


def is_local(fs: Any) -> bool:
    """Say whether a file system is this machine's own."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _split_pattern(path: str) -> tuple[str, str]:
    """Split a path into the folders before its first wildcard and the pattern below them."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_wildcards(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


class _Choice:
    """Which names a pattern means. Its braces are written out; a name without a wildcard must then be there."""

    def __init__(self, source: str, pattern: str) -> None:
        self._source = source
        patterns = _expand_braces(source, pattern)
        self._missing = {name for name in patterns if not any(char in name for char in "*?[")}
        self._names = frozenset(self._missing)
        self._matches: list[Callable[[str], Any]] = [
            re.compile(glob_translate(wild)).match for wild in patterns if wild not in self._names
        ]
        is_deep = any("**" in wild for wild in patterns)
        self.max_depth = None if is_deep else max(wild.count("/") for wild in patterns) + 1

    def takes(self, name: str) -> bool:
        """Say whether a name is meant."""
        if name in self._names:
            self._missing.discard(name)
            return True
        return any(matches(name) for matches in self._matches)

    def check_complete(self) -> None:
        """Refuse a pattern some of whose names were not there."""
        if self._missing:
            raise SourceError(
                f"{self._source}: {len(self._missing):,} of the {len(self._names):,} files that it names are not "
                f"there: {some_of(sorted(self._missing))}"
            )


def _expand_braces(source: str, pattern: str) -> list[str]:
    """Write out ``{a,b}`` and ``{000..123}``; any other brace is just that."""
    pieces: list[Iterable[str]] = []
    num_names, end = 1, 0
    for brace in _BRACES.finditer(pattern):
        first, last, words = brace.groups()
        options = words.split(",") if words is not None else _numbers(first, last)
        num_names *= len(options)
        if num_names > _MAX_NAMES:
            raise SourceError(f"{source}: its braces stand for more than {_MAX_NAMES:,} names; use a wildcard (*)")
        pieces += [[pattern[end : brace.start()]], options]
        end = brace.end()
    return ["".join(parts) for parts in itertools.product(*pieces, [pattern[end:]])]


def _numbers(first: str, last: str) -> list[str]:
    """Return the numbers from first to last, as wide as first is written; at most one more than may be."""
    numbers = range(int(first), int(last) + 1)[: _MAX_NAMES + 1]
    return [f"{number:0{len(first)}d}" for number in numbers]


def _lister(fs: Any) -> Callable[[Any, str, int | None, tuple[str, ...]], Iterator[_Entry]]:
    if is_local(fs):
        return _walk
    return _pages if hasattr(fs, "call_s3") else _find


def _pages(fs: Any, root: str, max_depth: int | None, _wanted: tuple[str, ...]) -> Iterator[_Entry]:
    """List S3 page by page: fsspec would hold every key of the bucket at once, and keep it."""
    bucket, key, _ = fs.split_path(root)
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
    if max_depth == 1:
        request["Delimiter"] = "/"
    is_empty = True
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for item in page.get("Contents", ()):
            is_empty = False
            if not item["Key"].endswith("/"):  # a folder as consoles make it
                yield _Entry(f"{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    if is_empty and key:
        with contextlib.suppress(FileNotFoundError):
            info = fs.info(root)
            if info["type"] == "file":  # the source is one file
                yield _Entry(root, info["size"], _version(info))


def _find(fs: Any, root: str, max_depth: int | None, _wanted: tuple[str, ...]) -> Iterator[_Entry]:
    """List another store: one flat listing, or one of a single folder; never a request for each file."""
    fs.invalidate_cache()  # a process that lists every night must see what is new
    is_one_folder = {"maxdepth": 1} if max_depth == 1 else {}
    for path, info in fs.find(root, detail=True, **is_one_folder).items():
        yield _Entry(path, info.get("size"), _version(info))


def _version(info: Mapping[str, Any]) -> str | None:
    """Return the version tag of a remote file: its ETag; on the Hugging Face Hub the id of what is committed."""
    return str(info.get("ETag") or info.get("etag") or info.get("blob_id") or "").strip('"') or None


def _walk(_fs: Any, root: str, max_depth: int | None, wanted: tuple[str, ...]) -> Iterator[_Entry]:
    """List local files folder by folder; only files that are wanted are looked at."""
    if os.path.isfile(root):
        yield _local_entry(root, os.stat(root))
        return
    # With each folder its depth, and the real folders of the links on the way to it.
    folders: list[tuple[str, int, tuple[str, ...]]] = [(root, 1, ())]
    while folders:
        folder, depth, passed = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    above = (*passed, os.path.realpath(folder)) if entry.is_symlink() else passed
                    if depth != max_depth and not (entry.is_symlink() and _leads_back(entry.path, above)):
                        folders.append((entry.path, depth + 1, above))
                elif entry.name.lower().endswith(wanted):
                    try:
                        yield _local_entry(entry.path, entry.stat())
                    except FileNotFoundError:  # a dangling link: listed, so that it is reported
                        yield _Entry(entry.path, None, None)
                else:
                    yield _Entry(entry.path, None, None)


def _local_entry(path: str, status: os.stat_result) -> _Entry:
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: not a regular file but a pipe, socket or device; remove or rename it")
    return _Entry(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _leads_back(link: str, above: Iterable[str]) -> bool:
    """Tell whether a linked folder contains its own link or one on the way to it, which would make the walk endless."""
    target = os.path.realpath(link)
    return any(folder == target or folder.startswith(target.rstrip("/") + "/") for folder in above)


def _check_name(path: str) -> None:
    if path.isascii():
        return
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"{path!r}: the file's name is not UTF-8, so no table can hold it; rename it") from error
