"""Fetch one image's bytes, bounded in size and time, with the reason where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.http import HTTPFileSystem

from pipelines.storage import ProtocolError, error_code, explain, open_filesystem
from pipelines.types import ImageRef, Reason

_WEB_CHUNK_BYTES = 2**18
_WEB_ERRORS: Mapping[int, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}


class FetchError(Exception):
    """An image's bytes could not be had. ``reason`` is what its row will say."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def fetch(
    ref: ImageRef,
    *,
    options: Mapping[str, Any] | None,
    max_bytes: int,
    timeout_s: float,
    allow_http: bool = False,
) -> bytes:
    """Fetch an image's bytes, bounded in size and (for object stores and the web) in time.

    Args:
        ref: the planned image.
        options: storage options of its source.
        max_bytes: refuse anything larger, before transferring it where the size is known.
        timeout_s: seconds for the whole transfer.
        allow_http: whether the web may be asked.

    Raises:
        FetchError: with the reason for the image's row.
    """
    if ref.num_bytes is not None and ref.num_bytes > max_bytes:
        raise FetchError(Reason.TOO_MANY_BYTES, f"{ref.num_bytes:,} bytes; max_image_bytes is {max_bytes:,}")
    try:
        fs, path = open_filesystem(ref.uri, options, allow_http=allow_http)
        span: dict[str, int] = {} if ref.num_bytes is not None else {"start": 0, "end": max_bytes + 1}
        if isinstance(fs, HTTPFileSystem):
            data = sync(fs.loop, _read_web, fs, path, max_bytes, timeout=timeout_s)
        elif isinstance(fs, AsyncFileSystem):
            data = sync(fs.loop, fs._cat_file, path, timeout=timeout_s, **span)
        else:
            data = fs.cat_file(path, **span)
    except Exception as error:
        if error_code(error) in ("InvalidRange", "416"):
            return b""
        raise FetchError(_fetch_reason(error), explain(error, ref.uri)) from error
    if len(data) > max_bytes:
        raise FetchError(Reason.TOO_MANY_BYTES, f"more than max_image_bytes, {max_bytes:,}")
    return bytes(data)


async def _read_web(fs: HTTPFileSystem, url: str, max_bytes: int) -> bytes:
    """Read at most one byte more than allowed: a server need not say how much it sends, nor heed a range."""
    session = await fs.set_session()
    async with session.get(url, headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status in _WEB_ERRORS:
            raise _WEB_ERRORS[answer.status](f"HTTP {answer.status} {answer.reason}")
        answer.raise_for_status()
        data = bytearray()
        while len(data) <= max_bytes and (chunk := await answer.content.read(_WEB_CHUNK_BYTES)):
            data += chunk
    return bytes(data)


def _fetch_reason(error: Exception) -> Reason:
    if isinstance(error, ProtocolError):
        return Reason.NOT_ALLOWED
    if isinstance(error, FileNotFoundError):
        return Reason.NOT_FOUND
    if isinstance(error, PermissionError):
        return Reason.ACCESS_DENIED
    if isinstance(error, TimeoutError | FSTimeoutError):
        return Reason.FETCH_TIMEOUT
    return Reason.FETCH_FAILED
