"""List images that a file names by URI: a list, a table, or a COCO file. The images themselves are not touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ijson
import pyarrow as pa

from pipelines.bounded_json import BoundsError, GuardedFile, JsonGuard, PlainJsonFile
from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut, readable_extensions
from pipelines.redaction import counted, quoted, quoted_names, secret_in, shown
from pipelines.sources.files import open_source, uri_of
from pipelines.sources.locations import split_location
from pipelines.sources.tabular import Lines, columns_json, open_bytes, open_text, read_rows, source_errors
from pipelines.storage.filesystems import absolute_uri
from pipelines.storage.spellings import is_windows_path, path_of_url, spelling_on_disk
from pipelines.types import ImageRef

URI_COLUMNS = ("uri", "url", "path", "image", "image_uri", "file_name")
ID_COLUMN = "image_id"

_ENTRY_DEPTH = 2  # nesting depth of a COCO file's items: an object that holds lists
# How JPEG, PNG, GIF, WebP, TIFF and BMP begin as base64; a path like /9j/a.jpg is shorter, or has a dot.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")
_IS_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*\Z")
_MIN_BASE64_CHARS = 60
# Numbers behind a file's name, with its extension.
_FIELDS = re.compile(r"\.[A-Za-z]{3,4}[ ,;]+-?\d[\d.]*(?:[ ,;]+-?\d[\d.]*)*\Z")
_MAX_FIELDS_CHARS = 1000
MAX_LOOKED_UP = 10_000
_COCO_FORM = 'a COCO file is an object with a list "images" of objects that have a file_name'


def list_listed(
    source: str, storage_options: Mapping[str, Any] | None, left_out: LeftOut, *, image_root: str | None = None
) -> Iterator[ImageRef]:
    """List the images of a list file: one URI per line; blank lines and lines that begin with # are skipped.

    ``image_id`` is the URI as written. Skipped lines that may name an image are counted in ``left_out``.

    Raises:
        SourceError: the file cannot be read, or names no image.
    """
    resolve = _resolver(source, storage_options, image_root)
    num_listed = 0
    with open_text(source, storage_options) as text:
        for number, line in enumerate(Lines(source, text, is_row=True), start=1):
            uri = line.strip()
            if uri.startswith("#") and not _is_here(resolve, uri):
                left_out.commented += uri.lower().endswith(readable_extensions())
            elif uri:
                num_listed += 1
                resolved = resolve(uri, f"line {number}")
                _refuse_fields(uri, resolved, f"{source}: line {number}")
                yield ImageRef(image_id=uri, uri=resolved)
    if not num_listed:
        raise SourceError(f"{source}: no images found: the list names no URI; write one a line")


def _is_here(resolve: Callable[[str, str], str], uri: str) -> bool:
    """Return whether a line that looks like a comment is the name of a file of this machine."""
    with contextlib.suppress(SourceError):
        return os.path.lexists(resolve(uri, ""))
    return False


def _refuse_fields(line: str, uri: str, place: str) -> None:
    """Refuse a line with more than a URI, as lists for classification have it: ``a.jpg 3``, or a label behind a tab.

    Raises:
        SourceError: it has, and there is no local file of such a name.
    """
    if ("\t" in line or _FIELDS.search(line[-_MAX_FIELDS_CHARS:])) and not os.path.lexists(uri):
        raise SourceError(
            f"{place}: holds more than a URI: {quoted(line)}; a list has one a line: make it a table (.csv, .tsv) "
            "whose first line names the columns, e.g. path and label"
        )


def list_table(
    source: str,
    storage_options: Mapping[str, Any] | None,
    *,
    image_id_column: str | None = None,
    uri_column: str | None = None,
    image_root: str | None = None,
) -> Iterator[ImageRef]:
    """List the images of a table with a column of URIs; its other columns are carried along.

    ``image_id`` comes from the id column (by default ``image_id``), or else is the URI as written.

    Raises:
        SourceError: the table cannot be read, a column is missing, or a row has no URI.
    """
    resolve = _resolver(source, storage_options, image_root)
    rows = read_rows(source, storage_options)
    first = next(rows, None)
    if first is None:
        raise SourceError(f"{source}: no images found: the table has no rows")
    uri_column = _uri_column(source, first, uri_column)
    image_id_column = id_column(source, first, image_id_column)
    for number, row in enumerate(itertools.chain([first], rows)):
        uri = row.get(uri_column)
        if not isinstance(uri, str) or not uri:
            raise SourceError(f"{source}: row {number} (from 0) has no URI in column {uri_column!r} but {quoted(uri)}")
        named = row.get(image_id_column) if image_id_column else None
        image_id = uri if named is None else str(named)
        others = {name: value for name, value in row.items() if name not in (uri_column, image_id_column)}
        uri = resolve(uri, f"row {number} (from 0)")
        yield ImageRef(image_id=image_id, uri=uri, source_columns=columns_json(others))


def list_coco(
    source: str, storage_options: Mapping[str, Any] | None, *, image_root: str | None = None
) -> Iterator[ImageRef]:
    """List the ``images`` of a COCO file, parsed as a stream, so that memory does not grow with the file.

    ``image_id`` is the ``file_name`` as written, by which ground truth is matched; the other keys, including the
    numeric ``id``, are carried along.

    Raises:
        SourceError: the file cannot be read, is not JSON or not a COCO file, or an image has no file_name.
    """
    resolve = _resolver(source, storage_options, image_root)
    number = -1
    with open_bytes(source, storage_options) as file:
        guarded = GuardedFile(PlainJsonFile(file), JsonGuard(_ENTRY_DEPTH))
        try:
            # use_float: ijson's default is Decimal, which cannot be written as JSON.
            for number, entry in enumerate(ijson.items(guarded, "images.item", use_float=True)):
                name = entry.get("file_name") if isinstance(entry, dict) else None
                if not isinstance(name, str) or not name:
                    is_lvis = isinstance(entry, dict) and "coco_url" in entry
                    advice = "add it, e.g. the end of its coco_url" if is_lvis else _COCO_FORM
                    raise SourceError(f"{source}: image {number} (from 0) has no file_name; {advice}")
                others = {key: value for key, value in entry.items() if key != "file_name"}
                uri = resolve(name, f"image {number} (from 0)")
                yield ImageRef(image_id=name, uri=uri, source_columns=columns_json(others))
        except BoundsError as error:
            raise SourceError(f"{source}: {error}; {_COCO_FORM}") from error
        except (ijson.JSONError, UnicodeDecodeError) as error:
            what = " ".join(str(error).split())
            raise SourceError(
                f"{source}: not a whole JSON document ({what}); one object a line is a table: name it .jsonl"
            ) from error
    if number < 0:
        raise SourceError(f"{source}: no images found: {_COCO_FORM}")


class AbsentPaths:
    """Looks up whether the local paths that a list, table or COCO file names are there.

    At most the first MAX_LOOKED_UP of them: on a network drive each takes a round trip.

    Attributes:
        looked_up, absent: numbers of paths looked up, and of those not there.
        first: the first that is not there.
    """

    def __init__(self) -> None:
        self.looked_up = self.absent = 0
        self.first: str | None = None

    def checked(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches of images on, and look their paths up. Files of folders and images inside files are known."""
        for batch in batches:
            if "source_columns" in batch.schema.names and self.looked_up < MAX_LOOKED_UP:
                for uri in batch["uri"][: MAX_LOOKED_UP - self.looked_up].to_pylist():
                    self._look_up(uri)
            yield batch

    def _look_up(self, uri: str) -> None:
        path = path_of_url(uri) or uri
        if not path.startswith("/") or split_location(path)[1] is not None:
            return
        self.looked_up += 1
        if not os.path.exists(path):
            self.absent += 1
            self.first = self.first or uri

    def say(self) -> list[str]:
        """Return a line for the user if any are not there."""
        if not self.absent:
            return []
        first = "" if self.looked_up < MAX_LOOKED_UP else "first "
        return [
            f"{self.absent:,} of the {first}{counted(self.looked_up, 'local path')} of the source "
            f"{'is' if self.absent == 1 else 'are'} not on this machine, e.g. {shown(self.first or '')}: check the "
            "source, and source.image_root (in a config file), which relative paths are relative to"
        ]


