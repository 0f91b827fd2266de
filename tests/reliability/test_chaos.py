"""A run on a real Ray of several nodes whose replicas, nodes and driver are killed until it has ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.table.commits import read_commits
from tests.reliability.small_run import LONG, RUN, SmallRun, check_ended, rows, run, write_source
from tests.support.drivers import REPOSITORY, Driver, wait_until

SHARDS = 600 if LONG else 120
ROUNDS = 2 if LONG else 1
"""How often a node is lost, and later the driver."""
NODES, CPUS_PER_NODE = 2, 2
COMMITS_PER_KILL = 20 if LONG else 8
FEWEST_KILLS = 20 if LONG else 8


@dataclass
class Program:
    """A program of this test, leader of its own session, and the JSON lines that it has printed."""

    process: subprocess.Popen[str]
    printed: Path

    def said(self) -> list[dict[str, Any]]:
        """Return what it has said so far, line by line."""
        whole, _, _ = self.printed.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def errors(self) -> str:
        """Return the end of what it has printed for people."""
        return self.printed.with_suffix(".errors").read_text()[-4000:]

    def relatives(self) -> list[psutil.Process]:
        """Return the living processes of its session."""
        return Driver(self.process).relatives()

    def kill_all(self) -> bool:
        """SIGKILL its session and say whether nothing of it is left: what is killed may just have started another."""
        Driver(self.process).kill_all()
        return not self.relatives()


@contextlib.contextmanager
def program(module: str, *args: object, env: Mapping[str, str], printed: Path) -> Iterator[Program]:
    """Run a module of these tests as a process; nothing of its session is left when the block ends."""
    with open(printed, "w") as out, open(printed.with_suffix(".errors"), "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.reliability.{module}", *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
            text=True,
            env=env,
            cwd=REPOSITORY,
            start_new_session=True,
        )
    running = Program(process, printed)
    try:
        yield running
    finally:
        wait_until(running.kill_all, 20, lambda: str(running.relatives()))
        process.communicate(timeout=20)


@dataclass
class Nodes:
    """A Ray cluster of a head and some nodes, in a process of its own that takes orders."""

    program: Program
    orders: int = 0

    def tell(self, order: str) -> None:
        """Give an order; does not wait for it to be done."""
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(f"{order}\n")
        self.program.process.stdin.flush()
        self.orders += 1

    def all_done(self) -> bool:
        """Say whether all orders are done."""
        return len(self._answers()) == 1 + self.orders

    def address(self) -> str:
        """Return the address, which is its first word, once it is up."""
        wait_until(self._answers, 120)
        return str(self._answers()[0]["address"])

    def times_done(self, order: str) -> int:
        return sum(answer.get("done") == order for answer in self._answers())

    def free_cpus(self) -> tuple[float, float]:
        """Return how many CPUs are free now, and how many there are."""
        self.tell("count")
        wait_until(self.all_done, 60)
        answer = self._answers()[-1]
        return answer["free_cpus"], answer["cpus"]

    def replicas(self) -> list[psutil.Process]:
        """Return the replicas' processes on these nodes, whichever driver's; another Ray's are in another session."""
        found = []
        for process in self.program.relatives():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "".join(process.cmdline()[:1]).startswith("ray::Replica"):
                    found.append(process)
        return found

    def _answers(self) -> list[dict[str, Any]]:
        assert not self.program.has_ended(), self.program.errors()
        return self.program.said()


