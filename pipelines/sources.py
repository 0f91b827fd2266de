"""Where images come from: a folder, a glob, a list of URIs or a table of URIs, listed as references.

Nothing is fetched here: whether a listed file is an image at all shows when it is decoded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.utils import glob_translate

from pipelines.storage import open_filesystem, protocol_of, secret_in
from pipelines.tabular import TABLE_EXTENSIONS, SourceError, extension_of, open_text, read_rows, readable
from pipelines.types import ImageRef

__all__ = ["IMAGE_EXTENSIONS", "LIST_EXTENSIONS", "TABLE_EXTENSIONS", "URI_COLUMNS", "SourceError", "list_images"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif")
LIST_EXTENSIONS = (".txt", ".lst")
URI_COLUMNS = ("uri", "url", "path", "image", "image_uri", "file_name")

_ID_COLUMN = "image_id"
_WILDCARDS = "*?["


class _File(NamedTuple):
    path: str  # inside its file system
    num_bytes: int | None
    etag: str | None


def list_images(
    source: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    image_id_column: str | None = None,
    uri_column: str | None = None,
    limit: int | None = None,
) -> Iterator[ImageRef]:
    """List the images of a source.

    - A folder or bucket prefix: every file below it with an extension of IMAGE_EXTENSIONS in any case, linked folders
      included. ``image_id`` is the path below the folder.
    - A glob, e.g. ``s3://bucket/photos/**/*.jpg``: the same, of files that match; ``image_id`` is the path below the
      last folder before the first wildcard. A folder or file whose real name holds ``*``, ``?`` or ``[`` is just that.
    - One image file. ``image_id`` is its name.
    - A list file (.txt, .lst): one URI a line; blank lines and lines beginning with # are skipped.
    - A table (.csv, .tsv, .jsonl, .ndjson, .parquet) with a column of URIs, found by name (the first of URI_COLUMNS)
      or given. Other columns are carried along as ``source_columns``.

    In lists and tables a relative URI is relative to the file's own folder, and ``image_id`` is the id column (by
    default ``image_id``) or else the URI as written. Folders give size and version tag (S3: ETag; local: modification
    time and size) from the listing itself, without a request for each file.

    Args:
        source: path or URI.
        storage_options: fsspec options, e.g. ``{"endpoint_url": ...}``.
        image_id_column: the table's column of image ids.
        uri_column: the table's column of URIs.
        limit: stop after so many.

    Returns:
        An iterator of references: folders in no promised order, lists and tables in theirs. Nothing is held of what was
        listed, so that ids in lists and tables may occur twice: planning, which sorts them, refuses that.

    Raises:
        SourceError: no images, a source that cannot be read, an unknown column; raised while iterating.
    """
    extension = extension_of(source)
    if extension in LIST_EXTENSIONS:
        refs = _from_list(source, storage_options)
    elif extension in TABLE_EXTENSIONS:
        refs = _from_table(source, storage_options, image_id_column, uri_column)
    else:
        refs = _from_folder(source, storage_options)
    return itertools.islice(refs, limit)


def _from_folder(source: str, storage_options: Mapping[str, Any] | None) -> Iterator[ImageRef]:
    fs, root = _open_source(source, storage_options)
    is_local = protocol_of(source) == "file"
    with readable(source):
        pattern = None
        if any(char in root for char in _WILDCARDS) and not fs.exists(root):
            root, pattern = _split_glob(root)
        matches = re.compile(glob_translate(pattern)).match if pattern else None
        max_depth = pattern.count("/") + 1 if pattern and "**" not in pattern else None
        files = _LISTERS.get(protocol_of(source), _find)(fs, root, max_depth)
        base = root.rstrip("/") + "/"
        num_listed = num_other = 0
        for file in files:
            image_id = file.path[len(base) :] or posixpath.basename(root)
            if not image_id.lower().endswith(IMAGE_EXTENSIONS) or (matches and not matches(image_id)):
                num_other += 1
                continue
            _check_name(file.path)
            num_listed += 1
            uri = file.path if is_local else fs.unstrip_protocol(file.path)
            yield ImageRef(image_id=image_id, uri=uri, num_bytes=file.num_bytes, etag=file.etag)
    if not num_listed:
        raise SourceError(
            f"{source}: no images found: looked for {', '.join(IMAGE_EXTENSIONS)}; {num_other} other files are there. "
            f"Check the path, or give a list of URIs ({', '.join(LIST_EXTENSIONS)}) for files of other names"
        )


def _open_source(source: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    with readable(source):
        fs, root = open_filesystem(source, storage_options)
    if protocol_of(source) in ("s3", "gs") and not root:
        raise SourceError(f"{source}: names no bucket; give {source.rstrip('/')}//<bucket>/<prefix>")
    return fs, root


def _split_glob(path: str) -> tuple[str, str]:
    """Split a path into the folders before its first wildcard and the pattern below them."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if any(char in part for char in _WILDCARDS))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _pages(fs: Any, root: str, max_depth: int | None) -> Iterator[_File]:
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
                yield _File(f"{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    if is_empty and key:
        with contextlib.suppress(FileNotFoundError):
            info = fs.info(root)
            if info["type"] == "file":  # the source is one image
                yield _File(root, info["size"], str(info["ETag"]).strip('"'))


def _find(fs: Any, root: str, max_depth: int | None) -> Iterator[_File]:
    """List another store: one flat listing, or one of a single folder; never a request for each file."""
    is_one_folder = {"maxdepth": 1} if max_depth == 1 else {}
    for path, info in fs.find(root, detail=True, **is_one_folder).items():
        etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
        yield _File(path, info.get("size"), etag or None)


def _walk(_fs: Any, root: str, max_depth: int | None) -> Iterator[_File]:
    """List local files folder by folder; only files that may be images are looked at."""
    if os.path.isfile(root):
        yield _local_file(root, os.stat(root))
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
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    try:
                        yield _local_file(entry.path, entry.stat())
                    except FileNotFoundError:  # a dangling link: listed, so that it is reported
                        yield _File(entry.path, None, None)
                else:
                    yield _File(entry.path, None, None)


_LISTERS = {"file": _walk, "s3": _pages}


def _local_file(path: str, status: os.stat_result) -> _File:
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: not a regular file but a pipe, socket or device; remove or rename it")
    return _File(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


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


def _from_list(source: str, storage_options: Mapping[str, Any] | None) -> Iterator[ImageRef]:
    folder = _folder_of(source, storage_options)
    num_listed = 0
    with open_text(source, storage_options) as text:
        for number, line in enumerate(text, start=1):
            uri = line.strip()
            if uri and not uri.startswith("#"):
                num_listed += 1
                yield ImageRef(image_id=uri, uri=_resolve(uri, folder, f"{source}: line {number}"))
    if not num_listed:
        raise SourceError(f"{source}: no images found: the list names no URI; write one a line")


def _from_table(
    source: str, storage_options: Mapping[str, Any] | None, image_id_column: str | None, uri_column: str | None
) -> Iterator[ImageRef]:
    folder = _folder_of(source, storage_options)
    rows = read_rows(source, storage_options)
    first = next(rows, None)
    if first is None:
        raise SourceError(f"{source}: no images found: the table has no rows")
    uri_column = _uri_column(source, first, uri_column)
    if image_id_column is None and _ID_COLUMN in first:
        image_id_column = _ID_COLUMN
    elif image_id_column is not None and image_id_column not in first:
        raise SourceError(f"{source}: no column {image_id_column!r} for image ids; it has {', '.join(first)}")
    for number, row in enumerate(itertools.chain([first], rows)):
        uri = row.get(uri_column)
        if not isinstance(uri, str) or not uri:
            raise SourceError(f"{source}: row {number} (from 0) has no URI in column {uri_column!r} but {uri!r}")
        named = row.get(image_id_column) if image_id_column else None
        image_id = uri if named is None else str(named)
        others = {name: value for name, value in row.items() if name not in (uri_column, image_id_column)}
        place = f"{source}: row {number} (from 0)"
        yield ImageRef(image_id=image_id, uri=_resolve(uri, folder, place), source_columns=_to_json(others))


def _uri_column(source: str, columns: Iterable[str], given: str | None) -> str:
    columns = list(columns)
    found = given if given is not None else next((name for name in URI_COLUMNS if name in columns), None)
    if found is None or found not in columns:
        wanted = f"column {given!r}" if given is not None else f"column of URIs ({', '.join(URI_COLUMNS)})"
        raise SourceError(f"{source}: no {wanted}; it has {', '.join(columns)}. Name it with uri_column")
    return found


def _folder_of(source: str, storage_options: Mapping[str, Any] | None) -> str:
    """Return the folder of a list or table: an absolute path, or a URI."""
    fs, path = _open_source(source, storage_options)
    folder = posixpath.dirname(path)
    return folder if protocol_of(source) == "file" else str(fs.unstrip_protocol(folder))


def _resolve(uri: str, folder: str, place: str) -> str:
    if secret := secret_in(uri):
        raise SourceError(
            f"{place}: the URI carries {secret}, which anyone who sees the table could read, and which may run out "
            "before the run ends; name the object itself (s3://, gs://) and let the machine have the credentials"
        )
    if "://" in uri or uri.startswith(("/", "~")):
        return uri
    scheme, separator, path = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, uri))


def _to_json(columns: Mapping[str, Any]) -> str | None:
    """Return a table's further columns as JSON with sorted keys; None if all are null."""
    known = {name: value for name, value in ((n, _plain(v)) for n, v in columns.items()) if value is not None}
    return json.dumps(known, ensure_ascii=False, sort_keys=True, default=str) if known else None


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: NaN and infinities are null, dates ISO text, anything else unknown its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value
