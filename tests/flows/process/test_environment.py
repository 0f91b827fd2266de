"""Behind a proxy that cannot reach this machine, a run reaches it all the same."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from flows.process.environment import spare_loopback
from tests.support.drivers import PrefectServer, driver, run_file
from tests.support.loopback import say_nothing, serving

PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}


def test_a_run_behind_a_dead_proxy_reaches_a_prefect_server_on_this_machine(
    prefect: PrefectServer, model: Path, photographs: Path, tmp_path: Path
) -> None:
    env = {**os.environ, **PROXY, "PREFECT_API_URL": prefect.api_url, "OMP_NUM_THREADS": "1"}
    arguments = ["--source", photographs, "--output", tmp_path / "out", "--model", model, "--categories", "car"]
    arguments += ["--runner", "in_process", "--limit", 2]
    with driver("run", *arguments, env=env) as running:
        code, out, err = running.end(150)
    assert (code, err) == (0, ""), out
    assert run_file(tmp_path / "out", "summary.json")["ledger"]["listed"] == 2
    assert [run["state_type"] for run in prefect.ask("flow_runs/filter", {}) if str(tmp_path) in run["name"]] == [
        "COMPLETED"
    ]


@pytest.mark.parametrize("held", ["", "example.org, .internal", "localhost", "*"])
def test_a_client_asks_this_machine_directly_and_others_as_before(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in PROXY.items():
        monkeypatch.setenv(name, value)
    if held:
        monkeypatch.setenv("NO_PROXY", held)
    spare_loopback(os.environ)
    assert set(held.replace(" ", "").split(",")) - {""} <= set(os.environ["NO_PROXY"].split(","))
    with serving(say_nothing) as port:
        for host in ("127.0.0.1", "localhost"):
            # Were it asked through the proxy, the connection would be refused.
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(f"http://{host}:{port}/", timeout=0.2)
    if held != "*":
        with pytest.raises(httpx.ConnectError):
            httpx.get("http://example.com/", timeout=5)


def test_nothing_is_set_where_there_is_no_proxy() -> None:
    environment = {"HTTP_PROXY": "", "PATH": "/bin"}
    spare_loopback(environment)
    assert environment == {"HTTP_PROXY": "", "PATH": "/bin"}
