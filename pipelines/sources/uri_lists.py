"""List images that a file names by URI: a list, a table, or a COCO file. The images themselves are not touched."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bounded_json import BoundsError, GuardedFile, JsonGuard, PlainJsonFile
from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut, readable_extensions
from pipelines.redaction import counted, quoted, quoted_names, secret_in, shown
from pipelines.sources.files import open_source, uri_of
from pipelines.sources.in_columns.chunks import Chunk, gathered, read_chunks
from pipelines.sources.in_columns.column_json import Values, columns_json_of_rows, value_of
from pipelines.sources.in_columns.named_images import NamedImages
from pipelines.sources.locations import split_location
from pipelines.sources.tabular import line_blocks, open_bytes, source_errors
from pipelines.storage.filesystems import absolute_uri
from pipelines.storage.spellings import is_windows_path, path_of_url, spelling_on_disk

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
_MAY_HAVE_FIELDS = r"\t|[ ,;][^A-Za-z]*$"  # all lines that are refused for it, and some others
MAX_LOOKED_UP = 10_000
_COCO_FORM = 'a COCO file is an object with a list "images" of objects that have a file_name'


def list_listed(
    source: str, storage_options: Mapping[str, Any] | None, left_out: LeftOut, *, image_root: str | None = None
) -> Iterator[pa.RecordBatch]:
    """List the images of a list file: one URI per line; blank lines and lines that begin with # are skipped.

    ``image_id`` is the URI as written. Skipped lines that may name an image are counted in ``left_out``.

    Raises:
        SourceError: the file cannot be read, or names no image.
    """
    resolve = _Resolver(source, storage_options, image_root)
    images = NamedImages(source, resolve.prefix)
    for first, block in line_blocks(source, storage_options):
        lines = block.split("\n")
        uris = [line.strip() for line in lines]
        one = functools.partial(_resolve_line, resolve, left_out, first, lines)
        written, is_odd = pa.array(uris, pa.string()), None
        if any(mark in block for mark in "\t ,;"):
            is_odd = pc.match_substring_regex(written, _MAY_HAVE_FIELDS).to_numpy(zero_copy_only=False)
        batch = images.batch(written, written, one, is_odd=is_odd)
        if batch.num_rows:
            yield batch
    if not images.num_images:
        raise SourceError(f"{source}: no images found: the list names no URI; write one a line")


def _resolve_line(resolve: _Resolver, left_out: LeftOut, first: int, lines: Sequence[str], row: int) -> str | None:
    """Return the absolute URI of a line, None if it names no image; the first line has the number ``first``."""
    uri = lines[row].strip()
    if uri.startswith("#") and not _is_here(resolve, uri):
        left_out.commented += uri.lower().endswith(readable_extensions())
        return None
    if not uri:
        return None
    resolved = resolve(uri, f"line {first + row}")
    _refuse_fields(uri, resolved, f"{resolve.source}: line {first + row}")
    return resolved


def _is_here(resolve: _Resolver, uri: str) -> bool:
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
) -> Iterator[pa.RecordBatch]:
    """List the images of a table with a column of URIs; its other columns are carried along.

    ``image_id`` comes from the id column (by default ``image_id``), or else is the URI as written.

    Raises:
        SourceError: the table cannot be read, a column is missing, or a row has no URI.
    """
    resolve = _Resolver(source, storage_options, image_root)
    images, chunks = NamedImages(source, resolve.prefix), read_chunks(source, storage_options)
    first = next(chunks, None)
    if first is None:
        raise SourceError(f"{source}: no images found: the table has no rows")
    uri_column = _uri_column(source, first.names, uri_column)
    image_id_column = id_column(source, first.names, image_id_column)
    for chunk in itertools.chain([first], chunks):
        values = chunk.columns.get(uri_column, [None] * chunk.num_rows)

        def missing(row: int, values: Values = values) -> str:
            return f"has no URI in column {uri_column!r} but {quoted(value_of(values, row))}"

        yield _named(images, resolve, chunk, (uri_column, image_id_column), "row", missing)


def list_coco(
    source: str, storage_options: Mapping[str, Any] | None, *, image_root: str | None = None
) -> Iterator[pa.RecordBatch]:
    """List the ``images`` of a COCO file, parsed as a stream, so that memory does not grow with the file.

    ``image_id`` is the ``file_name`` as written, by which ground truth is matched; the other keys, including the
    numeric ``id``, are carried along.

    Raises:
        SourceError: the file cannot be read, is not JSON or not a COCO file, or an image has no file_name.
    """
    resolve = _Resolver(source, storage_options, image_root)
    images = NamedImages(source, resolve.prefix)
    for entries in gathered(_coco_entries(source, storage_options), lambda entry: entry[0]):

        def missing(row: int, entries: Sequence[tuple[int, Any]] = entries) -> str:
            is_lvis = isinstance(entries[row][1], dict) and "coco_url" in entries[row][1]
            return f"has no file_name; {'add it, e.g. the end of its coco_url' if is_lvis else _COCO_FORM}"

        chunk = Chunk.of_rows([entry if isinstance(entry, dict) else {} for _, entry in entries])
        yield _named(images, resolve, chunk, ("file_name", None), "image", missing)
    if not images.num_images:
        raise SourceError(f"{source}: no images found: {_COCO_FORM}")


def _coco_entries(source: str, storage_options: Mapping[str, Any] | None) -> Iterator[tuple[int, Any]]:
    """Yield the items of a COCO file's list of images, each with the bytes that were read for it."""
    with open_bytes(source, storage_options) as file:
        guarded, num_bytes = GuardedFile(PlainJsonFile(file), JsonGuard(_ENTRY_DEPTH)), 0
        try:
            # use_float: ijson's default is Decimal, which cannot be written as JSON.
            for entry in ijson.items(guarded, "images.item", use_float=True):
                yield guarded.num_bytes - num_bytes, entry
                num_bytes = guarded.num_bytes
        except BoundsError as error:
            raise SourceError(f"{source}: {error}; {_COCO_FORM}") from error
        except (ijson.JSONError, UnicodeDecodeError) as error:
            what = " ".join(str(error).split())
            raise SourceError(
                f"{source}: not a whole JSON document ({what}); one object a line is a table: name it .jsonl"
            ) from error