def id_column(source: str, columns: Iterable[str], given: str | None) -> str | None:
    """Return the column of image ids: the one given, else ``image_id`` if the table has it, else None.

    Raises:
        SourceError: the column given does not exist.
    """
    columns = list(columns)
    if given is None:
        return ID_COLUMN if ID_COLUMN in columns else None
    if given not in columns:
        raise SourceError(f"{source}: no column {given!r} for image ids; it has {quoted_names(columns)}")
    return given


def _uri_column(source: str, columns: Iterable[str], given: str | None) -> str:
    columns = list(columns)
    found = given if given is not None else next((name for name in URI_COLUMNS if name in columns), None)
    if found is None or found not in columns:
        wanted = f"column {given!r}" if given is not None else f"column of URIs ({', '.join(URI_COLUMNS)})"
        advice = headless(columns) or "Name it with source.uri_column (in a config file)"
        raise SourceError(f"{source}: no {wanted}; it has {quoted_names(columns) or 'binary ones alone'}. {advice}")
    return found


def headless(columns: Iterable[str]) -> str:
    """Return what to do about a table whose first line names no columns but an image; empty if it does not."""
    first = next((name for name in columns if name.lower().endswith(readable_extensions())), None)
    return "" if first is None else f"{quoted(first)} is no name of a column: write a first line that names the columns"


