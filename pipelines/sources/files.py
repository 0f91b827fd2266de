"""List the files of a folder, bucket prefix or pattern, with sizes and version tags. No file is opened."""

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

from pipelines.errors import SourceError, some_of
from pipelines.image_formats import LeftOut, is_clutter
from pipelines.layout import EXPORT_MARK
from pipelines.redaction import quoted
from pipelines.sources.image_batches import BATCH_SIZE
from pipelines.sources.tabular import source_errors
from pipelines.storage.filesystems import odd_part, open_filesystem, protocol_of, read_info

_WILDCARDS = "*?[{"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
# A pattern's braces are expanded in memory, and {1..9}{1..9}... grows by a factor with each.
_MAX_NAMES = 100_000
_UNKNOWN = (None, None)
_FROZEN = ("GLACIER", "DEEP_ARCHIVE")  # S3's storage classes whose objects must be restored before they can be read


class ListedFile(NamedTuple):
    """A file of a source.

    Attributes:
        path: its path inside the file system.
        name: its path below the source's folder; the file's own name if the source is that file.
        num_bytes, etag: as listed; None if the listing does not give them.
    """

    path: str
    name: str
    num_bytes: int | None
    etag: str | None


class ListedFiles(NamedTuple):
    """A batch of a source's files.

    Attributes:
        base: path of the source's folder inside the file system, ending in a separator.
        images: image files as columns: names below the folder, sizes and version tags, as in ListedFile.
        holders: files that may contain images (tars, tables).
    """

    base: str
    images: tuple[list[str], list[int | None], list[str | None]]
    holders: list[ListedFile]


# A file's size and version tag; and an entry of a listing: the file's name below the source's folder, with both.
_Facts = tuple[int | None, str | None]
_Entry = tuple[str, _Facts]


