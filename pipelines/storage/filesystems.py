"""Open the filesystem behind a URI: the one place that knows which protocols are allowed and how each is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from pipelines.errors import ProtocolError, StorageError
from pipelines.redaction import quoted
from pipelines.storage.client_limits import BOUNDED_PROTOCOLS, REQUEST_TIMEOUT_S, bounded_filesystem

PROTOCOLS = ("file", "s3", "gs", "memory")
READ_ONLY_PROTOCOLS = ("hf",)
HTTP_PROTOCOLS = ("http", "https")
ALIASES = {"local": "file", "s3a": "s3", "gcs": "gs"}
SCHEMES = frozenset((*PROTOCOLS, *READ_ONLY_PROTOCOLS, *HTTP_PROTOCOLS, *ALIASES))


def protocol_of(uri: str, *, allow_http: bool = False) -> str:
    """Return the protocol of a URI or plain path: file, s3, gs, memory or hf; http or https only if allowed.

    Raises:
        ProtocolError: any other protocol.
    """
    protocol = uri.split("://", 1)[0].lower() if "://" in uri else "file"
    protocol = ALIASES.get(protocol, protocol)
    if protocol in (*PROTOCOLS, *READ_ONLY_PROTOCOLS) or (allow_http and protocol in HTTP_PROTOCOLS):
        return protocol
    if protocol in HTTP_PROTOCOLS:
        raise ProtocolError(
            f"{quoted(uri)}: only images that a list or table names are fetched from the web, with "
            "source.allow_http = true"
        )
    raise ProtocolError(
        f"{quoted(uri)}: protocol {quoted(protocol)} is not supported; use a path or one of s3://, gs://, hf://, memory://"
    )


def absolute_uri(uri: str) -> str:
    """Return the one spelling of a location: an absolute path, or a URI without alias or trailing slash.

    Raises:
        StorageError: unsupported protocol.
    """
    protocol, path = protocol_of(uri), uri.split("://", 1)[-1]
    if protocol == "file":
        absolute = os.path.abspath(os.path.expanduser(path))
        return "/" + absolute.lstrip("/")  # abspath keeps two leading slashes, as POSIX allows
    return f"{protocol}://{path.rstrip('/')}"


def odd_part(uri: str) -> str | None:
    """Describe what in a URI's path storage clients and servers interpret differently; None if there is nothing.

    What one of them writes under such a name, another lists under a different name, or not at all: a server may fold
    ``a//b`` into ``a/b``, for one. Local paths cannot have such a part: they are made absolute first.
    """
    path = uri.split("://", 1)[-1].rstrip("/")
    if protocol_of(uri) == "file" or not path:
        return None
    words = {"": "an empty folder name ('//')", ".": "the folder name '.'", "..": "the folder name '..'"}
    odd = next((words[part] for part in words if part in path.split("/")), None)
    return odd or ("a backslash" if "\\" in path else None)


def open_filesystem(uri: str, options: Mapping[str, Any] | None = None, *, allow_http: bool = False) -> tuple[Any, str]:
    """Open the filesystem behind a URI.

    Args:
        uri: a local path, or file://, s3://, gs://, memory://, hf:// (its token is the machine's own), http(s)://.
        options: fsspec storage options without credentials, e.g. ``{"endpoint_url": "http://127.0.0.1:8333"}``; and
            ``request_timeout_s``, the seconds that one request to an object store may take. ``http`` is passed over.
        allow_http: whether http:// and https:// are allowed.

    Returns:
        The fsspec filesystem and the path inside it (absolute for local files, the URL itself for http).

    Raises:
        ProtocolError: unsupported protocol.
        StorageError: the protocol's client library is not installed.
    """
    protocol = protocol_of(uri, allow_http=allow_http)
    options = dict(options or {}) if protocol in ("s3", "gs", "hf") else {}
    request_timeout_s = options.pop("request_timeout_s", REQUEST_TIMEOUT_S)
    options.pop("http", None)
    if protocol in HTTP_PROTOCOLS:
        options["client_kwargs"] = {"trust_env": True}  # aiohttp ignores the machine's proxy settings by default
    if protocol == "file":
        return fsspec.filesystem("file"), absolute_uri(uri)
    try:
        if protocol in BOUNDED_PROTOCOLS:
            # Other drivers and replicas write to the same folders: a cached listing would hide their commits.
            fs = bounded_filesystem(protocol, {**options, "use_listings_cache": False}, request_timeout_s)
        else:
            fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise StorageError(
            f"{uri!r} needs a package that is not installed: pip install 'xsam-label[gcs]' ({error})"
        ) from error
    # The URI may be written with an alias or in capitals; clients strip only their own spelling.
    return fs, fs._strip_protocol(f"{protocol}://{uri.split('://', 1)[1]}")


def read_range(fs: Any, path: str, start: int, end: int) -> bytes:
    """Return the bytes of a file from ``start`` up to ``end`` (exclusive), requesting only those."""
    # Asynchronous filesystems send one range request. The others open the file, and would read ahead by blocks.
    if isinstance(fs, AsyncFileSystem):
        return bytes(fs.cat_file(path, start=start, end=end))
    return bytes(fs.cat_file(path, start=start, end=end, cache_type="none"))


def read_info(fs: Any, path: str) -> Mapping[str, Any]:
    """Return a file's metadata (size, times, version tag) as the store has them now, past any cache."""
    if isinstance(fs, AsyncFileSystem) and "s3" in fs.protocol:
        return sync(fs.loop, _head_object, fs, path)  # type: ignore[no-any-return]
    everything = {"expand_info": True} if fs.protocol == "hf" else {}  # without it hf:// leaves out the version
    info: Mapping[str, Any] = fs.info(path, refresh=True, **everything)
    return info


def path_exists(fs: Any, path: str) -> bool:
    """Return whether a file exists."""
    if not isinstance(fs, AsyncFileSystem):
        return bool(fs.exists(path))
    try:
        read_info(fs, path)
    except FileNotFoundError:
        return False
    return True


async def _head_object(fs: Any, path: str) -> Mapping[str, Any]:
    """Return an object's metadata in S3: for a name that nothing has, s3fs itself would also list what is below it."""
    bucket, key, version = fs.split_path(path)
    versioned = {"VersionId": version} if version else {}
    found = await fs._call_s3("head_object", fs.kwargs, Bucket=bucket, Key=key, **versioned)
    return {
        "name": path,
        "type": "file",
        "size": found["ContentLength"],
        "ETag": found.get("ETag", ""),
        "LastModified": found.get("LastModified", ""),
    }