@dataclass
class Chaos:
    """Kills what a run needs, and counts what it has killed.

    Attributes:
        nodes: where the replicas are.
        small: the run.
        environment: of its drivers.
        drivers: all of them so far, the one at work now last.
        replicas_killed: how many got a SIGKILL of their own.
        drivers_killed: likewise.
        commits: when each commit was made, as it looked when it was first seen.
    """

    nodes: Nodes
    small: SmallRun
    environment: Mapping[str, str]
    drivers: list[Program] = field(default_factory=list)
    replicas_killed: int = 0
    drivers_killed: int = 0
    commits: dict[str, int] = field(default_factory=dict)
    _next_kill_at: int = 0
    _dice: random.Random = field(default_factory=lambda: random.Random(0))

    @contextlib.contextmanager
    def driver(self) -> Iterator[Program]:
        """Start the run, or resume it: the command is the same."""
        printed = Path(f"{self.small.output}-driver-{len(self.drivers)}.jsonl")
        args = (self.small.source, self.small.output, self.nodes.address(), NODES * CPUS_PER_NODE)
        with program("chaos_driver", *args, env=self.environment, printed=printed) as started:
            self.drivers.append(started)
            yield started

    def go_on_until(self, condition: Callable[[], object]) -> None:
        """Kill a replica every so many commits until a condition holds; fail if the driver ends before."""
        while not condition():
            if self.drivers[-1].has_ended():
                assert condition(), self._story()
                return
            num_committed = len(self._committed())
            if num_committed >= self._next_kill_at and self._may_fire() and self._kill_replica():
                self._next_kill_at = num_committed + COMMITS_PER_KILL
            time.sleep(0.1)

    def go_on_until_committed(self, share: float) -> None:
        """Go on until this share of the shards is committed."""
        self.go_on_until(lambda: len(self._committed()) >= SHARDS * share)

    def lose_node(self) -> None:
        """Let a node vanish with all that is on it, and another one come; replicas are killed meanwhile."""
        self.go_on_until(self._may_fire)
        self.nodes.tell("lose")
        self.nodes.tell("add")
        self.go_on_until(self.nodes.all_done)

    def kill_driver(self) -> None:
        self.drivers[-1].process.kill()
        self.drivers[-1].process.wait(20)
        self.drivers_killed += 1

    def go_on_to_the_end(self) -> None:
        self.go_on_until(self.drivers[-1].has_ended)
        assert self.drivers[-1].process.returncode == 0, self._story()

    def figures(self, seconds: float) -> str:
        requeued = sum(event["kind"] == "shard_requeued" for driver in self.drivers for event in driver.said())
        return (
            f"{SHARDS} shards survived: {self.replicas_killed} replicas killed, "
            f"{self.nodes.times_done('lose')} nodes lost, {self.drivers_killed} drivers killed, "
            f"{requeued} shards requeued, {seconds:.0f} s"
        )

    def _may_fire(self) -> bool:
        """Say whether no shard is at its third try or later; to be asked right before whatever ends a replica.

        There an image that is under way alone, and was so in company when an earlier try ended, is condemned as lethal
        if its replica ends again. That is by design, and here it would always hit the wrong one. The driver says that
        a shard is put back before it hands it out again, so what is not said here has not begun.
        """
        told = [re.match(r"(shard-\d+) after attempt (\d+)", text) for text in self._messages("shard_requeued")]
        late = {found[1] for found in told if found and int(found[2]) >= 2}
        return not late or late <= self._committed()

    def _kill_replica(self) -> bool:
        """Kill one of the replicas that the driver calls ready; say whether there was one."""
        ready = self._pids("replica_started") - self._pids("replica_died")
        targets = [process for process in self.nodes.replicas() if process.pid in ready] if ready else []
        if not targets:
            return False
        try:
            self._dice.choice(targets).kill()
        except psutil.NoSuchProcess:
            return False
        self.replicas_killed += 1
        return True

    def _pids(self, kind: str) -> set[int]:
        found = [re.match(r"replica \d+ \(pid (\d+) on", text) for text in self._messages(kind)]
        return {int(match[1]) for match in found if match}

    def _messages(self, kind: str) -> list[str]:
        return [event["message"] for event in self.drivers[-1].said() if event["kind"] == kind]

    def _committed(self) -> set[str]:
        """Return the committed shards, by a glance at the folder: this is asked all the time."""
        for path in Path(self.small.output, "_runs", RUN, "commits").glob("*.json"):
            self.commits.setdefault(path.stem, path.stat().st_mtime_ns)
        return set(self.commits)

    def _story(self) -> str:
        """Return all that the driver has said, for a failure's message."""
        driver = self.drivers[-1]
        events = "\n".join(f"{event['kind']}: {event['message']}" for event in driver.said())
        return f"the driver ended with {driver.process.poll()}\n{events}\n{driver.errors()}"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """What the programs find in their environment: Ray without tokens, on the loopback address, in a folder of its own.

    The folder's name is short because sockets lie deep below it, and their paths are limited to 107 characters.
    """
    folder = tempfile.mkdtemp(prefix="ray-")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield {
        **inherited,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(environment: dict[str, str], tmp_path: Path) -> Iterator[Nodes]:
    """A cluster that is still starting."""
    with program("chaos_nodes", CPUS_PER_NODE, env=environment, printed=tmp_path / "nodes.jsonl") as running:
        starting = Nodes(running)
        for _ in range(NODES):
            starting.tell("add")
        yield starting


@pytest.fixture
def unbroken(nodes: Nodes, tmp_path: Path) -> SmallRun:
    """A run that nothing has happened to; it takes place while the nodes start."""
    small = SmallRun(source=write_source(tmp_path / "images", 3 * SHARDS - 1), output=str(tmp_path / "unbroken"))
    assert run(small).ok
    return small


@pytest.mark.timeout(1200 if LONG else 300)
def test_a_run_whose_replicas_nodes_and_driver_are_killed_ends_with_the_rows_of_an_unbroken_one(
    nodes: Nodes,
    unbroken: SmallRun,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chaos = Chaos(nodes, replace(unbroken, output=str(tmp_path / "out")), environment)
    started = time.monotonic()
    for number in range(ROUNDS):
        with chaos.driver():
            chaos.go_on_until_committed((number + 0.25) / ROUNDS)
            chaos.lose_node()
            chaos.go_on_until_committed((number + 0.5) / ROUNDS)
            chaos.kill_driver()
    with chaos.driver():
        chaos.go_on_to_the_end()
    seconds = time.monotonic() - started

    check_ended(chaos.small, rows(unbroken.store()))
    check_each_committed_once(chaos)
    check_given_back(nodes)
    assert nodes.times_done("lose") == chaos.drivers_killed == ROUNDS
    assert chaos.replicas_killed >= FEWEST_KILLS
    with capsys.disabled():
        print(f"\n{chaos.figures(seconds)}")


def check_each_committed_once(chaos: Chaos) -> None:
    """As many commits as shards, each of another shard, and none was made again while the run went on."""
    store = chaos.small.store()
    names = store.find(f"_runs/{RUN}/commits")
    commits = {Path(name).stem: Path(store.path(name)).stat().st_mtime_ns for name in names}
    assert len(names) == len(commits) == SHARDS
    assert {commit.shard_id for commit in read_commits(store, RUN)} == set(commits)
    assert chaos.commits.items() <= commits.items()


def check_given_back(nodes: Nodes) -> None:
    """Nothing of the run is left on the cluster."""
    every = NODES * CPUS_PER_NODE
    wait_until(lambda: nodes.free_cpus() == (every, every), 30, lambda: f"{nodes.free_cpus()} CPUs are free")
    wait_until(lambda: not nodes.replicas(), 30, lambda: str(nodes.replicas()))
