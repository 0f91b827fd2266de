"""Two commits are on their way when their driver is stopped, killed, out of time, or cleaned up behind; then they land.

The command line as it is shipped, on a real S3 server behind a slow proxy. Whatever happens, the same command then ends
complete, with the rows of a run that nothing happened to, and every file that a commit names is there.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pool import dispatch
from flows.config import load_config
from flows.run import engine
from flows.run.observer import Silent
from pipelines.storage.store import open_store
from pipelines.table.commits import committed_shards
from tests.reliability.forked_command import Forked, command_server, forked
from tests.reliability.slow_proxy import Rule, SlowProxy, slow_proxy
from tests.reliability.small_run import RUN, raw_rows, rows
from tests.support.drivers import Command, Driver, Ended, command_line, driver
from tests.support.fakes import write_images
from tests.support.seaweed import S3Server

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


@pytest.fixture
def command(s3: S3Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, with the server's address in the environment."""
    return command_line(capfd, monkeypatch)


@dataclass
class Tale:
    """A run behind the proxy: its first commit passes, and the next two are held back.

    Attributes:
        config: its settings.
        proxy, commits: what is between it and the server, and what becomes of its commits.
        environment: of processes that run it.
        processes: what they are forked from.
        command: runs a command in this process.
        expected: the rows of a run that nothing happens to.
    """

    config: Path
    proxy: SlowProxy
    commits: Rule
    environment: dict[str, str]
    processes: ForkServerContext
    command: Command
    expected: dict[str, Any]

    @property
    def output(self) -> str:
        return f"s3://bkt/{self.config.stem}"

    @property
    def arguments(self) -> tuple[object, ...]:
        return "run", "-c", self.config, "--no-prefect"

    def driver(self) -> AbstractContextManager[Forked]:
        """Start the command in a process of its own."""
        folder = self.config.with_suffix(f".{secrets.token_hex(4)}")
        return forked(self.processes, folder, *self.arguments, env=self.environment)

    def wait(self, running: Driver | Forked, held: Rule | None = None) -> None:
        """Wait until two commits, or other requests, of a driver are on their way."""
        held = held or self.commits
        running.wait_until(lambda: len(held.keys) == 2)
        assert len(committed_shards(open_store(self.output), RUN)) == 1

    def kill(self, held: Rule | None = None) -> None:
        """Run until two commits, or other requests, are on their way, and then no longer."""
        with self.driver() as killed:
            self.wait(killed, held)
            killed.process.kill()
            assert killed.end().code == -signal.SIGKILL

    def land(self) -> None:
        """Let the commits arrive that were on their way."""
        assert self.proxy.land(self.commits) == [200, 200]

    def check_ends(self) -> Ended:
        """The same command ends complete, and the output is as if nothing had happened to it."""
        again = self.command(*self.arguments)
        assert again.code == 0, again
        self.check_whole()
        return again

    def check_whole(self) -> None:
        """Whatever a commit names is there, and nothing else is, for readers of the commits and for a glob."""
        verified = self.command("verify", self.output)
        assert verified.code == 0, verified
        store = open_store(self.output)
        assert rows(store) == self.expected
        assert raw_rows(store) == self.expected


@pytest.fixture(scope="module")
def expected(folder: Path, s3_server: S3Server) -> dict[str, Any]:
    """The rows of a run that nothing happens to."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        config = load_config(settings(folder, "in_process", s3_server.endpoint))
        assert engine.run_directly(config, Silent()).ok
        return rows(open_store(config.output.uri))


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    with command_server() as processes:
        yield processes


@pytest.fixture
def tale(
    runner: str,
    request: pytest.FixtureRequest,
    folder: Path,
    proxy: SlowProxy,
    processes: ForkServerContext,
    command: Command,
    expected: dict[str, Any],
) -> Iterator[Tale]:
    """A run that joins the Ray that is there, if it is one on Ray."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if runner == "ray":
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray")
    config = settings(folder, runner, proxy.endpoint)
    commits = proxy.add(Rule("PUT", f"{config.stem}/_runs/{RUN}/commits/*", "hold", after=1, count=2))
    yield Tale(config, proxy, commits, environment, processes, command, expected)
    proxy.land(commits)
    proxy.clear()


BOTH = pytest.mark.parametrize("runner", ["in_process", "ray"])
# Where the driver is gone, what it ran on makes no difference.
ONE = pytest.mark.parametrize("runner", ["in_process"])


@BOTH
def test_sigterm(tale: Tale) -> None:
    """In a process that is started as users do."""
    with driver(*tale.arguments, env={**tale.environment, "OMP_NUM_THREADS": "1"}) as stopped:
        tale.wait(stopped)
        stopped.process.send_signal(signal.SIGTERM)
        code, _, err = stopped.end()
    assert (code, err) == (143, "terminated; what is committed is kept, and the same command resumes the run\n")
    tale.land()
    tale.check_ends()


