"""List images that are values of a binary column in Parquet files, without reading their bytes."""

from __future__ import annotations

import contextlib
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.bounded_json import load_json
from pipelines.errors import SourceError
from pipelines.redaction import quoted, quoted_names
from pipelines.sources.files import ListedFile, uri_of
from pipelines.sources.locations import ParquetCell
from pipelines.sources.parquet_pages import iter_rows
from pipelines.sources.parquet_values import ChunkTooLargeError, check_chunks, leaf_of, may_hold_no_value, open_parquet
from pipelines.sources.tabular import columns_json, holds_binary, is_bytes, source_errors
from pipelines.sources.uri_lists import id_column, resolve_uri
from pipelines.types import ImageRef

ROW = "__row__"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")


# How pictures of any format begin, those included that are not read here.
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM|....ftyp|\xff\x0a|\xff\x4f\xff\x51|P[1-7]\s|8BPS|"
    rb"\0\0\0\x0c(?:JXL|jP) ",
    re.DOTALL,
)
_START_BYTES, _PEEK_ROWS = 16, 16


class SeveralColumnsError(SourceError):
    """A table has several columns that may hold images, and nothing tells which is meant."""


class RowForm(NamedTuple):
    """How a table's rows are read as images.

    Attributes:
        image: the column of images.
        has_path: whether its values have a ``path`` beside the bytes.
        image_id: the column of image ids; None for the path; ROW for the row number.
    """

    image: str
    has_path: bool
    image_id: str | None

    def path(self, values: Mapping[str, Any]) -> str | None:
        """Return the path beside an image's bytes, None if there is none."""
        path: str | None = (values.get(self.image) or {}).get("path") if self.has_path else None
        return path

    def describe(self, file: str, row: int, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return an image's id, and the other columns of its row as JSON."""
        named = values.get(self.image_id) if self.image_id else None
        path = self.path(values)
        image_id = str(named) if named is not None else path if path and self.image_id != ROW else f"{file}#{row:08d}"
        others = {name: value for name, value in values.items() if name not in (self.image, self.image_id)}
        if path and path != image_id:
            others[self.image] = {"path": path}
        return image_id, columns_json(others)


def list_rows(
    fs: Any, files: Iterable[ListedFile], *, image_id_column: str | None = None, image_column: str | None = None
) -> Iterator[ImageRef]:
    """List the images of Parquet files, one for each row.

    ``image_id`` comes from the id column (by default ``image_id``), or else from the ``path`` beside the bytes, or else
    it is ``<file>#<row>`` with the row in 8 digits. In a row group of paths without any bytes a row is the image at its
    path. Columns without binary data, and the path if it is not the id, are carried along within the limits of
    tabular.columns_json.

    Args:
        fs: the file system that holds the files.
        files: the files, in order.
        image_id_column: the column of image ids; ROW for ``<file>#<row>``.
        image_column: the column of images, see row_form.

    Raises:
        SourceError: a file is broken, has no column of images or several, or has row groups too large to read a single
            image from.
    """
    for file in files:
        uri = uri_of(fs, file.path)
        with parquet_errors(uri):
            table = open_parquet(fs, file.path, streamed=False)
            schema = table.schema_arrow
            form = row_form(uri, schema, image_id_column, image_column)
            leaf = leaf_of(schema, form.image)
            check_chunks(table.metadata, leaf)
            lack_bytes = _lack_bytes(fs, file.path, table.metadata, leaf, form)
            if image_column is None and form.image not in sure_image_columns(schema):
                check_pictures(uri, form.image, _first_values(fs, file.path, form.image))
            # A damaged footer may count other rows than there are.
            rows = zip(
                _rows(fs, file.path, table, form), itertools.chain(lack_bytes, itertools.repeat(False)), strict=False
            )
            for row, (values, lacks_bytes) in enumerate(rows):
                place = ParquetCell(form.image, row)
                image_id, others = form.describe(file.name, row, values)
                if lacks_bytes and (path := form.path(values)):
                    elsewhere = resolve_uri(path, posixpath.dirname(uri), f"{uri}: row {row} (from 0)")
                    yield ImageRef(image_id=image_id, uri=elsewhere, source_columns=others)
                    continue
                etag = file.etag and f"{file.etag}{place}"
                yield ImageRef(image_id=image_id, uri=f"{uri}{place}", etag=etag, source_columns=others)


def _lack_bytes(fs: Any, path: str, metadata: pq.FileMetaData, leaf: str, form: RowForm) -> Iterator[bool]:
    """Tell for each row whether its row group has paths and no bytes, as ``datasets`` may write them."""
    for group in range(metadata.num_row_groups):
        is_small = form.has_path and may_hold_no_value(metadata, leaf, group)
        lacks_bytes = is_small and not _first_values(fs, path, form.image, group)
        yield from itertools.repeat(lacks_bytes, metadata.row_group(group).num_rows)


_SAY = "An image is a binary value, or a struct with bytes; name its column with source.image_column"


def row_form(uri: str, schema: pa.Schema, image_id_column: str | None, image_column: str | None) -> RowForm:
    """Find out how a table's rows are to be read.

    The column of images is the one given, else the one with the feature Image in Hugging Face's metadata, else a struct
    with a binary field ``bytes``, else a binary column named as in IMAGE_COLUMNS, else the only binary column.

    Raises:
        SeveralColumnsError: several columns qualify equally.
        SourceError: none qualifies, or a column that was given is missing or of the wrong type.
    """
    image = _image_column(uri, schema, image_column)
    plain = [field.name for field in schema if not holds_binary(field.type)]
    kind = schema.field(image).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    return RowForm(image, has_path, ROW if image_id_column == ROW else id_column(uri, plain, image_id_column))


def check_pictures(uri: str, column: str, values: Iterable[bytes]) -> None:
    """Check that the values of a column that was taken for images by elimination alone begin as pictures do.

    Args:
        uri: the table's URI, for errors.
        column: its name.
        values: some of its values, or their beginnings; none if it holds nothing but nulls.

    Raises:
        SourceError: none of them does: it holds geometries, hashes, embeddings, sound and so on.
    """
    starts = [bytes(value[:_START_BYTES]) for value in values if value]
    if starts and not any(_PICTURE.match(start) for start in starts):
        raise SourceError(
            f"{uri}: column {quoted(column)} is its only binary column, but holds no images: a value begins with "
            f"{starts[0]!r}. Name the column of images with source.image_column, or that of URIs with "
            "source.uri_column (in a config file)"
        )


def _first_values(fs: Any, path: str, column: str, group: int | None = None) -> list[bytes]:
    """Return the first values of a column, or of one row group of it, that are not null, from one small batch."""
    table = open_parquet(fs, path)
    with contextlib.closing(table):
        leaf = leaf_of(table.schema_arrow, column)
        every = range(table.num_row_groups) if group is None else (group,)
        groups = ([number] for number in every)  # pyarrow joins no nested dictionaries of several
        options = {"batch_size": _PEEK_ROWS, "columns": [leaf], "use_threads": False}
        for batch in itertools.chain.from_iterable(table.iter_batches(row_groups=one, **options) for one in groups):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            if found := [value.as_py() for value in values if value.is_valid]:
                return found
    return []


def _image_column(uri: str, schema: pa.Schema, given: str | None) -> str:
    names = quoted_names(schema.names)
    if given is not None:
        if given not in schema.names:
            raise SourceError(f"{uri}: no column {given!r}; it has {names}")
        if not _has_bytes(schema.field(given).type):
            kind = quoted_names([str(schema.field(given).type)])
            raise SourceError(f"{uri}: column {given!r} is {kind}, no image. {odd_image_column(schema, given) or _SAY}")
        return given
    found = sure_image_columns(schema)
    if not found and (lists := image_lists(schema)):
        raise SeveralColumnsError(
            f"{uri}: column {quoted(lists[0])} holds lists of images, and one image a row is read: write it with a row "
            "for each (explode, unnest), or name another column with source.image_column"
        )
    found = found or binary_columns(schema)
    if not found:
        raise SourceError(f"{uri}: no column of images; it has {names}. {odd_image_column(schema) or _SAY}")
    if len(found) > 1:
        raise SeveralColumnsError(
            f"{uri}: several columns may hold images ({quoted_names(found)}): name one with "
            "source.image_column (in a config file)"
        )
    return found[0]


def sure_image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that are images by their metadata, type or name, see row_form."""
    binary = binary_columns(schema)
    features = _features(schema)
    structs = [name for name in binary if pa.types.is_struct(schema.field(name).type)]
    called = [name for name in binary if features.get(name) == "Image"]
    usual = [name for name in binary if name in IMAGE_COLUMNS and name not in structs]
    # Metadata that exists and calls no column an Image is believed: a struct with bytes may then be audio.
    return called or ([] if features else structs) or usual


def binary_columns(schema: pa.Schema) -> list[str]:
    """Return the columns whose values are bytes, or structs with a binary field ``bytes``; no geometries."""
    return [field.name for field in schema if _has_bytes(field.type) and not _is_geometry(schema, field)]


def image_lists(schema: pa.Schema) -> list[str]:
    """Return the columns whose values are lists of what may be images."""
    lists = [field for field in schema if pa.types.is_nested(field.type) and not pa.types.is_struct(field.type)]
    return [field.name for field in lists if field.type.num_fields == 1 and _has_bytes(field.type.field(0).type)]


def odd_image_column(schema: pa.Schema, given: str | None = None) -> str:
    """Return how a column is to be written that may be meant as images, by its name or as the only one of such types.

    Empty if there is none. Values of a fixed size are mostly hashes, and lists of numbers anything.
    """
    odd = {field.name: how for field in schema if (how := _mended(_bytes_type(field.type)))}
    usual = [name for name in odd if name == given or (given is None and name in IMAGE_COLUMNS)]
    names = usual or ([] if given else list(odd))
    if len(names) != 1:
        return ""
    kind = quoted_names([str(schema.field(names[0]).type)])
    return f"If column {quoted(names[0])} ({kind}) is meant, {odd[names[0]]}"


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return kind.field(place).type if place >= 0 else kind


def _mended(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_binary(kind):
        return "write it as binary: column.cast(pa.binary())"
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return ""
    if pa.types.is_integer(kind.value_type):
        return "write the bytes of each picture as binary: pa.array([bytes(one) for one in column.to_pylist()])"
    is_pixels = pa.types.is_nested(kind.value_type) and not pa.types.is_struct(kind.value_type)
    return "write each array of pixels as a picture (PNG) in a binary column" if is_pixels else ""


def _is_geometry(schema: pa.Schema, field: pa.Field) -> bool:
    """Return whether a column is a geometry by GeoParquet's or GeoArrow's metadata."""
    kind = (field.metadata or {}).get(b"ARROW:extension:name", b"")
    is_geo = bool(kind.startswith((b"geoarrow.", b"ogc.")))
    with contextlib.suppress(ValueError, KeyError, TypeError):
        is_geo = is_geo or field.name in load_json((schema.metadata or {})[b"geo"])["columns"]
    return is_geo


def text_column(schema: pa.Schema, names: Sequence[str]) -> str | None:
    """Return the first of some names that is a text column; None if none is."""
    kinds = {field.name: field.type for field in schema}
    return next((name for name in names if name in kinds and _is_text(kinds[name])), None)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _has_bytes(kind.field(place).type)
    return is_bytes(kind)


def _features(schema: pa.Schema) -> dict[str, str]:
    """Return the feature types of the columns in Hugging Face's metadata; empty without such metadata."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        features = load_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: str(kind.get("_type")) for name, kind in features.items() if isinstance(kind, dict)}
    return {}


def _rows(fs: Any, path: str, table: pq.ParquetFile, form: RowForm) -> Iterator[dict[str, Any]]:
    """Read all columns without binary data; of the image column only the path."""
    columns = [field.name for field in table.schema_arrow if not holds_binary(field.type)]
    columns += [f"{form.image}.path"] if form.has_path else []
    return iter_rows(fs, path, table, columns)


@contextlib.contextmanager
def parquet_errors(uri: str) -> Iterator[None]:
    """Raise a SourceError in place of any exception from reading a Parquet file."""
    try:
        with source_errors(uri):
            yield
    except ChunkTooLargeError as error:
        raise SourceError(f"{uri}: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{uri}: not a readable Parquet file: {error}") from error