def open_source(source: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Open a source's file system, and return it with the path inside it.

    Raises:
        SourceError: an unsupported protocol, or the name of a bucket or dataset is missing.
    """
    with source_errors(source):
        fs, root = open_filesystem(source, storage_options)
    if protocol_of(source) in ("s3", "gs") and not root:
        raise SourceError(f"{source}: names no bucket; give {source.rstrip('/')}//<bucket>/<prefix>")
    if protocol_of(source) == "hf" and root.strip("/").count("/") < 2:
        raise SourceError(
            f"{source}: names no dataset; give hf://datasets/<user>/<name>, with a folder or file behind it"
        )
    return fs, root


def uri_of(fs: Any, path: str) -> str:
    """Return a file's location as plans record it: an absolute path, or a URI."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def has_wildcards(source: str) -> bool:
    """Return whether a source may be a pattern: whether it contains a wildcard or a brace."""
    return any(char in source for char in _WILDCARDS)


def find_files(
    source: str,
    storage_options: Mapping[str, Any] | None,
    images: tuple[str, ...],
    holders: tuple[str, ...],
    left_out: LeftOut,
) -> Iterator[ListedFiles]:
    """List the files of a folder, bucket prefix or pattern, linked folders included, in unspecified order.

    A pattern contains ``*``, ``**``, ``?``, ``[...]``, ``{a,b}`` or ``{000..123}``. If a folder or file really has such
    a name, it is taken literally. Hidden files and folders (see is_clutter) are left out unless the pattern writes
    their dot, and so are folders that this program exported.

    Args:
        source: path or URI; may be a single file.
        storage_options: fsspec options.
        images: extensions of image files, in lower case.
        holders: extensions of files that may contain images, in lower case.
        left_out: counts the other files.

    Raises:
        SourceError: the source cannot be listed, or a file that a pattern names without a wildcard is missing.
    """
    fs, root = open_source(source, storage_options)
    with source_errors(source):
        pattern = None
        if has_wildcards(root) and not fs.exists(root):
            root, pattern = _split_pattern(root)
            if not root.strip("/") and not is_local(fs) and protocol_of(source) != "memory":
                raise SourceError(f"{source}: the bucket's name must be written out")
        choice = _Choice(source, pattern) if pattern else None
        entries = _lister(fs)(fs, root, choice.max_depth if choice else None, (*images, *holders), left_out)
        first = next(entries, None)
        base = root.rstrip("/") + "/"
        if first is not None and not first[0]:  # the source is one file
            base, name = root[: -len(posixpath.basename(root))], posixpath.basename(root)
            first = (name, first[1])
            yield from _gathered(base, iter([first]), images, holders, left_out)
        elif first is not None:
            chosen = _chosen(itertools.chain([first], entries), choice, left_out)
            yield from _gathered(base, chosen, images, holders, left_out)
    if choice:
        choice.check_complete()


def _chosen(entries: Iterable[_Entry], choice: _Choice | None, left_out: LeftOut) -> Iterator[_Entry]:
    """Leave out what does not match the pattern, what is hidden, and what this program exported."""
    exported, mark = None, f"/{EXPORT_MARK}"
    takes_hidden = choice is not None and choice.takes_hidden
    for name, facts in entries:
        if exported is not None and name.startswith(exported):
            continue
        # The mark comes first of its folder in a sorted listing. A source that is an export itself is taken.
        if name.endswith(mark):
            exported = name.removesuffix(EXPORT_MARK)
            left_out.exported += 1
        elif choice is not None and not choice.takes(name):
            left_out.others += 1
        elif not takes_hidden and is_clutter(name):
            left_out.add(name)
        else:
            yield name, facts


def _gathered(
    base: str, entries: Iterator[_Entry], images: tuple[str, ...], holders: tuple[str, ...], left_out: LeftOut
) -> Iterator[ListedFiles]:
    """Sort files by extension into images, holders and others, and yield them in batches."""
    names, sizes, etags = found = (list[str](), list[int | None](), list[str | None]())
    held = list[ListedFile]()
    for name, (num_bytes, etag) in entries:
        if name.lower().endswith(images):
            names.append(name)
            sizes.append(num_bytes)
            etags.append(etag)
            if len(names) == BATCH_SIZE:
                yield ListedFiles(base, found, held)
                names, sizes, etags = found = ([], [], [])
                held = []
        elif name.lower().endswith(holders):
            check_name(base + name)
            held.append(ListedFile(base + name, name, num_bytes, etag))
        else:
            left_out.add(name)
    yield ListedFiles(base, found, held)


def look_up(fs: Any, path: str) -> ListedFile:
    """Return one file's size and version tag, as a listing would."""
    facts = _local_facts(path, "", os.stat(path)) if is_local(fs) else _facts(read_info(fs, path))
    return ListedFile(path, posixpath.basename(path), *facts)


def is_local(fs: Any) -> bool:
    """Return whether a file system is the local one."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _split_pattern(path: str) -> tuple[str, str]:
    """Split a path into the folders before its first wildcard, and the pattern below them."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if has_wildcards(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


class _Choice:
    """The names that match a pattern. Braces are expanded first; each name without a wildcard must then exist.

    A shard missing from ``shard-{000..123}.tar`` is an error, as a shell would report it, not a smaller collection.
    """

    def __init__(self, source: str, pattern: str) -> None:
        self._source = source
        patterns = _expand_braces(source, pattern)
        self._missing = {name for name in patterns if not any(char in name for char in "*?[")}
        self._names = frozenset(self._missing)
        self._matches: list[Callable[[str], Any]] = [
            re.compile(glob_translate(wild)).match for wild in patterns if wild not in self._names
        ]
        is_deep = any("**" in wild for wild in patterns)
        self.takes_hidden = any(is_clutter(f"{wild}/") for wild in patterns)  # written out, as for a shell
        self.max_depth = None if is_deep else max(wild.count("/") for wild in patterns) + 1

    def takes(self, name: str) -> bool:
        """Return whether a name matches the pattern."""
        if name in self._names:
            self._missing.discard(name)
            return True
        return any(matches(name) for matches in self._matches)

    def check_complete(self) -> None:
        """Check that every name without a wildcard was found.

        Raises:
            SourceError: some were not.
        """
        if self._missing:
            raise SourceError(
                f"{self._source}: {len(self._missing):,} of the {len(self._names):,} files that it names are not "
                f"there: {some_of(sorted(self._missing))}"
            )


def _expand_braces(source: str, pattern: str) -> list[str]:
    """Expand ``{a,b}`` and ``{000..123}``; any other brace is taken literally."""
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
    """Return the numbers from first to last, zero-padded to the width of first.

    At most one more than the limit, enough for the caller to see that there are too many.
    """
    numbers = range(int(first), int(last) + 1)[: _MAX_NAMES + 1]
    return [f"{number:0{len(first)}d}" for number in numbers]


def _lister(fs: Any) -> Callable[[Any, str, int | None, tuple[str, ...], LeftOut], Iterator[_Entry]]:
    """Return the function that lists a folder to a given depth; for a single file it yields one entry without a name.

    Sizes and version tags need to be filled in only for files with the wanted extensions.
    """
    if is_local(fs):
        return _walk
    return _pages if hasattr(fs, "call_s3") else _find


def _pages(fs: Any, root: str, max_depth: int | None, wanted: tuple[str, ...], left_out: LeftOut) -> Iterator[_Entry]:
    """List S3 page by page; fsspec's find would hold every key of the bucket in memory at once, and cache them all."""
    bucket, key, _ = fs.split_path(root)
    prefix = f"{key.rstrip('/')}/" if key else ""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    if max_depth == 1:
        # S3 then leaves out what lies in subfolders, instead of listing it to be thrown away here.
        request["Delimiter"] = "/"
    is_empty = True
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for item in page.get("Contents", ()):
            is_empty = False
            if not item["Key"].startswith(prefix):
                raise SourceError(_misnamed(fs, root, f"lists {quoted(item['Key'])}"))
            if not item["Key"].endswith("/"):  # an empty object with which web consoles mark a folder
                if item.get("StorageClass") in _FROZEN and item["Key"].lower().endswith(wanted):
                    left_out.archived += 1
                yield item["Key"][len(prefix) :], (item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    # Nothing lies below the prefix: it may be the key of a single object.
    if is_empty and key:
        is_odd, info = odd_part(uri_of(fs, root)) is not None, {"type": "nothing"}
        with contextlib.suppress(OSError if is_odd else FileNotFoundError):
            info = fs.info(root)
        if info["type"] == "file":
            yield "", _facts(info)
        elif is_odd:
            raise SourceError(_misnamed(fs, root, "lists nothing"))


def _misnamed(fs: Any, root: str, found: str) -> str:
    """Explain that a store reads a prefix differently, so that cutting it off the keys would give wrong names."""
    uri = uri_of(fs, root)
    part = odd_part(uri) or "something"
    return (
        f"{uri}: asked for this prefix, the store {found}; it holds {part}, which stores take differently: leave it out"
    )


def _find(fs: Any, root: str, max_depth: int | None, _wanted: tuple[str, ...], _left_out: LeftOut) -> Iterator[_Entry]:
    """List any other store: one flat listing, or that of a single folder, never one request for each file."""
    fs.invalidate_cache()  # a process that plans every night must see new files
    is_one_folder = {"maxdepth": 1} if max_depth == 1 else {}
    start = len(root.rstrip("/")) + 1
    for path, info in fs.find(root, detail=True, **is_one_folder).items():
        yield path[start:], _facts(info)


def _facts(info: Mapping[str, Any]) -> _Facts:
    """Return a remote file's size and version tag: its ETag, or on the Hugging Face Hub the id of its blob."""
    tag = str(info.get("ETag") or info.get("etag") or info.get("blob_id") or "")
    return info.get("size"), tag.strip('"') or None


def _walk(_fs: Any, root: str, max_depth: int | None, wanted: tuple[str, ...], _left_out: LeftOut) -> Iterator[_Entry]:
    """List local files, folder by folder; stat is called for wanted files only. Of an exported folder only the mark."""
    if os.path.isfile(root):
        yield "", _local_facts(root, "", os.stat(root))
        return
    base = root.rstrip("/") + "/"
    # For each folder left to visit: the prefix of its files' names, its depth, and the real paths of the folders with
    # links that lead to it.
    folders: list[tuple[str, int, tuple[str, ...]]] = [("", 1, ())]
    while folders:
        prefix, depth, passed = folders.pop()
        folder = base + prefix
        if prefix and _is_exported(folder, root):
            yield prefix + EXPORT_MARK, _UNKNOWN
            continue
        with _open_folder(folder) as opened, os.scandir(opened) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    above = (*passed, os.path.realpath(folder)) if entry.is_symlink() else passed
                    if depth != max_depth and not (entry.is_symlink() and _leads_back(folder + name, above)):
                        folders.append((f"{prefix}{name}/", depth + 1, above))
                elif name.lower().endswith(wanted):
                    try:
                        yield prefix + name, _local_facts(folder, name, entry.stat())
                    except FileNotFoundError:  # a dangling link: listed, so that it is reported
                        yield prefix + name, _UNKNOWN
                else:
                    yield prefix + name, _UNKNOWN


def _is_exported(folder: str, root: str) -> bool:
    """Return whether a folder is an export: a marked one, or YOLO's links to images of the same source."""
    if os.path.lexists(folder + EXPORT_MARK):
        return True
    if not (os.path.isfile(f"{folder}data.yaml") and os.path.isdir(f"{folder}labels")):
        return False
    for above, _, names in os.walk(f"{folder}images"):
        if names:  # the first file tells: an export without the mark, by an earlier version, holds links alone
            first = os.path.join(above, names[0])
            return os.path.islink(first) and os.path.realpath(first).startswith(os.path.realpath(root) + "/")
    return False


@contextlib.contextmanager
def _open_folder(path: str) -> Iterator[int]:
    """Open a folder, so that stat looks its files up in it and not from the root on: saves an eighth of the time."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def _local_facts(folder: str, name: str, status: os.stat_result) -> _Facts:
    """Return a local file's size and version tag."""
    size = status.st_size
    # Opening a pipe that nobody writes to would block a loader thread until its timeout.
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{folder}{name}: not a regular file but a pipe, socket or device; remove or rename it")
    return size, f"{hex(status.st_mtime_ns)[2:]}-{hex(size)[2:]}"  # twice as fast as format :x


def _leads_back(link: str, above: Iterable[str]) -> bool:
    """Return whether a linked folder contains its own link, or one followed to get there: the walk would never end."""
    target = os.path.realpath(link)
    return any(folder == target or folder.startswith(target.rstrip("/") + "/") for folder in above)


def check_name(path: str) -> None:
    """Check that a file's name can be stored in a table.

    Raises:
        SourceError: the name is not UTF-8.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{quoted(path)}: the file's name is not UTF-8, so no table can hold it; rename it"
        ) from error
