"""Fetch one image's bytes, bounded in size and time, with the reason where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from pipelines.storage import error_code, explain, open_filesystem
from pipelines.types import ImageRef, Reason


class FetchError(Exception):
    """An image's bytes could not be had. ``reason`` is what its row will say."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def fetch(ref: ImageRef, *, options: Mapping[str, Any] | None, max_bytes: int, timeout_s: float) -> bytes:
    """Fetch an image's bytes, bounded in size and (for object stores) in time.

    Args:
        ref: the planned image.
        options: storage options of its source.
        max_bytes: refuse anything larger, before transferring it where the size is known.
        timeout_s: seconds for the whole transfer.

    Raises:
        FetchError: with the reason for the image's row.
    """
    if ref.num_bytes is not None and ref.num_bytes > max_bytes:
        raise FetchError(Reason.TOO_MANY_BYTES, f"{ref.num_bytes:,} bytes; max_image_bytes is {max_bytes:,}")
    try:
        fs, path = open_filesystem(ref.uri, options)
        span: dict[str, int] = {} if ref.num_bytes is not None else {"start": 0, "end": max_bytes + 1}
        if isinstance(fs, AsyncFileSystem):
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


def _fetch_reason(error: Exception) -> Reason:
    if isinstance(error, FileNotFoundError):
        return Reason.NOT_FOUND
    if isinstance(error, PermissionError):
        return Reason.ACCESS_DENIED
    if isinstance(error, TimeoutError | FSTimeoutError):
        return Reason.FETCH_TIMEOUT
    return Reason.FETCH_FAILED
