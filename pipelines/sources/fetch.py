"""Fetch one image's bytes within limits on size and time; a failure has the reason for the image's row."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from pipelines.errors import ProtocolError
from pipelines.redaction import quoted, redacted
from pipelines.sources.files import look_up
from pipelines.sources.locations import ByteRange, ParquetCell, split_location
from pipelines.sources.parquet_values import ChangedError, ChunkTooLargeError, Reserve, read_value, take_freely
from pipelines.storage.client_errors import error_code, explain, is_denied, is_missing
from pipelines.storage.client_limits import RequestTimeoutError
from pipelines.storage.filesystems import HTTP_PROTOCOLS, open_filesystem, protocol_of, read_range
from pipelines.storage.spellings import other_spellings
from pipelines.storage.web import HttpConfig, read_web
from pipelines.types import ImageRef, Reason

_HEADER_BYTES = 512  # of a tar
_USUAL_BYTES = 2**22  # first read of a file of unknown size: most images are smaller


class FetchError(Exception):
    """An image's bytes could not be fetched. ``reason`` goes into its row; the message contains no secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, redacted(message))  # both, so that it survives pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


def fetch(
    ref: ImageRef,
    *,
    options: Mapping[str, Any] | None,
    max_bytes: int,
    timeout_s: float,
    allow_http: bool = False,
    reserve: Reserve = take_freely,
) -> bytes:
    """Fetch an image's bytes, limited in size and (for object stores and the web) in time.

    At most ``max_bytes`` + 1 are read, whatever size the listing gave: the file may have grown since.

    Args:
        ref: the planned image.
        options: storage options of its source; ``http`` among them is how web servers are asked, see HttpConfig.
        max_bytes: refuse anything larger, before transferring it where the size is known.
        timeout_s: seconds for the whole transfer.
        allow_http: whether http:// and https:// are allowed.
        reserve: called with a number of bytes before they are allocated; may block until there is room.

    Raises:
        FetchError: the image cannot be fetched, for the reason given.
    """
    uri, place = split_location(ref.uri)
    num_bytes = place.size if isinstance(place, ByteRange) else ref.num_bytes
    if num_bytes is not None and num_bytes > max_bytes:
        raise FetchError(Reason.TOO_MANY_BYTES, f"{num_bytes:,} bytes; max_image_bytes is {max_bytes:,}")
    # The tag of an image inside a file is that of the file, followed by the image's location.
    version = split_location(ref.etag)[0] if ref.etag else None
    try:
        fs, path = open_filesystem(uri, options, allow_http=allow_http)
        if isinstance(place, ParquetCell):
            data = _read_cell(uri, options, place, version, max_bytes, reserve)
        elif isinstance(place, ByteRange):
            reserve(2 * place.size)  # the bytes read, and the slice of them that is the image
            data = _read_span(fs, path, place, version, timeout_s)
        elif protocol_of(uri, allow_http=allow_http) in HTTP_PROTOCOLS:
            web = HttpConfig.model_validate((options or {}).get("http") or {})
            read = partial(_read_web, fs, path, timeout_s=timeout_s, config=web)
            data = _read_whole(read, num_bytes, max_bytes, reserve)
        else:
            data = _read_spelled(
                fs, path, timeout_s, partial(_read_whole, num_bytes=num_bytes, max_bytes=max_bytes, reserve=reserve)
            )
    except FetchError:
        raise
    except Exception as error:
        # Stores refuse any range of an empty object: that image has zero bytes, which decoding reports.
        if place is None and _is_out_of_range(error):
            return b""
        raise FetchError(_fetch_reason(error), explain(error, ref.uri)) from error
    return data


def _read_whole(read: Callable[[int], bytes | None], num_bytes: int | None, max_bytes: int, reserve: Reserve) -> bytes:
    """Read a whole file, whose size the listing may have given.

    If it is larger than expected, it is read again from the start, once there is room for the largest allowed size. It
    is not continued where the first read ended, since the two parts might be of different versions.
    """
    expected = min(max_bytes, _USUAL_BYTES if num_bytes is None else num_bytes)
    reserve(expected)
    data = read(expected)
    if data is None and expected < max_bytes:
        reserve(max_bytes - expected)
        data = read(max_bytes)
    if data is None:
        raise FetchError(Reason.TOO_MANY_BYTES, f"more than max_image_bytes, {max_bytes:,}")
    return data


