"""The only place that knows s3://, gs://, hf://, file://, memory:// and http://: which are allowed, how they open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from pipelines.errors import ProtocolError, StorageError
from pipelines.redaction import quoted
from pipelines.storage.client_limits import BOUNDED_PROTOCOLS, REQUEST_TIMEOUT_S, bounded_filesystem

PROTOCOLS = ("file", "s3", "gs", "memory")
READ_ONLY_PROTOCOLS = ("hf",)
HTTP_PROTOCOLS = ("http", "https")
ALIASES = {"local": "file", "s3a": "s3", "gcs": "gs"}
SCHEMES = frozenset((*PROTOCOLS, *READ_ONLY_PROTOCOLS, *HTTP_PROTOCOLS, *ALIASES))


def protocol_of(uri: str, *, allow_http: bool = False) -> str:
    """Return file, s3, gs, memory or hf for a URI or plain path; http and https where they are allowed.

    Raises:
        ProtocolError: for any other protocol.
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
    """Return a URI or path as one location is always written: absolute, without ``..``, alias or slash at its end.

    Raises:
        StorageError: unsupported protocol.
    """
    protocol, path = protocol_of(uri), uri.split("://", 1)[-1]
    if protocol == "file":
        absolute = os.path.abspath(os.path.expanduser(path))
        return "/" + absolute.lstrip("/")  # two slashes at its beginning would stay two
    return f"{protocol}://{path.rstrip('/')}"


def odd_part(uri: str) -> str | None:
    """Say in words what in a URI's path clients and servers do not all take alike; None if there is nothing.

    What one of them writes under such a name another lists under a second one, or not at all. Paths of this machine
    have no such part: they are made absolute.
    """
    path = uri.split("://", 1)[-1].rstrip("/")
    if protocol_of(uri) == "file" or not path:
        return None
    for part, words in (
        ("", "an empty folder name ('//')"),
        (".", "the folder name '.'"),
        ("..", "the folder name '..'"),
    ):
        if part in path.split("/"):
            return words
    return "a backslash" if "\\" in path else None


def open_filesystem(uri: str, options: Mapping[str, Any] | None = None, *, allow_http: bool = False) -> tuple[Any, str]:
    """Open the filesystem behind a URI.

    Args:
        uri: a local path, or file://, s3://, gs://, memory://, hf:// (its token is the machine's own), http(s)://.
        options: fsspec storage options without credentials, e.g. ``{"endpoint_url": "http://127.0.0.1:8333"}``; and
            ``request_timeout_s``, the seconds that one request to an object store may take.
        allow_http: whether the web may be asked.

    Returns:
        The fsspec filesystem and the path inside it (absolute for local files, the URL itself for http).

    Raises:
        ProtocolError: unsupported protocol.
        StorageError: its client library is not installed.
    """
    protocol = protocol_of(uri, allow_http=allow_http)
    options = dict(options or {}) if protocol in ("s3", "gs", "hf") else {}
    request_timeout_s = options.pop("request_timeout_s", REQUEST_TIMEOUT_S)
    if protocol in HTTP_PROTOCOLS:
        options["client_kwargs"] = {"trust_env": True}  # the machine's proxy
    if protocol == "file":
        return fsspec.filesystem("file"), absolute_uri(uri)
    try:
        if protocol in BOUNDED_PROTOCOLS:
            fs = bounded_filesystem(protocol, {**options, "use_listings_cache": False}, request_timeout_s)
        else:
            fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        raise StorageError(
            f"{uri!r} needs a package that is not installed: pip install 'xsam-label[gcs]' ({error})"
        ) from error
    # Clients know a protocol by one spelling only.
    return fs, fs._strip_protocol(f"{protocol}://{uri.split('://', 1)[1]}")


def read_range(fs: Any, path: str, start: int, end: int) -> bytes:
    """Return the bytes of a file from start up to end, and ask for no others."""
    if isinstance(fs, AsyncFileSystem):
        return bytes(fs.cat_file(path, start=start, end=end))
    return bytes(fs.cat_file(path, start=start, end=end, cache_type="none"))


def read_info(fs: Any, path: str) -> Mapping[str, Any]:
    """Return what a store says of a file now, whatever it said before."""
    everything = {"expand_info": True} if fs.protocol == "hf" else {}  # which would leave the version out
    info: Mapping[str, Any] = fs.info(path, refresh=True, **everything)
    return info
