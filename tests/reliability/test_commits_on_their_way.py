"""Two commits are on their way when their driver is stopped, killed, out of time, or cleaned up behind: they land later.

The command line as it is shipped, on a real S3 server behind a slow proxy. Whatever happens, the same command then ends
complete, with the rows of a run that nothing happened to, and every file that a commit names is there.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import dispatch
from flows.cli import main
from pipelines.storage import open_store
from pipelines.table import KINDS, committed_shards
from tests.drivers import Driver, comparable, driver, wait_until
from tests.fakes import write_images
from tests.reliability.small_run import RUN, raw_rows, rows
from tests.reliability.slow_proxy import Rule, SlowProxy, slow_proxy
from tests.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)

NUM_SHARDS = 5
BUDGET_S = 3_600


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[SlowProxy]:
    with slow_proxy(s3_server.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, one of them broken, and the settings of a run that labels them one by one, two at a time."""
    import torch

    torch.set_num_threads(1)  # as many as a driver below and a replica of one CPU have: more would add in another order
    folder = tmp_path_factory.mktemp("on-their-way")
    write_images(folder / "images", NUM_SHARDS)
    (folder / "images" / "0001.png").write_bytes(b"no image")
    return folder


def settings(folder: Path, runner: str, endpoint: str) -> Path:
    """Write a config whose driver and replicas reach the output by an endpoint."""
    path = folder / f"{runner}-{secrets.token_hex(4)}.toml"
    path.write_text(
        f"""
        source = "{folder}/images"
        categories = ["car", "tree"]
        plan = {{ images_per_shard = 1 }}
        label = {{ batch_size = 1, load_threads = 1 }}
        pool = {{ runner = "{runner}", drain_grace_s = 0.5, budget_s = {BUDGET_S} }}
        [output]
        uri = "s3://bkt/{path.stem}"
        run_id = "{RUN}"
        storage_options = {{ endpoint_url = "{endpoint}" }}
        """
    )
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(s3: S3Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, as the console script does; what it is not told otherwise it asks directly."""

    def call(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["xsam-label", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return call


@dataclass
class Tale:
    """A run behind the proxy, of which all but one commit is held back once two of them are on their way."""

    config: Path
    proxy: SlowProxy
    commits: Rule
    environment: dict[str, str]
    command: Command
    expected: dict[str, Any]

    @property
    def output(self) -> str:
        return f"s3://bkt/{self.config.stem}"

    @property
    def arguments(self) -> tuple[object, ...]:
        return "run", "-c", self.config, "--no-prefect"

    def driver(self) -> Any:
        """Start the command in a process of its own."""
        return driver(*self.arguments, env=self.environment)

    def wait(self, running: Driver) -> None:
        """Wait until two commits of a driver are on their way."""
        running.wait_until(lambda: len(self.commits.keys) == 2)
        assert len(committed_shards(open_store(self.output), RUN)) == 1

    def land(self) -> None:
        """Let the commits arrive that were on their way."""
        assert self.proxy.land(self.commits) == [200, 200]

    def check_ends(self) -> Ended:
        """The same command ends complete, and the output is as if nothing had happened to it."""
        again = self.command(*self.arguments)
        assert (again.code, again.err) == (0, ""), again.out
        self.check_whole()
        before = open_store(self.output).find("")
        assert self.command(*self.arguments).code == 0
        assert open_store(self.output).find("") == before
        return again

    def check_whole(self) -> None:
        verified = self.command("verify", self.output)
        assert (verified.code, verified.err) == (0, ""), verified.out
        store = open_store(self.output)
        assert rows(store) == self.expected
        assert raw_rows(store) == self.expected


@pytest.fixture(scope="module")
def expected(folder: Path, s3_server: S3Server) -> dict[str, Any]:
    """The rows of a run that nothing happens to."""
    from flows import steps
    from flows.config import load_config
    from flows.observer import Silent

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        config = load_config(settings(folder, "in_process", s3_server.endpoint))
        assert steps.run_directly(config, Silent()).ok
        return rows(open_store(config.output.uri))


@pytest.fixture(params=["in_process", "ray"])
def tale(
    request: pytest.FixtureRequest,
    folder: Path,
    proxy: SlowProxy,
    command: Command,
    expected: dict[str, Any],
    s3: S3Server,
) -> Iterator[Tale]:
    """A run of each runner; a Ray that is there already is joined."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    if request.param == "ray":
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray")
    config = settings(folder, request.param, proxy.endpoint)
    commits = proxy.add(Rule("PUT", f"{config.stem}/_runs/{RUN}/commits/*", "hold", after=1, count=2))
    yield Tale(config, proxy, commits, environment, command, expected)
    proxy.land(commits)
    proxy.remove(commits)


def test_sigterm(tale: Tale) -> None:
    with tale.driver() as stopped:
        tale.wait(stopped)
        stopped.process.send_signal(signal.SIGTERM)
        code, _, err = stopped.end()
    assert (code, err) == (143, "terminated; what is committed is kept, and the same command resumes the run\n")
    tale.land()
    tale.check_ends()


def test_kill_and_the_commits_land_before_it_is_resumed(tale: Tale) -> None:
    with tale.driver() as killed:
        tale.wait(killed)
        killed.process.kill()
        killed.end()
    tale.land()
    tale.check_ends()


def test_kill_and_the_commits_come_too_late(tale: Tale) -> None:
    with tale.driver() as killed:
        tale.wait(killed)
        killed.process.kill()
        killed.end()
    tale.check_ends()
    assert tale.proxy.land(tale.commits) == [412, 412]
    tale.check_whole()


def test_the_end_of_the_budget(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose threads go on when the command has ended."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + BUDGET_S * (len(tale.commits.keys) == 2))
    monkeypatch.setattr(dispatch, "time", clock)
    ended = tale.command(*tale.arguments)
    assert (ended.code, ended.err) == (1, "")
    assert f"the budget of {BUDGET_S} s is spent" in ended.out
    monkeypatch.undo()
    tale.land()
    tale.check_ends()


def test_vacuum_while_the_driver_goes_on(tale: Tale) -> None:
    with tale.driver() as running:
        tale.wait(running)
        assert tale.command("vacuum", tale.output).code == 0
        tale.land()
        code, out, err = running.end()
    assert (code, err) == (0, ""), out
    tale.check_whole()
    tale.check_ends()


def test_vacuum_behind_a_driver_that_was_killed(tale: Tale) -> None:
    with tale.driver() as killed:
        tale.wait(killed)
        killed.process.kill()
        killed.end()
    assert tale.command("vacuum", tale.output).code == 0
    tale.land()
    tale.check_ends()
