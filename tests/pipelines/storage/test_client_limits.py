"""A store that never answers costs the time that the config allows, and no more."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.config import ConfigError, parse_config
from flows.run import planning
from pipelines.errors import SourceError, StorageError
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.tabular import read_rows
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef, Reason
from tests.support.loopback import Answer, say_nothing, serving

LIMIT_S = 1.5
# Far below the minutes that the client's own retries take, far above what a busy machine adds.
GENEROUS_S = 20

REQUESTS: dict[str, Callable[[Store], object]] = {
    "create": lambda store: store.create("_runs/r/commits/shard-00000.json", b"{}"),
    "write": lambda store: store.write("images/r/shard-00000-a.parquet", b"x" * 100_000),
    "read": lambda store: store.read("_runs/r/plan.json"),
    "exists": lambda store: store.exists("_runs/r/plan.json"),
    "delete": lambda store: store.delete("_runs/r/plan.json"),
    "find": lambda store: store.find("_runs"),
    "folders": lambda store: store.folders("_runs"),
}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def options(port: int) -> dict[str, Any]:
    return {"endpoint_url": f"http://127.0.0.1:{port}", "request_timeout_s": LIMIT_S}


def trickle(connection: socket.socket) -> None:
    """Promise a megabyte, and send a byte of it now and then: no wait between two bytes is long."""
    connection.recv(65536)
    connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 1000000\r\n\r\n')
    while True:
        connection.sendall(b"x")
        time.sleep(0.1)


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_request_to_a_store_that_says_nothing_ends_in_time(request_: str) -> None:
    with serving(say_nothing) as port:
        store = open_store("s3://bkt/output", options(port))
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"s3://bkt/output.*no answer in 1\.5 s.*request_timeout_s"):
            REQUESTS[request_](store)
        assert time.monotonic() - started < GENEROUS_S


def test_an_object_that_never_ends_is_read_no_longer_than_allowed() -> None:
    with serving(trickle) as port:
        started = time.monotonic()
        with pytest.raises(StorageError, match="no answer in"):
            open_store("s3://bkt/output", options(port)).read_range("plan.json", 0, 1_000_000)
        assert time.monotonic() - started < GENEROUS_S


@pytest.mark.parametrize("answer", [say_nothing, trickle])
def test_a_source_is_under_the_same_limit(answer: Answer) -> None:
    with serving(answer) as port:
        started = time.monotonic()
        ref = ImageRef(image_id="a.png", uri="s3://bkt/photos/a.png", num_bytes=100)
        with pytest.raises(FetchError, match="no answer in") as caught:
            fetch(ref, options=options(port), max_bytes=1000, timeout_s=60)
        assert caught.value.reason == Reason.FETCH_TIMEOUT
        assert time.monotonic() - started < GENEROUS_S


def test_a_table_of_a_source_is_under_the_same_limit() -> None:
    with serving(say_nothing) as port:
        started = time.monotonic()
        with pytest.raises(SourceError, match="no answer in"):
            list(read_rows("s3://bkt/prompts.csv", options(port)))
        assert time.monotonic() - started < GENEROUS_S


class _SlowToRefuse:
    """A client whose conditional puts conflict, each after a while, with no object to be seen."""

    request_timeout_s = 0.3
    puts = 0

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self.puts += 1
        time.sleep(0.2)
        raise FileExistsError(path)

    def cat_file(self, path: str) -> bytes:
        raise FileNotFoundError(path)


def test_conflicts_are_not_asked_about_beyond_the_time_of_one_request() -> None:
    fs = _SlowToRefuse()
    with pytest.raises(StorageError, match="refuses a create-only put"):
        Store(uri="memory://slow", fs=fs, root="slow").create("commit", b"mine")
    assert fs.puts == 2


def test_the_limit_of_a_config_reaches_the_driver_the_replicas_and_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "source": {"uri": str(tmp_path), "request_timeout_s": 7},
        "output": {"uri": "s3://bkt/output", "request_timeout_s": 9, "storage_options": {"anon": True}},
        "categories": ["car"],
        "pool": {"runner": "in_process"},
    }
    config = parse_config(values)
    assert planning.open_output(config).fs.request_timeout_s == 9
    opened: list[Any] = []
    monkeypatch.setattr(planning, "open_runner", lambda factory, _pool: opened.append(factory))
    planning.open_run_runner(config, "run-1", config.common_prompts())
    assert opened[0].output_options == {"anon": True, "request_timeout_s": 9}
    assert opened[0].job.source_options == {"request_timeout_s": 7}
    values["output"] |= {"request_timeout_s": 0}
    with pytest.raises(ConfigError, match=r"output\.request_timeout_s is 0; allowed: more than 0 seconds"):
        parse_config(values)
