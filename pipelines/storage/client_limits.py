"""One wall-clock limit for a request to an object store, its client library's retries included.

The libraries' own timeouts multiply: s3fs retries what botocore already retries, and each try waits for its own read
timeout (15 minutes in all with the defaults). A PUT that waits for the server's "100 Continue" has no timeout at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import cache
from typing import Any, TypeVar

import fsspec

REQUEST_TIMEOUT_S = 180.0
"""Seconds for one request, unless the config sets another limit."""
BOUNDED_PROTOCOLS = ("s3", "gs")

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 60.0
# A connection that died silently must time out early enough to leave time for further tries on new ones.
_MIN_TRIES = 3

_T = TypeVar("_T")


class RequestTimeoutError(OSError):
    """A store did not answer in time.

    Not a TimeoutError: s3fs retries those (socket.timeout is the same class), which would defeat the limit.
    """


def check_request_timeout(name: str, seconds: float) -> None:
    """Check that a timeout is positive and finite.

    Raises:
        ValueError: it is not; the message names the setting.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {seconds:g}; allowed: more than 0 seconds")


def bounded_filesystem(protocol: str, options: Mapping[str, Any], request_timeout_s: float) -> Any:
    """Open an object store's filesystem so that no request takes longer than a given time.

    A request reads, writes, deletes or looks up one object, or fetches one page of a listing.

    Args:
        protocol: one of BOUNDED_PROTOCOLS.
        options: constructor options of the fsspec filesystem.
        request_timeout_s: seconds for a request including its retries; after that it raises RequestTimeoutError.

    Raises:
        ImportError: the client library is not installed.
    """
    options = dict(options)
    if protocol == "s3":
        # No endpoint_url here: botocore reads AWS_ENDPOINT_URL by itself.
        limits = {
            "connect_timeout": min(_CONNECT_TIMEOUT_S, request_timeout_s / _MIN_TRIES),
            "read_timeout": min(_READ_TIMEOUT_S, request_timeout_s / _MIN_TRIES),
            "retries": {"max_attempts": _MIN_TRIES - 1},
        }
        options["config_kwargs"] = limits | dict(options.get("config_kwargs") or {})
        # With more, s3fs asks for the size of every object before it reads it: twice the requests, for pieces that only
        # objects of more than 50 MiB are read in.
        options.setdefault("max_concurrency", 1)
    return _bounded_class(protocol)(request_timeout_s=request_timeout_s, **options)


class _Bounded:
    """Mixin over an fsspec filesystem class that puts each request under one timeout."""

    def __init__(self, *args: Any, request_timeout_s: float, **kwargs: Any) -> None:
        self.request_timeout_s = request_timeout_s
        super().__init__(*args, **kwargs)

    async def _in_time(self, request: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self.request_timeout_s) as clock:
                return await request
        except TimeoutError:
            # A TimeoutError of the client itself, within the limit, is passed on as what it is.
            if not clock.expired():
                raise
            raise RequestTimeoutError(f"no answer in {self.request_timeout_s:g} s") from None


def _in_time(name: str, base: type) -> Any:
    request = getattr(base, name)

    async def bounded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._in_time(request(self, *args, **kwargs))

    return bounded


# _call_s3 and _call are the lowest level, which listings and open files go through; the others are wrapped as well
# because they repeat such calls, and the limit must cover the repetitions.
_REQUESTS = ("_cat_file", "_pipe_file", "_info", "_exists", "_rm_file", "_call_s3", "_call")


@cache
def _bounded_class(protocol: str) -> Any:
    base = fsspec.get_filesystem_class(protocol)
    requests = {name: _in_time(name, base) for name in _REQUESTS if hasattr(base, name)}
    bounded: Any = type(base)(f"Bounded{base.__name__}", (_Bounded, base), requests)
    # fsspec caches instances per class. Sharing the base class's cache lets clear_instance_cache() reach these, too.
    bounded._cache = base._cache
    return bounded
