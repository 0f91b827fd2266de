"""List the images of a source of any form: the entry point to the other modules, and folders of image files.

Nothing is fetched: whether a listed file really is an image turns out when it is decoded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut, readable_extensions
from pipelines.layout import is_ours
from pipelines.redaction import counted
from pipelines.sources.arrow import list_arrow
from pipelines.sources.files import (
    ListedFile,
    ListedFiles,
    check_name,
    find_files,
    has_wildcards,
    look_up,
    open_source,
    uri_of,
)
from pipelines.sources.image_batches import LISTED, file_batch, to_batches, to_refs
from pipelines.sources.in_columns.named_images import MAX_NAME_CHARS, too_long
from pipelines.sources.parquet import (
    SeveralColumnsError,
    binary_columns,
    image_lists,
    list_rows,
    odd_image_column,
    parquet_errors,
    sure_image_columns,
    text_column,
)
from pipelines.sources.parquet_values import open_parquet
from pipelines.sources.tabular import TABLE_EXTENSIONS, extension_of, source_errors
from pipelines.sources.tars import list_tars, refuse_compressed
from pipelines.sources.uri_lists import URI_COLUMNS, list_coco, list_listed, list_table
from pipelines.storage.spellings import written_here
from pipelines.types import ImageRef

LIST_EXTENSIONS = (".txt", ".lst")

_NAMING = (*LIST_EXTENSIONS, ".json")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".zip")
# Found only to be refused with advice: no image in them can be read alone.
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OF_OUTPUT = re.compile(
    r"(?P<output>(?:.*/)?)(?P<name>(?P<kind>compacted/[^/]+|annotations|images|_runs)/[^/]+/[^/]+)", re.DOTALL
)
_HOLDERS = (".tar", ".parquet", ".arrow", *_COMPRESSED_TARS)


class _Names(NamedTuple):
    """Column names and the image folder as the user gave them, and the counter of what is left out."""

    image_id: str | None
    uri: str | None
    image: str | None
    root: str | None
    left_out: LeftOut


def list_images(
    source: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    left_out: LeftOut | None = None,
    **names: str | None,
) -> Iterator[ImageRef]:
    """List the images of a source one by one. list_batches does the same faster.

    Args:
        source, storage_options, left_out, names: as for list_batches.
        limit: the largest number of images to list.
    """
    batches = list_batches(source, storage_options=storage_options, left_out=left_out, **names)
    return itertools.islice(to_refs(batches), limit)


def list_batches(
    source: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    image_id_column: str | None = None,
    uri_column: str | None = None,
    image_column: str | None = None,
    image_root: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[pa.RecordBatch]:
    """List the images of a source.

    The form is told by the extension, or by the content where that is not enough:

    - A folder or bucket prefix: every file below it with one of the readable_extensions in any case, linked folders
      included; not what is hidden, and no exports of this program. ``image_id`` is the path below the folder. A folder
      without image files, but with files that contain images (tar, Parquet or Arrow, only one kind of them), is a
      source of these.
    - A pattern, e.g. ``s3://bucket/photos/**/*.{jpg,png}`` or ``shard-{000..123}.tar``: the same for matching files;
      ``image_id`` is the path below the last folder before the first wildcard.
    - One image file. ``image_id`` is its name.
    - A list file (.txt, .lst), a table (.csv, .tsv, .jsonl, .ndjson, .parquet) with a column of URIs, found by name
      (the first of URI_COLUMNS) or given, or a COCO file (.json): see the module uri_lists.
    - A tar (.tar), as WebDataset reads it: see the module tars.
    - A Parquet file with a column of images as bytes: see the module parquet. If it has a column of URIs as well, one
      of the two must be given.
    - An Arrow file (.arrow), mostly of a folder saved by ``datasets``: see the module arrow.

    In lists, tables and COCO files a relative URI is relative to ``image_root``, by default the file's own folder.
    Folders give size and version tag (S3: ETag; local: modification time and size) from the listing itself, without a
    request for each file. An image inside a file has that file's version tag, and a URI that ends in its location
    there: see the module locations.

    Args:
        source: path or URI.
        storage_options: fsspec options, e.g. ``{"endpoint_url": ...}``.
        image_id_column: the table's column of image ids; for tars see tars.list_tars.
        uri_column: the table's column of URIs.
        image_column: the table's column of images as bytes.
        image_root: folder of the images that a list, table or COCO file names.
        left_out: counts, while the source is listed, what is found beside its images.

    Returns:
        An iterator of batches with the columns of image_batches.FILES or LISTED, the same in all batches. Folders come
        in unspecified order, other forms in their own. Ids are not checked for duplicates, since nothing of the listing
        is kept; planning sorts them and refuses duplicates.

    Raises:
        SourceError: no images, a source that cannot be read, an unknown column, or an ambiguous source; raised while
            iterating.
    """
    left_out = LeftOut() if left_out is None else left_out
    names = _Names(image_id_column, uri_column, image_column, image_root and written_here(image_root), left_out)
    source = written_here(source)
    extension = extension_of(source)
    if extension in _COMPRESSIONS and extension_of(source[: -len(extension)]) in (*_NAMING, *TABLE_EXTENSIONS):
        raise SourceError(f"{source}: a compressed list or table, which is not read here; unpack it")
    if extension in LIST_EXTENSIONS:
        return list_listed(source, storage_options, left_out, image_root=image_root)
    if extension == ".json":
        return list_coco(source, storage_options, image_root=image_root)
    if extension == ".parquet":
        return _list_parquet(source, storage_options, names)
    if extension in TABLE_EXTENSIONS:
        return _list_table(source, storage_options, names)
    return _list_folder(source, storage_options, names)


def _listed(source: str, refs: Iterable[ImageRef]) -> Iterator[pa.RecordBatch]:
    return to_batches(_short_named(source, refs), LISTED)


def _short_named(source: str, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
    """Pass images on, and refuse ids and URIs that are too long to be any."""
    for number, ref in enumerate(refs):
        if len(ref.image_id) > MAX_NAME_CHARS or len(ref.uri) > MAX_NAME_CHARS:
            raise too_long(source, number, ref.image_id)
        yield ref


def _list_table(source: str, storage_options: Mapping[str, Any] | None, names: _Names) -> Iterator[pa.RecordBatch]:
    return list_table(
        source, storage_options, image_id_column=names.image_id, uri_column=names.uri, image_root=names.root
    )


def _list_parquet(source: str, storage_options: Mapping[str, Any] | None, names: _Names) -> Iterator[pa.RecordBatch]:
    """List one Parquet file, as images or URIs depending on its columns, or those of a pattern or a folder."""
    fs, path = open_source(source, storage_options)
    with source_errors(source):
        # Spark and Dask write a table as a folder of such a name.
        is_folder = fs.isdir(path) or (has_wildcards(path) and not fs.exists(path))
    if is_folder:
        yield from _list_folder(source, storage_options, names)
    elif names.uri is None and (names.image is not None or _holds_images(source, fs, path)):
        with source_errors(source):
            file = look_up(fs, path)
        yield from _listed(source, _list_inside(fs, ".parquet", [file], names))
    else:
        yield from _list_table(source, storage_options, names)


def _holds_images(source: str, fs: Any, path: str) -> bool:
    """Return whether a Parquet file contains images rather than URIs."""
    with parquet_errors(source):
        schema = open_parquet(fs, path).schema_arrow
    uris, images = text_column(schema, URI_COLUMNS), sure_image_columns(schema)
    if uris is not None and images:
        raise SourceError(
            f"{source}: holds both images (column {images[0]}) and URIs (column {uris}): say which with "
            "source.image_column or source.uri_column (in a config file)"
        )
    return uris is None and bool(binary_columns(schema) or image_lists(schema) or odd_image_column(schema))


def _holds_uris(fs: Any, file: ListedFile, names: _Names) -> bool:
    """Return whether the Parquet files of a folder, of which one is given, hold URIs and no images."""
    if names.uri is not None or names.image is not None:
        return names.image is None
    with parquet_errors(uri_of(fs, file.path)):
        schema = open_parquet(fs, file.path).schema_arrow
    return text_column(schema, URI_COLUMNS) is not None and not sure_image_columns(schema)


def _list_folder(source: str, storage_options: Mapping[str, Any] | None, names: _Names) -> Iterator[pa.RecordBatch]:
    """List a folder, a pattern or one file: its image files, or if it has none, the images inside its other files."""
    fs, _ = open_source(source, storage_options)
    holders: dict[str, list[ListedFile]] = {}
    num_listed = 0
    for found in find_files(source, storage_options, readable_extensions(), _HOLDERS, names.left_out):
        if found.images[0]:
            num_listed += len(found.images[0])
            yield _files(fs, found)
        for file in found.holders:
            kind = next(kind for kind in _HOLDERS if file.name.lower().endswith(kind))
            holders.setdefault(kind, []).append(file)
    _drop_tables_of_outputs(holders, names.left_out)
    if num_listed:
        _check_holds_none(source, fs, holders, names)
    elif len(holders) == 1:
        ((kind, files),) = holders.items()
        files.sort()
        if kind == ".parquet" and names.left_out.table_logs:
            raise SourceError(
                f"{source}: a Delta, Iceberg or Hudi table, whose log alone says which rows are current; write those "
                f"as Parquet, or say that all files are meant: {source.rstrip('/')}/**/*.parquet"
            )
        if kind == ".parquet" and _holds_uris(fs, files[0], names):
            for file in files:
                yield from _list_table(uri_of(fs, file.path), storage_options, names)
        else:
            yield from _listed(source, _list_inside(fs, kind, files, names))
    elif holders:
        raise SourceError(f"{source}: holds {_count(holders)}: {_say_pattern(source, next(iter(holders)))}")
    else:
        beside = "".join(f"; {line}" for line in names.left_out.say())
        raise SourceError(
            f"{source}: no images found: looked for {', '.join(readable_extensions())}, and for images inside "
            f"{', '.join(_HOLDERS[:3])}; {counted(names.left_out.num_others, 'other file is', 'other files are')} "
            f"there{beside}. Check the path, or "
            f"give a list of URIs ({', '.join(LIST_EXTENSIONS)}) for files of other names"
        )


def _drop_tables_of_outputs(holders: dict[str, list[ListedFile]], left_out: LeftOut) -> None:
    """Leave out the Parquet files of outputs of this program that lie inside the source."""
    tables = holders.get(".parquet", ())
    split = [(file, _OF_OUTPUT.fullmatch(file.name)) for file in tables]
    # Only the folder of a plan is an output: others may give the names of its tables to theirs.
    outputs = {found["output"] for _, found in split if found and found["kind"] == "_runs" and is_ours(found["name"])}
    kept = [file for file, found in split if not (found and found["output"] in outputs and is_ours(found["name"]))]
    left_out.exported += len(tables) - len(kept)
    if tables:
        holders[".parquet"] = kept
    if not kept:
        holders.pop(".parquet", None)


def _files(fs: Any, found: ListedFiles) -> pa.RecordBatch:
    try:
        return file_batch(uri_of(fs, found.base), *found.images)
    except UnicodeEncodeError:
        for name in found.images[0]:
            check_name(found.base + name)
        raise


def _list_inside(fs: Any, kind: str, files: Sequence[ListedFile], names: _Names) -> Iterator[ImageRef]:
    """List the images inside files of one kind."""
    if kind == ".tar":
        refs = list_tars(fs, files, readable_extensions(), names.left_out, image_id_column=names.image_id)
    elif kind in _COMPRESSED_TARS:
        refs = refuse_compressed(fs, files)
    else:
        list_them = list_rows if kind == ".parquet" else list_arrow
        refs = list_them(fs, files, image_id_column=names.image_id, image_column=names.image)
    is_empty = True
    for ref in refs:
        is_empty = False
        yield ref
    if is_empty:
        first = uri_of(fs, files[0].path)
        raise SourceError(f"{first}: no images found inside it, nor in {counted(len(files) - 1, f'other {kind} file')}")


def _check_holds_none(source: str, fs: Any, holders: Mapping[str, list[ListedFile]], names: _Names) -> None:
    """Refuse a folder with image files that has images inside other files, too: those would silently be left out."""
    for kind, files in holders.items():
        try:
            has_images = any(True for _ in _list_inside(fs, kind, sorted(files)[:1], names))
        except SourceError as error:
            has_images = isinstance(error, SeveralColumnsError)  # any other error: it contains no readable images
        if has_images:
            raise SourceError(
                f"{source}: holds image files, and {_count(holders)} with images inside: "
                f"{_say_pattern(source, kind)}, or {source.rstrip('/')}/**/*.{{jpg,png}} for the files"
            )


def _count(holders: Mapping[str, list[ListedFile]]) -> str:
    return " and ".join(counted(len(files), f"{kind} file") for kind, files in holders.items())


def _say_pattern(source: str, kind: str) -> str:
    return f"say which with a pattern, e.g. {source.rstrip('/')}/**/*{kind}"
