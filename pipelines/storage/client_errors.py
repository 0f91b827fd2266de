"""What the storage clients' many errors mean, in words: what is wrong at which location, and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from fsspec.exceptions import FSTimeoutError

from pipelines.errors import StorageError
from pipelines.redaction import redacted
from pipelines.storage.client_limits import RequestTimeoutError
from pipelines.storage.filesystems import ALIASES

_CLIENT_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "huggingface_hub", "httpx")
# What their errors of a server that cannot be reached are called, and what says where the server is.
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
_ADDRESS_SETTINGS = {
    "s3": "AWS_ENDPOINT_URL or storage_options.endpoint_url",
    "gs": "storage_options.endpoint_url",
    "hf": "HF_ENDPOINT",
}


def error_code(error: BaseException | None) -> str | None:
    """Return the S3 error code behind an exception, looking through its causes; None where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", "")) or None
        error = error.__cause__
    return None


def is_missing(error: BaseException) -> bool:
    """Say whether an error means that there is nothing at a location."""
    return isinstance(error, FileNotFoundError) or _http_status(error) in (404, 410)


def is_denied(error: BaseException) -> bool:
    """Say whether an error means that a location may not be read or written."""
    return isinstance(error, PermissionError) or _http_status(error) in (401, 403)


def _http_status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def explain(error: BaseException, uri: str) -> str:
    """Say in words what went wrong at a storage location and what to do about it; never includes a credential."""
    return redacted(_explanation(error, uri))


def _explanation(error: BaseException, uri: str) -> str:
    kind, code = type(error).__name__, error_code(error)
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            f"{uri}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use a role"
        )
    if is_denied(error):
        return f"{uri}: access denied ({code or error}); check the credentials and the permissions on this location"
    if is_missing(error):
        private = "; what is private needs HF_TOKEN in the environment" if uri.startswith("hf://") else ""
        where = code or "no such bucket, folder or file"
        return f"{uri}: not found ({where}); check the spelling and that it exists{private}"
    if kind in _UNREACHABLE:
        scheme = uri.partition("://")[0].lower()
        advice = _ADDRESS_SETTINGS.get(ALIASES.get(scheme, scheme), "the address")
        return f"{uri}: the server does not answer ({error}); check {advice} and the network"
    if isinstance(error, NotADirectoryError):
        what = "a part of this path is a file, not a folder; give a folder"
    elif isinstance(error, RequestTimeoutError):
        what = f"{error}; check the endpoint and the network, or set a larger request_timeout_s"
    else:
        what = f"{kind}: {error}"
    return f"{uri}: {what}"


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn the storage clients' many exceptions into one StorageError with a clear message."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, FSTimeoutError) as error:
        raise StorageError(explain(error, uri)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in _CLIENT_PACKAGES:
            raise StorageError(explain(error, uri)) from error
        raise
