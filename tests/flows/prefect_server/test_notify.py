"""A Prefect server tells people: examples/notify.py against a real server and a receiver on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from actors.pool.runner import PoolEvent
from flows.prefect_server.reports import FlowRecord, reporting
from flows.prefect_server.told import PrefectObserver
from tests.support.drivers import REPOSITORY, prefect_server, wait_until
from tests.support.labeled import write_output

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[str]]]:
    """An address, and the texts that are sent to it."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/labels", texts
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_hears_of_runs_that_fail_and_of_alarms_with_the_reason(
    make_prefect_home: Callable[[Path], Path], receiver: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, texts = receiver
    _, plan = write_output(tmp_path / "out", {"a": []})

    @flow(name="label-collection", flow_run_name="s3://cats/labels")
    def alarmed() -> None:
        with reporting(10) as told:
            told.begin()
            observer = PrefectObserver(FlowRecord(told), "s3://cats/labels", plan, 0)
            observer.on_event(PoolEvent("alarm", "no mask of 'cat' in 100 images"))
            told.finish()
        raise RuntimeError("the canary was stopped")

    EventsWorker.drain_all(timeout=5)  # the one of this process may tell another server, of an earlier test
    home = make_prefect_home(tmp_path / "home")
    with prefect_server(home, services=("TRIGGERS",)) as server:
        server.wait_until_ready()
        command = [sys.executable, REPOSITORY / "examples" / "notify.py", url]
        subprocess.run(command, check=True, env={**os.environ, "PREFECT_API_URL": server.api_url}, timeout=120)
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            with pytest.raises(RuntimeError):
                alarmed()
            # The one worker of this process would tell this server of later runs.
            EventsWorker.drain_all(timeout=20)
        wait_until(lambda: len(texts) > 1, 90, lambda: str(texts) + (home / "server.log").read_text()[-2000:])
    assert sorted(texts) == [
        f"{plan.run_id}: no mask of 'cat' in 100 images",
        "s3://cats/labels: Failed: Flow run encountered an exception: RuntimeError: the canary was stopped",
    ]
