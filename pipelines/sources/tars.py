"""List images inside tar files by WebDataset's naming rules, from the headers alone, as byte ranges of the tars."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, cast

from pipelines.bounded_json import load_json
from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut, is_clutter
from pipelines.redaction import quoted
from pipelines.sources.files import ListedFile, is_local, uri_of
from pipelines.sources.locations import ByteRange
from pipelines.sources.tabular import MAX_COLUMN_CHARS, columns_json, source_errors
from pipelines.sources.tar_headers import Member
from pipelines.storage.filesystems import read_range
from pipelines.types import ImageRef

KEY, PATH = "__key__", "__path__"

_BLOCK_BYTES = 512
# WebDataset's split: the key is everything up to the first dot of the base name.
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)\Z")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_COLUMN_KINDS = ("json", "txt", "cls")
# A sample is held in memory until its key ends.
_MAX_SAMPLE_IMAGES = 10_000
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
# A gap up to this size is read through: that is cheaper than another request.
_NEAR_BYTES = 2**20
_MIN_READ_BYTES, _MAX_READ_BYTES = 2**16, 2**23


@dataclass(slots=True)
class _Sample:
    """Consecutive members of a tar that have the same key."""

    key: str = ""
    images: list[tuple[str, ByteRange]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def list_tars(
    fs: Any,
    files: Iterable[ListedFile],
    extensions: tuple[str, ...],
    left_out: LeftOut,
    *,
    image_id_column: str | None = None,
) -> Iterator[ImageRef]:
    """List the images of tar files.

    The key of a member is its path up to the first dot of its base name. Consecutive members with the same key form a
    sample: those with an image's extension are its images, and its ``.json``, ``.txt`` and ``.cls`` are carried as
    ``source_columns`` (``json``, ``txt``, ``cls``) if no longer than MAX_COLUMN_CHARS each. Members named ``__...__``
    and hidden ones (see is_clutter) are skipped.

    Args:
        fs: the file system that holds the tars.
        files: the tars, in order, with their sizes.
        extensions: extensions of images, in lower case.
        left_out: counts the members that are neither images nor carried.
        image_id_column: what the ``image_id`` is made of: ``__key__`` (the default), ``__path__`` for the tar's name
            without ``.tar`` and the key, or a field of the sample's ``.json``. In a sample with several images the rest
            of the member's name is appended: ``0001.left.jpg``.

    Raises:
        SourceError: a tar is compressed, truncated or broken, or an image in it is a link or sparse.
    """
    for file in files:
        uri = uri_of(fs, file.path)
        with source_errors(uri), _opened(fs, file) as stream:
            for sample in _samples(uri, stream, file.num_bytes or 0, extensions, left_out):
                base = _sample_id(uri, file.name, sample, image_id_column)
                for ending, span in sample.images:
                    yield ImageRef(
                        image_id=f"{base}.{ending}" if len(sample.images) > 1 else base,
                        uri=f"{uri}{span}",
                        num_bytes=span.size,
                        etag=file.etag and f"{file.etag}{span}",
                        source_columns=columns_json(sample.columns, is_bounded=True),
                    )


def _sample_id(uri: str, name: str, sample: _Sample, column: str | None) -> str:
    if column in (None, KEY):
        return sample.key
    if column == PATH:
        return f"{name[: -len('.tar')] if name.lower().endswith('.tar') else name}/{sample.key}"
    described = sample.columns.get("json")
    if not isinstance(described, Mapping) or described.get(column) is None:
        raise SourceError(
            f"{uri}: sample {quoted(sample.key)} has no field {column!r} in its .json (of at most {MAX_COLUMN_CHARS:,} "
            f"characters); source.image_id_column may also be {KEY} or {PATH}"
        )
    return str(described[column])


def _samples(
    uri: str, stream: IO[bytes], num_bytes: int, extensions: tuple[str, ...], left_out: LeftOut
) -> Iterator[_Sample]:
    """Group consecutive members by key, and yield the samples that have images."""
    sample = _Sample()
    for member in _members(uri, stream, num_bytes):
        if (split := _split_name(member, left_out)) is None:
            continue
        key, ending = split
        if key != sample.key:
            if sample.images:
                yield sample
            sample = _Sample(key)
        if member.name.lower().endswith(extensions):
            if member.type not in _REGULAR or member.issparse():
                if member.isdir():
                    continue
                raise SourceError(
                    f"{uri}: {quoted(member.name)} is a link or a sparse file, which cannot be read alone; write the "
                    "tar with its images as plain files (tar --dereference --hard-dereference)"
                )
            if len(sample.images) == _MAX_SAMPLE_IMAGES:
                raise SourceError(f"{uri}: more than {_MAX_SAMPLE_IMAGES:,} images have the key {quoted(key)}")
            sample.images.append((ending, ByteRange(member.offset_data, member.size, member.header)))
        elif ending in _COLUMN_KINDS and member.type in _REGULAR and member.size <= MAX_COLUMN_CHARS:
            stream.seek(member.offset_data)
            sample.columns[ending] = _read_column(ending, stream.read(member.size))
        elif member.type in _REGULAR:
            left_out.add(member.name)
    if sample.images:
        yield sample


def _split_name(member: Member, left_out: LeftOut) -> tuple[str, str] | None:
    """Split a member's name into key and ending; None for one that is passed over, which is counted if it is a file."""
    named = _NAME.match(member.name)
    is_meta = member.name.startswith("__") and member.name.endswith("__")
    if named is not None and not is_meta and not is_clutter(member.name):
        return named[1], named[2]
    if member.type in _REGULAR and not is_meta:
        left_out.add(member.name)
    return None


