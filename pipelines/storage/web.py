"""Get an image from a web server: its address as written, polite tries, bounded bytes, secrets to named hosts alone."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from pydantic import Field, model_validator

from pipelines.redaction import is_secret_header
from pipelines.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientResponse
    from yarl import URL

USER_AGENT = "xsam-label"

_CHUNK_BYTES = 2**18
_MAX_REDIRECTS = 10
# The first pause where a server does not say how long; each further one is twice as long.
_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
_BUSY = (408, 425, 429, 502, 503, 504)
_ERRORS: Mapping[int, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}
_NO_ADDRESS = "it is no address of the web, or the server names one that is none"
_ADDRESS = re.compile(r"(https?)://([^/?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL)
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*\Z")


class HttpConfig(Settings):
    """How images are asked of web servers."""

    user_agent: str = USER_AGENT
    """What the program calls itself. Some servers want a way to reach you in it."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Further headers of each request, e.g. Referer; nothing secret."""
    secret_headers: dict[str, str] = Field(default_factory=dict)
    """Headers whose values are secret, each with the environment variable that holds the value on every node."""
    hosts: tuple[str, ...] = ()
    """The only hosts that secret_headers are sent to, whatever a list names or a server redirects to."""
    tries: int = 4
    """How often a server is asked that says it is busy (408, 425, 429, 502, 503, 504) or drops the connection. Between
    the tries is the pause that it asks for (Retry-After), all within label.fetch_timeout_s.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {"User-Agent": self.user_agent, **self.headers}
        for name, value in given.items():
            if is_secret_header(name, value):
                raise ValueError(
                    f"source.http: header {name} looks like a secret, which would end up in plans and logs; give it in "
                    "source.http.secret_headers, with the name of an environment variable"
                )
        for name, value in (*given.items(), *self.secret_headers.items()):
            if not _HEADER_NAME.match(name) or not _HEADER_VALUE.match(value):
                raise ValueError(f"source.http: header {name!r} is none: a name, and one line of plain characters")
        if wrong := [name for name, variable in self.secret_headers.items() if not _VARIABLE.match(variable)]:
            raise ValueError(f"source.http.secret_headers.{wrong[0]} is to be the name of an environment variable")
        if self.secret_headers and not self.hosts:
            raise ValueError("source.http.hosts is empty; name the hosts that the secret_headers are for")
        if self.tries < 1:
            raise ValueError(f"source.http.tries is {self.tries}; allowed: 1 or more")
        return self

    def missing_variables(self) -> list[str]:
        """Return the environment variables of secret_headers that are not set here."""
        return sorted(variable for variable in self.secret_headers.values() if not os.environ.get(variable))

    def headers_for(self, url: URL) -> dict[str, str]:
        """Return the headers of a request to an address.

        Raises:
            PermissionError: an environment variable with a secret for this host is not set.
        """
        # Without compression, or a small answer could unpack to any size.
        headers = {"User-Agent": self.user_agent, **self.headers, "Accept-Encoding": "identity"}
        if {str(url.host).lower(), f"{url.host}:{url.port}".lower()} & {host.lower() for host in self.hosts}:
            if missing := self.missing_variables():
                raise PermissionError(f"the environment variable {missing[0]} of source.http.secret_headers is not set")
            headers |= {name: os.environ[variable] for name, variable in self.secret_headers.items()}
        return headers


class _BusyError(Exception):
    """A server cannot answer now. ``pause_s`` is how long it asks to be left alone; None if it does not say."""

    def __init__(self, answer: OSError, pause_s: float | None) -> None:
        super().__init__(str(answer))
        self.answer, self.pause_s = answer, pause_s


async def read_web(session: Any, address: str, most: int, *, timeout_s: float, config: HttpConfig) -> bytes | None:
    """Read up to ``most`` bytes from a web server; None if it sends more.

    Args:
        session: an aiohttp session.
        address: the URL; its percent escapes are sent as they are.
        most: in bytes. They are counted as they come, since a server need neither announce a length nor honor a
            range. An answer that announces too large a length is not read at all.
        timeout_s: seconds that the caller will wait: no pause goes beyond them.
        config: headers and tries.

    Raises:
        OSError: the server refuses; the message holds no address, since a redirect's may contain a secret.
    """
    from aiohttp import ClientConnectorError, ClientOSError, ClientPayloadError, ServerDisconnectedError

    clock = asyncio.get_running_loop().time
    deadline, pauses = clock() + timeout_s, _pauses()
    for number in range(1, config.tries + 1):
        asked_s: float | None = None
        try:
            return await _read_once(session, address, most, config)
        except _BusyError as busy:
            error: Exception = busy.answer
            asked_s = busy.pause_s
        except ClientConnectorError:
            raise
        except (ServerDisconnectedError, ClientOSError, ClientPayloadError) as dropped:
            error = OSError(f"{type(dropped).__name__}: the connection was dropped")
        pause_s = next(pauses) if asked_s is None else asked_s
        if number == config.tries or clock() + pause_s >= deadline:
            break
        await asyncio.sleep(pause_s)
    tries = f" after {number} tries" if number > 1 else ""
    asked = f"; it asks to wait {asked_s:,.0f} s" if asked_s is not None else ""
    raise type(error)(f"{error}{tries}{asked}") from None


def _pauses() -> Iterator[float]:
    pause_s = _PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


async def _read_once(session: Any, address: str, most: int, config: HttpConfig) -> bytes | None:
    async with _answer(session, address, config) as answer:
        if (answer.content_length or 0) > most:
            return None
        data = io.BytesIO()
        while chunk := await answer.content.read(_CHUNK_BYTES):
            if data.tell() + len(chunk) > most:
                return None
            data.write(chunk)
    return data.getvalue()


@asynccontextmanager
async def _answer(session: Any, address: str, config: HttpConfig) -> AsyncIterator[ClientResponse]:
    """Ask a server, and those that it redirects to; nothing of the body is read.

    Redirects are followed here: the client would send headers meant for one host to the next one, too.
    """
    url = first = _url(address)
    for _ in range(_MAX_REDIRECTS + 1):
        async with await session.get(url, headers=config.headers_for(url), allow_redirects=False) as answer:
            if answer.status not in (301, 302, 303, 307, 308):
                _check_status(answer, first)
                yield answer
                return
            try:
                url = url.join(_url(answer.headers.get("Location", ""), is_relative=True))
            except ValueError:
                raise OSError(_NO_ADDRESS) from None
            if url.scheme not in ("http", "https") or not url.host:
                raise OSError(_NO_ADDRESS)
    raise OSError(f"the server redirects more than {_MAX_REDIRECTS} times")


def _url(address: str, *, is_relative: bool = False) -> URL:
    """Return an address as it is sent: escapes as written, and only what no address may hold is escaped.

    Raises:
        OSError: it is no address of the web.
    """
    from yarl import URL

    parts = _ADDRESS.match(address)
    if parts is None and not is_relative:
        raise OSError(_NO_ADDRESS)
    scheme, host, rest = parts.groups() if parts else ("", "", address)
    # A host of other letters needs the client's own encoding, and is not touched.
    rest = quote(_BARE_PERCENT.sub("%25", rest), safe="%/:?#[]@!$&'()*+,;=~")
    try:
        url = URL(f"{scheme}://{host}{rest}" if parts else rest, encoded=host.isascii())
        is_sound = not parts or bool(url.host and not re.search(r"\s", host) and url.port)
    except ValueError:
        is_sound = False
    if not is_sound:
        # The original error is dropped: its text is the address, which may contain secrets.
        raise OSError(_NO_ADDRESS) from None
    return url


def _check_status(answer: ClientResponse, first: URL) -> None:
    """Raise an error for a refusal; with a message of our own, since the client's contains the address of a redirect.

    Raises:
        _BusyError: the server may answer later.
        OSError: it refuses.
    """
    if answer.status < 400:
        return
    sent_on = "" if answer.url.host == first.host else f" from {answer.url.host}"
    error = _ERRORS.get(answer.status, OSError)(f"HTTP {answer.status} {answer.reason}{sent_on}")
    if answer.status in _BUSY:
        raise _BusyError(error, _retry_after(answer.headers.get("Retry-After", "")))
    raise error


def _retry_after(value: str) -> float | None:
    """Return the seconds of a header Retry-After: a number of them, or a date; None for anything else."""
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
