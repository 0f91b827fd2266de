"""A proxy before an S3 server, on the loopback address, that keeps chosen requests on their way, as a bad network does.

A request that is held back is the proxy's alone: its sender may give up, or die, and it still lands when the test says
so. Requests are passed on as they came, the Host header too, which clients sign and servers check.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import unquote, urlsplit

from tests.support.drivers import wait_until

_HEAD_END = b"\r\n\r\n"
_ANSWER_S = 60

Fate = Literal["hold", "lose the answer", "refuse"]


@dataclass(frozen=True)
class Request:
    """A whole HTTP/1.1 request: its method, the key it names (without the bucket), and its bytes."""

    method: str
    key: str
    data: bytes


@dataclass(eq=False)
class Rule:
    """What befalls some requests.

    Attributes:
        method, pattern: which requests, as patterns; ``*`` stands for slashes in keys too.
        fate: "hold" keeps them until they may land; "lose the answer" passes them on and hangs up; "refuse" answers
            with an error, and the server never sees them.
        after: so many fitting requests pass first.
        count: so many meet their fate then, the rest passes; None for all of them.
        status, code: the HTTP status and the S3 error code of a refusal.
        keys: of the requests that met their fate so far, in order.
    """

    method: str
    pattern: str
    fate: Fate
    after: int = 0
    count: int | None = None
    status: int = 403
    code: str = "AccessDenied"
    keys: list[str] = field(default_factory=list)
    _seen: int = 0
    _held: list[tuple[Request, asyncio.Future[bytes]]] = field(default_factory=list)

    def befalls(self, request: Request) -> bool:
        """Count a request if it fits, and say whether this is its fate."""
        if not (fnmatchcase(request.method, self.method) and fnmatchcase(request.key, self.pattern)):
            return False
        number, self._seen = self._seen - self.after, self._seen + 1
        return number >= 0 and (self.count is None or number < self.count)

    def wait(self, count: int, timeout_s: float = 120) -> None:
        """Wait until so many requests have met their fate."""
        wait_until(lambda: len(self.keys) >= count, timeout_s, lambda: f"{self.method} {self.pattern}: {self.keys}")


class SlowProxy:
    """Passes requests on to a server, except those that rules say otherwise of. Its methods are for other threads.

    Args:
        port: of the server, on the loopback address.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def endpoint(self) -> str:
        """The address that clients are given in the server's place."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, rule: Rule) -> Rule:
        """Let a rule hold from now on; of those that fit a request the first one decides."""
        self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Let it hold no longer; what it holds back stays held back."""
        self._rules.remove(rule)

    def clear(self) -> None:
        """Let no rule hold any longer."""
        self._rules.clear()

    def land(self, rule: Rule) -> list[int]:
        """Let all that a rule holds back arrive, in the order it came, and return the server's statuses."""
        return asyncio.run_coroutine_threadsafe(self._land(rule), self._loop).result(_ANSWER_S)

    def run(self, ready: threading.Event) -> None:
        """Serve until ``stop``; the thread's main function."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        """End the serving thread; what is held back is lost for ever."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # A sender that is gone by the time of the answer does not hear it.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await _read_request(reader, writer)
                writer.write(await self._answer(request))
                await writer.drain()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, request: Request) -> bytes:
        rule = next((rule for rule in list(self._rules) if rule.befalls(request)), None)
        if rule is None:
            return await self._pass_on(request)
        if rule.fate == "hold":
            landed: asyncio.Future[bytes] = self._loop.create_future()
            rule._held.append((request, landed))
            rule.keys.append(request.key)
            return await landed
        if rule.fate == "lose the answer":
            await self._pass_on(request)
        rule.keys.append(request.key)
        return _refusal(rule, request) if rule.fate == "refuse" else b""

    async def _land(self, rule: Rule) -> list[int]:
        held, rule._held = rule._held, []
        statuses = []
        for request, landed in held:
            answer = await self._pass_on(request)
            statuses.append(int(answer.split(b" ", 2)[1]))
            landed.set_result(answer)
        return statuses

    async def _pass_on(self, request: Request) -> bytes:
        """Ask the server on a connection of its own, which it closes behind its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            writer.write(request.data)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(_HEAD_END)).removesuffix(_HEAD_END)
    first, *lines = head.split(b"\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if b"transfer-encoding" in headers:
        raise NotImplementedError("the clients of these tests say how long their requests are")
    if headers.get(b"expect", b"").lower() == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue" + _HEAD_END)
    body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    # Neither is signed; each is between two ends of one connection.
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in (b"expect", b"connection")]
    method, target, _ = first.decode().split(" ")
    key = unquote(urlsplit(target).path).lstrip("/").partition("/")[2]
    return Request(method, key, b"\r\n".join([first, *kept, b"Connection: close"]) + _HEAD_END + body)


def _refusal(rule: Rule, request: Request) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{rule.code}</Code><Message>refused here</Message></Error>'.encode()
    head = f"HTTP/1.1 {rule.status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + (b"" if request.method == "HEAD" else body)


@contextlib.contextmanager
def slow_proxy(endpoint: str) -> Iterator[SlowProxy]:
    """Run a proxy before the server of an endpoint, in a thread."""
    port = urlsplit(endpoint).port
    assert port is not None
    proxy, ready = SlowProxy(port), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), name="slow-proxy", daemon=True)
    thread.start()
    assert ready.wait(_ANSWER_S)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(_ANSWER_S)