def _read_column(kind: str, data: bytes) -> Any:
    """Read a sample's description: parsed if it is JSON, else as text; None if it is not text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if kind == "txt":
        return text
    try:
        value = load_json(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of an escaped surrogate pair is not text
    except ValueError:
        return text.strip()
    return value


def _members(uri: str, stream: IO[bytes], num_bytes: int) -> Iterator[Member]:
    """Read the headers in order.

    Raises:
        SourceError: the tar is compressed, truncated or broken.
    """
    start = stream.read(_BLOCK_BYTES)
    stream.seek(0)
    if kind := next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None):
        raise SourceError(f"{uri}: {_say_compressed(kind)}")
    try:
        # surrogateescape: a name that is not UTF-8 is then reported by name, not as a broken tar.
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape", tarinfo=Member) as tar:
            kept: list[tarfile.TarInfo] = vars(tar)["members"]  # tarfile keeps every member unless this is emptied
            while (member := cast(Member | None, tar.next())) is not None:
                kept.clear()
                _check_text(uri, member)
                if member.size < 0:
                    raise SourceError(f"{uri}: broken: {quoted(member.name)} is of {member.size} bytes")
                if member.isreg() and member.offset_data + member.size > num_bytes:
                    raise SourceError(f"{uri}: cut short inside {quoted(member.name)}; copy it again")
                yield member
                stream.seek(tar.offset)  # the consumer may have read the member's data
            # tarfile takes any end of the file for the end of the tar; a real one is a block of zeros.
            stream.seek(tar.offset)
            end = stream.read(_BLOCK_BYTES)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        what = "header follows header without end" if isinstance(error, RecursionError) else str(error)
        raise SourceError(f"{uri}: not a readable tar: {what}") from error
    if len(end) < _BLOCK_BYTES:
        raise SourceError(f"{uri}: cut short: it ends at byte {num_bytes:,} and not as a tar does; copy it again")
    if end.strip(b"\0"):
        raise SourceError(f"{uri}: broken at byte {tar.offset:,}, where a header should be; write or copy it again")


def _check_text(uri: str, member: tarfile.TarInfo) -> None:
    try:
        member.name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{uri}: the name of member {quoted(member.name)} is not UTF-8, so no table can hold it"
        ) from error


def _say_compressed(kind: str) -> str:
    return f"compressed with {kind}, so that no image in it can be read alone; unpack it to a plain .tar"


def refuse_compressed(fs: Any, files: Iterable[ListedFile]) -> Iterator[ImageRef]:
    """Refuse tars that are compressed by their extension.

    Raises:
        SourceError: always.
    """
    file = next(iter(files))
    raise SourceError(f"{uri_of(fs, file.path)}: {_say_compressed(PurePosixPath(file.name).suffix.lstrip('.'))}")
    yield  # makes it a generator, like the functions for other forms


@contextlib.contextmanager
def _opened(fs: Any, file: ListedFile) -> Iterator[IO[bytes]]:
    """Open a tar to read its headers in order."""
    if is_local(fs):
        with open(file.path, "rb") as stream:
            yield stream
    else:
        yield cast(IO[bytes], _SkippingReader(fs, file.path, file.num_bytes or 0))


class _SkippingReader:
    """A remote file that is read forward with few requests: small gaps are read through, large ones are skipped.

    Each request close behind the last one asks for twice as much, up to some megabytes; after a large gap the size
    starts small again. So a tar of small members is read as a stream, and one of large members header by header.
    """

    def __init__(self, fs: Any, path: str, num_bytes: int) -> None:
        self._fs, self._path, self._num_bytes = fs, path, num_bytes
        self._position = self._start = 0
        self._held = b""
        self._ask_bytes = _MIN_READ_BYTES // 2

    def seek(self, position: int) -> int:
        """Move to a position, counted from the beginning."""
        self._position = position
        return position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        end = min(self._position + size, self._num_bytes)
        if end <= self._position:
            return b""
        held_end = self._start + len(self._held)
        if self._position < self._start or end > held_end:
            is_near = self._start <= self._position <= held_end + _NEAR_BYTES
            self._ask_bytes = min(2 * self._ask_bytes, _MAX_READ_BYTES) if is_near else _MIN_READ_BYTES
            ask_end = min(max(end, self._position + self._ask_bytes), self._num_bytes)
            self._held = read_range(self._fs, self._path, self._position, ask_end)
            self._start = self._position
        begin = self._position - self._start
        data = self._held[begin : begin + end - self._position]
        self._position += len(data)
        return data