@BOTH
def test_the_end_of_the_budget(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose threads go on when the command has ended."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + BUDGET_S * (len(tale.commits.keys) == 2))
    monkeypatch.setattr(dispatch, "time", clock)
    ended = tale.command(*tale.arguments)
    assert ended.code == 1, ended
    assert f"the budget of {BUDGET_S:,} s is spent".replace(",", "") in ended.out
    monkeypatch.setattr(dispatch, "time", time)
    tale.land()
    tale.check_ends()


@BOTH
def test_vacuum_while_the_driver_goes_on(tale: Tale) -> None:
    with tale.driver() as running:
        tale.wait(running)
        assert tale.command("vacuum", tale.output).code == 0
        tale.land()
        ended = running.end()
    assert (ended.code, ended.err) == (0, ""), ended
    tale.check_whole()
    assert "0 labeled now" in tale.check_ends().out


@BOTH
def test_kill_and_the_commits_land_before_it_is_resumed(tale: Tale) -> None:
    tale.kill()
    tale.land()
    tale.check_ends()


@ONE
def test_kill_and_the_commits_come_too_late(tale: Tale) -> None:
    tale.kill()
    tale.check_ends()
    assert tale.proxy.land(tale.commits) == [412, 412]
    tale.check_whole()


@ONE
def test_data_files_that_land_when_all_is_done_are_removed_by_the_next_run(tale: Tale) -> None:
    tale.proxy.remove(tale.commits)
    held = tale.proxy.add(Rule("PUT", f"{tale.config.stem}/images/*", "hold", after=1, count=2))
    tale.kill(held)
    tale.check_ends()
    assert tale.proxy.land(held) == [200, 200]
    store = open_store(tale.output)
    assert rows(store) == tale.expected
    assert raw_rows(store) != tale.expected
    assert "0 labeled now" in tale.check_ends().out


@ONE
def test_answers_that_are_lost(tale: Tale) -> None:
    """The client repeats the request, and finds what it has created itself in its way."""
    tale.proxy.remove(tale.commits)
    lost = tale.proxy.add(Rule("PUT", f"{tale.config.stem}/*/commits/*", "lose the answer", after=1, count=2))
    ended = tale.command(*tale.arguments)
    assert (ended.code, len(lost.keys)) == (0, 2), ended
    tale.proxy.remove(lost)
    tale.check_whole()


@ONE
def test_kill_and_vacuum(tale: Tale) -> None:
    """Files that are young may be about to be committed: they stay."""
    tale.kill()
    files = len(open_store(tale.output).find("images"))
    vacuumed = tale.command("vacuum", tale.output)
    assert (vacuumed.code, len(open_store(tale.output).find("images"))) == (0, files), vacuumed
    tale.land()
    assert "3 committed before" in tale.check_ends().out


@ONE
def test_a_driver_restores_what_vacuum_took_for_abandoned(tale: Tale) -> None:
    with tale.driver() as running:
        tale.wait(running)
        vacuumed = tale.command("vacuum", tale.output, "--older-than", 0)
        assert (vacuumed.code, vacuumed.out.splitlines()[-1]) == (0, "4 leftovers removed"), vacuumed
        tale.land()
        ended = running.end()
    assert (ended.code, ended.err) == (0, ""), ended
    tale.check_whole()
    assert "0 labeled now" in tale.check_ends().out


@ONE
def test_a_shard_whose_files_were_removed_before_its_commit_landed_is_labeled_again(tale: Tale) -> None:
    tale.kill()
    assert tale.command("vacuum", tale.output, "--older-than", 0).out.endswith("4 leftovers removed\n")
    tale.land()
    verified = tale.command("verify", tale.output)
    assert verified.code == 1
    assert [verified.out.count(f"{shard}: ") for shard in two_shards(tale)] == [2, 2]  # each of both files
    ended = tale.check_ends()
    assert [ended.out.count(f"shard broken: {shard}: ") for shard in two_shards(tale)] == [1, 1]
    assert "4 labeled now" in ended.out
    assert "0 labeled now" in tale.check_ends().out


@ONE
def test_vacuum_says_so_when_its_deletions_were_late_and_a_commit_was_faster(tale: Tale) -> None:
    tale.kill()
    deletions = tale.proxy.add(Rule("DELETE", f"{tale.config.stem}/*.parquet", "hold"))
    folder = tale.config.with_suffix(".vacuum")
    env = {**tale.environment, "AWS_ENDPOINT_URL": tale.proxy.endpoint}
    with forked(tale.processes, folder, "vacuum", tale.output, "--older-than", 0, env=env) as vacuuming:
        vacuuming.wait_until(lambda: deletions.keys)
        tale.land()
        tale.proxy.remove(deletions)
        assert tale.proxy.land(deletions) == [204]
        ended = vacuuming.end()
    assert (ended.code, ended.err) == (1, ""), ended
    assert [ended.out.count(f"{shard} was committed just now") for shard in two_shards(tale)] == [1, 1]
    assert "4 labeled now" in tale.check_ends().out


def two_shards(tale: Tale) -> list[str]:
    """The shards whose commits were on their way."""
    return sorted(key.rpartition("/")[2].partition(".")[0] for key in tale.commits.keys)
