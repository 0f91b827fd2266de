"""Translate the storage clients' exceptions into one message: what failed, at which location, and what to do about it.

Each client library raises classes of its own. They are recognized by the name of the class and of its package, so that
no client has to be imported (or even installed) to explain an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from fsspec.exceptions import FSTimeoutError

from pipelines.errors import StorageError
from pipelines.redaction import redacted, shown
from pipelines.storage.client_limits import RequestTimeoutError
from pipelines.storage.filesystems import ALIASES

_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx")
# Class names that the clients use for "no connection to the server".
_UNREACHABLE = frozenset(
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionError",
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ConnectError",
        "ConnectTimeout",
    }
)
# Which setting chose the server that did not answer: what the message tells the reader to check.
_ARCHIVED = "InvalidObjectState"  # S3's code for an object in an archive
_MAX_ERROR_CHARS = 300
_ADDRESS_SETTINGS = {
    "s3": "AWS_ENDPOINT_URL or storage_options.endpoint_url",
    "gs": "storage_options.endpoint_url",
    "hf": "HF_ENDPOINT",
}


def error_code(error: BaseException | None) -> str | None:
    """Return the S3 error code of an exception or of the first of its causes that has one; None if none has."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", "")) or None
        error = error.__cause__
    return None


def is_missing(error: BaseException) -> bool:
    """Return whether an error means that nothing exists at a location."""
    return isinstance(error, FileNotFoundError) or _http_status(error) in (404, 410)


def is_denied(error: BaseException) -> bool:
    """Return whether an error means that a location may not be read or written."""
    if error_code(error) == _ARCHIVED:
        return False  # though s3fs makes a PermissionError of it
    return isinstance(error, PermissionError) or _http_status(error) in (401, 403)


def _http_status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(error: BaseException, uri: str) -> str:
    """Return a message that says what went wrong at a storage location and what to do about it, without credentials."""
    return redacted(_explanation(error, shown(uri)))


def _explanation(error: BaseException, uri: str) -> str:
    kind, code = type(error).__name__, error_code(error)
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            f"{uri}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use a role"
        )
    if code == _ARCHIVED:
        return (
            f"{uri}: archived (GLACIER, DEEP_ARCHIVE or an archive tier), so that it cannot be read now; restore it "
            "(aws s3api restore-object), then ask again: retry --reason fetch_failed"
        )
    if is_denied(error):
        return (
            f"{uri}: access denied ({code or _text(error)}); check the credentials and the permissions on this location"
        )
    if is_missing(error):
        private = "; what is private needs HF_TOKEN in the environment" if uri.startswith("hf://") else ""
        where = code or "no such bucket, folder or file"
        return f"{uri}: not found ({where}); check the spelling and that it exists{private}"
    if kind in _UNREACHABLE:
        scheme = uri.partition("://")[0].lower()
        advice = _ADDRESS_SETTINGS.get(ALIASES.get(scheme, scheme), "the address")
        return f"{uri}: the server does not answer ({_text(error)}); check {advice} and the network"
    if isinstance(error, NotADirectoryError):
        what = "a part of this path is a file, not a folder; give a folder"
    elif isinstance(error, IsADirectoryError):
        what = "a folder; give the file in it that is meant"
    elif isinstance(error, RequestTimeoutError):
        what = f"{_text(error)}; check the endpoint and the network, or set a larger request_timeout_s"
    else:
        what = f"{kind}: {_text(error)}"
    return f"{uri}: {what}"


def _text(error: BaseException) -> str:
    """Return an error's text; without the path that the system's own errors repeat, and cut if it is long."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"[Errno {error.errno}] {error.strerror}"
    text = str(error)
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]}... ({len(text):,} characters in all)"


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Raise a StorageError with a clear message in place of whatever exception a storage client raises."""
    try:
        yield
    # A StorageError is an OSError, and its message is finished: explaining it again would only wrap it.
    except StorageError:
        raise
    except (OSError, FSTimeoutError) as error:
        raise StorageError(explain(error, uri)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in _CLIENT_PACKAGES:
            raise StorageError(explain(error, uri)) from error
        raise