def _resolver(
    source: str, storage_options: Mapping[str, Any] | None, image_root: str | None
) -> Callable[[str, str], str]:
    """Return a function that makes a URI as written absolute; its second argument is the place in the source."""
    fs, path = open_source(source, storage_options)
    with source_errors(source):
        folder = absolute_uri(image_root) if image_root else uri_of(fs, posixpath.dirname(path))
    return lambda uri, place: resolve_uri(uri, folder, f"{source}: {place}")


def resolve_uri(uri: str, folder: str, place: str) -> str:
    """Make a URI as written in a source absolute.

    Args:
        uri: as written.
        folder: what a relative path is relative to.
        place: where in which source it is written, for errors.

    Raises:
        SourceError: the URI carries a secret, is the image itself as text, or a path of Windows that is not here.
    """
    if secret := secret_in(uri):
        raise SourceError(
            f"{place}: the URI carries {secret}, which anyone who sees the table could read, and which may run out "
            "before the run ends; name the object itself (s3://, gs://) and let the machine have the credentials"
        )
    _refuse_data(uri, place)
    scheme, separator, path = folder.rpartition("://")
    if (of_url := path_of_url(uri)) is not None:
        on_disk = spelling_on_disk(of_url, is_url=True)
        return uri if on_disk == of_url and uri.endswith(f"://{of_url}") else on_disk
    if "://" in uri or (uri.startswith("~") and "/" in uri):
        return uri
    resolved = uri if uri.startswith("/") else scheme + separator + posixpath.normpath(posixpath.join(path, uri))
    is_local = uri.startswith("/") or scheme in ("", "file")
    on_disk = spelling_on_disk(resolved) if is_local else resolved
    if is_windows_path(uri) and not (is_local and os.path.lexists(on_disk)):
        raise SourceError(
            f"{place}: {quoted(uri)} is a path on a Windows machine; write it relative to the folder of the images, "
            "and give that as source.image_root"
        )
    return on_disk


def _refuse_data(uri: str, place: str) -> None:
    """Refuse an image written as text where its URI should be.

    Raises:
        SourceError: it is a data: URI, or base64 of an image.
    """
    kind = "a data: URI" if uri[:5].lower() == "data:" else None
    if kind is None and len(uri) >= _MIN_BASE64_CHARS and uri.startswith(_BASE64) and _IS_BASE64.match(uri):
        kind = "an image as base64 text"
    if kind:
        raise SourceError(
            f"{place}: holds {kind}, not the URI of an image: {quoted(uri[:40])}...; write a Parquet file with the "
            "bytes (base64.b64decode) in a binary column, or name a column of URIs with source.uri_column"
        )
