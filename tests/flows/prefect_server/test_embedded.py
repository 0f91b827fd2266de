"""The server that runs beside a run: where it is, and why it could not start. Its application is a small one."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from types import ModuleType
from typing import Any

import pytest

from flows.prefect_server.embedded import EmbeddedServerError, embedded_server

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the application answers when it is to start."""
    answer: dict[str, Any] = {"type": "lifespan.startup.complete"}

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send(answer)
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    module = ModuleType("prefect.server.api.server")
    module.create_app = lambda **_: app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prefect.server.api.server", module)
    for name in ("prefect", "prefect.server", "prefect.server.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return answer


def test_it_answers_within_its_block_on_the_loopback_address(application: dict[str, Any]) -> None:
    with embedded_server(20) as url:
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/health", timeout=10)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/health", timeout=10)


def test_why_it_could_not_start_is_told_in_one_line_and_nothing_is_printed(
    application: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    why = "sqlite3.DatabaseError: file is not a database"
    application |= {"type": "lifespan.startup.failed", "message": f"Traceback (most recent call last):\n  ...\n{why}"}
    with pytest.raises(EmbeddedServerError) as raised, embedded_server(20):
        pass
    assert str(raised.value) == why
    assert capfd.readouterr() == ("", "")
