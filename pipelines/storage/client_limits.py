"""How long a request to an object store may take, whatever its client library tries again within it.

The libraries' own limits multiply: each of several retries of each of several layers waits for its own time, and a PUT
that waits for leave to send its body (Expect: 100-continue) is under no limit at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import cache
from typing import Any, TypeVar

import fsspec

REQUEST_TIMEOUT_S = 180.0
"""Seconds for one request, unless a config says otherwise."""
BOUNDED_PROTOCOLS = ("s3", "gs")

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 60.0
# So that a connection that has died in silence leaves time for another.
_MIN_TRIES = 3

_T = TypeVar("_T")


class RequestTimeoutError(OSError):
    """A store did not answer in time. Of no class that a client library would take for a reason to try again."""


def check_request_timeout(name: str, seconds: float) -> None:
    """Refuse what is no time to wait.

    Raises:
        ValueError: naming the setting.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} is {seconds:g}; allowed: more than 0 seconds")


def bounded_filesystem(protocol: str, options: Mapping[str, Any], request_timeout_s: float) -> Any:
    """Open an object store whose every request ends in time.

    A request is the reading, writing or removal of one object, a question about one, or one page of a listing.

    Args:
        protocol: one of BOUNDED_PROTOCOLS.
        options: for its client.
        request_timeout_s: seconds for a request, its repetitions included; then it raises RequestTimeoutError.

    Raises:
        ImportError: its client library is not installed.
    """
    options = dict(options)
    if protocol == "s3":
        # botocore reads AWS_ENDPOINT_URL by itself.
        limits = {
            "connect_timeout": min(_CONNECT_TIMEOUT_S, request_timeout_s / _MIN_TRIES),
            "read_timeout": min(_READ_TIMEOUT_S, request_timeout_s / _MIN_TRIES),
            "retries": {"max_attempts": _MIN_TRIES - 1},
        }
        options["config_kwargs"] = limits | dict(options.get("config_kwargs") or {})
    return _bounded_class(protocol)(request_timeout_s=request_timeout_s, **options)


class _Bounded:
    """What is laid over the class of an object store's client: each of its requests under one clock."""

    def __init__(self, *args: Any, request_timeout_s: float, **kwargs: Any) -> None:
        self.request_timeout_s = request_timeout_s
        super().__init__(*args, **kwargs)

    async def _in_time(self, request: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self.request_timeout_s) as clock:
                return await request
        except TimeoutError:
            if not clock.expired():
                raise
            raise RequestTimeoutError(f"no answer in {self.request_timeout_s:g} s") from None


def _in_time(name: str, base: type) -> Any:
    request = getattr(base, name)

    async def bounded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await self._in_time(request(self, *args, **kwargs))

    return bounded


# The last ones are through which everything else goes: pages of listings, and what files that are open ask for.
_REQUESTS = ("_cat_file", "_pipe_file", "_info", "_exists", "_rm_file", "_call_s3", "_call")


@cache
def _bounded_class(protocol: str) -> Any:
    base = fsspec.get_filesystem_class(protocol)
    requests = {name: _in_time(name, base) for name in _REQUESTS if hasattr(base, name)}
    bounded: Any = type(base)(f"Bounded{base.__name__}", (_Bounded, base), requests)
    # One memory of what is open, so that whoever clears the client's own clears this too.
    bounded._cache = base._cache
    return bounded