def _read_spelled(
    fs: Any, path: str, timeout_s: float, read_whole: Callable[[Callable[[int], bytes | None]], bytes]
) -> bytes:
    """Read a file by its path as written, or if nothing is there, by another spelling of it."""
    try:
        return read_whole(partial(_read_start, fs, path, timeout_s=timeout_s))
    except Exception as error:
        if not is_missing(error):
            raise
        for spelled in other_spellings(path):
            with contextlib.suppress(FileNotFoundError):
                return read_whole(partial(_read_start, fs, spelled, timeout_s=timeout_s))
        raise


def _read_start(fs: Any, path: str, most: int, *, timeout_s: float) -> bytes | None:
    """Read a file of up to ``most`` bytes; None if it is larger, which reading one byte more shows."""
    data = _read(fs, path, (0, most + 1), timeout_s)
    return None if len(data) > most else data


def _read(fs: Any, path: str, part: tuple[int, int], timeout_s: float) -> bytes:
    """Read the part of a file from start up to end (exclusive), in one request."""
    if isinstance(fs, AsyncFileSystem):
        return bytes(sync(fs.loop, fs._cat_file, path, start=part[0], end=part[1], timeout=timeout_s))
    return read_range(fs, path, *part)


def _read_span(fs: Any, path: str, place: ByteRange, version: str | None, timeout_s: float) -> bytes:
    """Read a byte range of a file, and check that it is still the one that was listed.

    A tar member is checked by its header, which is read along with it. Other ranges need a request for the file's
    version tag.
    """
    before = 0 if place.header is None else _HEADER_BYTES
    if not before and version is not None and look_up(fs, path).etag != version:
        raise _changed()
    if before + place.size == 0:
        return b""
    try:
        data = _read(fs, path, (place.offset - before, place.offset + place.size), timeout_s)
    except Exception as error:
        if _is_out_of_range(error):
            raise _changed() from error
        raise
    if len(data) != before + place.size or (before and zlib.crc32(data[:before]) != place.header):
        raise _changed()
    return data[before:]


def _read_cell(
    uri: str,
    options: Mapping[str, Any] | None,
    place: ParquetCell,
    version: str | None,
    max_bytes: int,
    reserve: Reserve,
) -> bytes:
    try:
        value = read_value(uri, options, place.column, place.row, version=version, max_bytes=max_bytes, reserve=reserve)
    except ChangedError as error:
        raise _changed() from error
    except ChunkTooLargeError as error:
        raise FetchError(Reason.TOO_MANY_BYTES, str(error)) from error
    if value is None:
        raise FetchError(Reason.NOT_FOUND, f"row {place.row} has no bytes in column {quoted(place.column)}")
    return value


def _is_out_of_range(error: Exception) -> bool:
    """Return whether an error means that a file has no bytes in the requested range; any range of an empty file has."""
    return error_code(error) in ("InvalidRange", "416") or getattr(error, "code", None) in (416, "416")


def _changed() -> FetchError:
    return FetchError(
        Reason.FETCH_FAILED, "the file that holds the image has changed since it was listed; plan again, as a new run"
    )


def _read_web(fs: Any, url: str, most: int, *, timeout_s: float, config: HttpConfig) -> bytes | None:
    async def read() -> bytes | None:
        return await read_web(await fs.set_session(), url, most, timeout_s=timeout_s, config=config)

    data: bytes | None = sync(fs.loop, read, timeout=timeout_s)
    return data


def _fetch_reason(error: Exception) -> Reason:
    if isinstance(error, ProtocolError):
        return Reason.NOT_ALLOWED
    if is_missing(error):
        return Reason.NOT_FOUND
    if is_denied(error):
        return Reason.ACCESS_DENIED
    if isinstance(error, TimeoutError | FSTimeoutError | RequestTimeoutError):
        return Reason.FETCH_TIMEOUT
    return Reason.FETCH_FAILED