def _named(
    images: NamedImages,
    resolve: _Resolver,
    chunk: Chunk,
    columns: tuple[str, str | None],
    what: str,
    missing: Callable[[int], str],
) -> pa.RecordBatch:
    """Return the images that rows name.

    Args:
        images, resolve: of the source.
        chunk: the rows.
        columns: the column of URIs, and that of ids: by default the URIs as written.
        what: what the source calls a row.
        missing: says that a row has no URI.
    """
    uri_column, image_id_column = columns
    written = _texts(chunk.columns.get(uri_column, [None] * chunk.num_rows))
    ids = chunk.columns.get(image_id_column) if image_id_column else None
    others = {name: values for name, values in chunk.columns.items() if name not in columns}
    begun = images.num_images

    def one(row: int) -> str:
        if (uri := written[row].as_py()) is None:
            raise SourceError(f"{images.source}: {what} {begun + row} (from 0) {missing(row)}")
        return resolve(uri, f"{what} {begun + row} (from 0)")

    return images.batch(
        written if ids is None else pc.coalesce(_as_text(ids), written),
        written,
        one,
        source_columns=columns_json_of_rows(others, chunk.num_rows),
    )


def _texts(values: Values) -> pa.StringArray:
    """Return the values that are text, null for others and for empty ones."""
    if not isinstance(values, pa.Array):
        return pa.array([value if isinstance(value, str) and value else None for value in values], pa.string())
    is_empty = pc.fill_null(pc.equal(values, ""), False)
    return pc.if_else(is_empty, pa.scalar(None, pa.string()), values) if pc.any(is_empty).as_py() else values


def _as_text(values: Values) -> pa.StringArray:
    if isinstance(values, pa.Array):
        return values
    return pa.array([None if value is None else str(value) for value in values], pa.string())


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


class _Resolver:
    """Makes URIs as written in a source absolute.

    Attributes:
        source: the source.
        prefix: what is put in front of a relative path that is plain.
    """

    def __init__(self, source: str, storage_options: Mapping[str, Any] | None, image_root: str | None) -> None:
        fs, path = open_source(source, storage_options)
        with source_errors(source):
            self._folder = absolute_uri(image_root) if image_root else uri_of(fs, posixpath.dirname(path))
        self.source = source
        scheme, separator, path = self._folder.rpartition("://")
        self.prefix = scheme + separator + posixpath.normpath(posixpath.join(path, "x")).removesuffix("x")

    def __call__(self, uri: str, place: str) -> str:
        """Return the absolute URI; its place in the source is for errors, which are those of resolve_uri."""
        return resolve_uri(uri, self._folder, f"{self.source}: {place}")


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
