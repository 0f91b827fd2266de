"""All runners over the same table of misfortunes; where replicas are processes, these are real and really die."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.pool import dispatch
from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from actors.pool.runner import PoolEvent, ReplicaStartError, ShardFailure
from pipelines.types import CrashHistory, ImageRef, ReplicaUnusable, Shard, ShardReceipt

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).resolve().parents[3]
APART = ("processes", "ray")
RUNNERS = ("in_process", *APART)


@dataclass
class FakeLabeler:
    """Leaves one file per call, so that calls can be counted across processes, then behaves as the test asks."""

    folder: Path
    behave: Callable[[str, int], None]  # told the shard and how often it was tried before

    def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
        earlier = len(list(self.folder.glob(f"{shard.shard_id}@*")))
        (self.folder / f"{shard.shard_id}@{attempt}@{os.getpid()}").touch()
        self.behave(shard.shard_id, earlier)
        return ShardReceipt(shard_id=shard.shard_id, attempt=attempt, status_counts={"ok": len(shard.images)})

    def describe(self) -> dict[str, str]:
        return {"device": "fake"}


@dataclass
class Lab:
    """A folder, the labelers that leave a file per call in it, and what these files tell."""

    folder: Path

    def factory(self, behave: Callable[[str, int], None] = lambda shard_id, earlier: None) -> Callable[[], FakeLabeler]:
        folder = self.folder
        return lambda: FakeLabeler(folder, behave)

    def calls(self) -> Counter[str]:
        return Counter(path.name.partition("@")[0] for path in self.folder.glob("*@*@*"))

    def attempts(self, shard_id: str) -> set[str]:
        return {path.name.split("@")[1] for path in self.folder.glob(f"{shard_id}@*")}

    def pids(self) -> set[int]:
        return {int(path.name.split("@")[2]) for path in self.folder.glob("*@*@*")}


@dataclass
class Result:
    receipts: dict[str, ShardReceipt]
    failures: dict[str, ShardFailure]
    events: list[PoolEvent]

    def kinds(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def send_by_value(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Workers cannot import this file: send what is defined here by value. No other machine may have been lost."""
    if kind == "ray":
        request.getfixturevalue("ray")
    monkeypatch.setattr(dispatch, "_LOOK_AROUND_S", 0.01)
    by_name = {"ray": "ray.cloudpickle", "processes": "cloudpickle"}
    if kind in by_name:
        importlib.import_module(by_name[kind]).register_pickle_by_value(sys.modules[__name__])
    return kind


@pytest.fixture(params=RUNNERS)
def runner_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return send_by_value(request.param, request, monkeypatch)


@pytest.fixture(params=APART)
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return send_by_value(request.param, request, monkeypatch)


@pytest.fixture
def on_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return send_by_value("ray", request, monkeypatch)


def make_shards(count: int) -> Iterator[Shard]:
    refs = (ImageRef(image_id="a", uri="memory://a"), ImageRef(image_id="b", uri="memory://b"))
    return (Shard(shard_id=f"s{n}", images=refs) for n in range(count))


def collect(outcomes: Iterator[ShardReceipt | ShardFailure], events: list[PoolEvent]) -> Result:
    got = list(outcomes)
    assert len({outcome.shard_id for outcome in got}) == len(got), "a shard was answered for twice"
    return Result(
        receipts={outcome.shard_id: outcome for outcome in got if isinstance(outcome, ShardReceipt)},
        failures={outcome.shard_id: outcome for outcome in got if isinstance(outcome, ShardFailure)},
        events=events,
    )


def label_all(factory: Callable[[], FakeLabeler], config: PoolConfig, shards: Iterator[Shard]) -> Result:
    events: list[PoolEvent] = []
    with open_runner(factory, config) as runner:
        return collect(runner.map(shards, events.append), events)


# All runners


def test_every_shard_is_labeled_once_under_its_own_attempt(lab: Lab, runner_kind: str) -> None:
    with open_runner(lab.factory(), PoolConfig(runner=runner_kind, replicas=2)) as runner:
        assert runner.describe() == {"device": "fake"}
        first = collect(runner.map(make_shards(9)), [])
        assert list(runner.map([])) == []
        again = collect(runner.map(make_shards(1)), [])
    assert lab.calls() == {"s0": 2} | {f"s{n}": 1 for n in range(1, 9)}
    assert not first.failures
    assert {receipt.status_counts["ok"] for receipt in first.receipts.values()} == {2}
    attempts = [receipt.attempt for receipt in (*first.receipts.values(), *again.receipts.values())]
    driver_ids, numbers = zip(*(attempt.split("-") for attempt in attempts), strict=True)
    assert len(set(driver_ids)) == 1
    assert len(driver_ids[0]) == 8
    assert len(set(numbers)) == 10


def test_shards_are_pulled_only_when_there_is_room(lab: Lab, runner_kind: str) -> None:
    pulled = itertools.count(1)
    ahead = 0

    def watched() -> Iterator[Shard]:
        nonlocal ahead
        for shard in make_shards(12):
            ahead = next(pulled)
            yield shard

    replicas = 1 if runner_kind == "in_process" else 2
    config = PoolConfig(runner=runner_kind, replicas=replicas, shards_in_flight_per_replica=2)
    with open_runner(lab.factory(lambda shard_id, earlier: time.sleep(0.02)), config) as runner:
        outcomes = runner.map(watched())
        assert ahead == 0
        for answered, _ in enumerate(outcomes):
            assert ahead - answered <= replicas * 2
    assert ahead == 12


class BrokenError(Exception):
    def __init__(self, first: str, second: str) -> None:  # cannot be unpickled from its message alone
        super().__init__(f"{first} and {second}")


def test_a_shard_that_raises_is_tried_again_then_named_and_stops_no_other(lab: Lab, runner_kind: str) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        if shard_id == "s1" or (shard_id == "s3" and earlier == 0):
            raise BrokenError("disk full", "no luck")

    result = label_all(lab.factory(behave), PoolConfig(runner=runner_kind), make_shards(6))
    assert set(result.receipts) == {"s0", "s2", "s3", "s4", "s5"}
    assert lab.calls() == {"s0": 1, "s1": 3, "s2": 1, "s3": 2, "s4": 1, "s5": 1}
    assert len(lab.attempts("s1")) == 3
    failure = result.failures["s1"]
    assert (failure.kind, failure.attempts) == ("error", 3)
    assert "BrokenError: disk full and no luck" in failure.error.splitlines()[0]
    assert "in behave" in failure.error
    assert result.kinds()["shard_requeued"] == 3


def test_a_labeler_that_cannot_be_built_ends_the_run_with_its_cause(lab: Lab, runner_kind: str) -> None:
    def build() -> FakeLabeler:
        raise FileNotFoundError("no weights in s3://models/xsam")

    started = time.monotonic()
    config = PoolConfig(runner=runner_kind, replicas=2, max_replica_start_failures=2)
    with open_runner(build, config) as runner, pytest.raises(ReplicaStartError, match="no weights in s3://models"):
        list(runner.map(make_shards(3)))
    assert time.monotonic() - started < 20


def test_a_labeler_that_can_be_built_at_the_third_try_is_enough(lab: Lab, runner_kind: str) -> None:
    def build() -> FakeLabeler:
        tries = len(list(lab.folder.glob("try*")))
        (lab.folder / f"try{tries}").touch()
        if tries < 2:
            raise OSError("storage is waking up")
        return lab.factory()()

    result = label_all(build, PoolConfig(runner=runner_kind), make_shards(3))
    assert len(result.receipts) == 3
    assert result.kinds() == {"replica_start_failed": 2, "replica_started": 1}


def test_a_spent_budget_lets_shards_in_flight_finish_and_leaves_the_rest(lab: Lab, runner_kind: str) -> None:
    def slow(shard_id: str, earlier: int) -> None:
        time.sleep(0.2)

    shards = make_shards(1000)
    with open_runner(lab.factory(slow), PoolConfig(runner=runner_kind, budget_s=1)) as runner:
        runner.describe()
        started = time.monotonic()
        result = collect(runner.map(shards), [])
    assert 1 <= time.monotonic() - started < 6
    assert not result.failures
    assert len(result.receipts) + len(list(shards)) == 1000


def test_what_does_not_finish_in_the_grace_is_reported_unfinished(lab: Lab, runner_kind: str) -> None:
    release = lab.folder / "release"

    def behave(shard_id: str, earlier: int) -> None:
        while shard_id == "s1" and not release.exists():
            time.sleep(0.05)
        if shard_id == "s2":
            raise OSError("flaky")

    config = PoolConfig(runner=runner_kind, budget_s=1, drain_grace_s=0.5, max_attempts_per_shard=10**6)
    events: list[PoolEvent] = []
    with open_runner(lab.factory(behave), config) as runner:
        runner.describe()
        result = collect(runner.map(make_shards(3), events.append), events)
    release.touch()
    assert set(result.receipts) == {"s0"}
    assert {failure.kind for failure in result.failures.values()} == {"unfinished"}
    assert set(result.failures) == {"s1", "s2"}
    assert "flaky" in result.failures["s2"].error
    assert "budget of 1 s" in result.failures["s1"].error
    assert result.kinds()["draining"] == 1


def test_stop_from_a_signal_handler_finishes_what_is_in_flight(lab: Lab, runner_kind: str) -> None:
    with open_runner(lab.factory(lambda shard_id, earlier: time.sleep(0.3)), PoolConfig(runner=runner_kind)) as runner:
        runner.describe()
        before = signal.signal(signal.SIGUSR1, lambda number, frame: runner.stop())
        try:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            result = collect(runner.map(make_shards(1000)), [])
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert list(runner.map(make_shards(5))) == []
    assert not result.failures
    assert 2 <= len(result.receipts) < 20
    assert set(lab.calls()) == set(result.receipts)


def test_leaving_the_iterator_early_leaves_the_runner_usable(lab: Lab, runner_kind: str) -> None:
    with open_runner(lab.factory(lambda shard_id, earlier: time.sleep(0.1)), PoolConfig(runner=runner_kind)) as runner:
        outcomes = runner.map(make_shards(50))
        next(outcomes)
        outcomes.close()
        result = collect(runner.map(make_shards(4)), [])
    assert len(result.receipts) == 4


def test_an_unusable_process_ends_the_run_when_there_is_no_other(lab: Lab) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        raise ReplicaUnusable("CUDA error: an illegal memory access was encountered")

    runner = open_runner(lab.factory(behave), PoolConfig(runner="in_process"))
    with runner, pytest.raises(ReplicaStartError, match="illegal memory access"):
        list(runner.map(make_shards(3)))


# Replicas in processes: what dies, hangs or does not fit


def test_shards_of_a_killed_replica_are_tried_again_under_a_new_attempt(lab: Lab, apart: str) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        if shard_id == "s2" and earlier == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    result = label_all(lab.factory(behave), PoolConfig(runner=apart, replicas=2), make_shards(10))
    assert len(result.receipts) == 10
    assert len(lab.attempts("s2")) == 2
    assert result.receipts["s2"].attempt in lab.attempts("s2")
    assert result.kinds()["replica_died"] == 1
    assert result.kinds()["shard_requeued"] >= 1


def when(condition: Callable[[], bool], then: Callable[[], object]) -> None:
    """Do something in a thread as soon as a condition holds, within half a minute."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not condition():
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


def test_the_death_of_an_idle_replica_is_noticed_while_others_work(lab: Lab, apart: str) -> None:
    folder = lab.folder

    def build() -> FakeLabeler:
        (folder / f"replica@{os.getpid()}").touch()
        return FakeLabeler(folder, behave)

    def behave(shard_id: str, earlier: int) -> None:
        deadline = time.monotonic() + 40
        while not (folder / "over").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def replicas() -> set[int]:
        return {int(path.name.partition("@")[2]) for path in folder.glob("replica@*")}

    def kill_the_idle_one() -> None:
        (idle,) = replicas() - lab.pids()
        os.kill(idle, signal.SIGKILL)

    ready: list[PoolEvent] = []
    died: list[bool] = []

    def on_event(event: PoolEvent) -> None:
        if event.kind == "replica_started":
            ready.append(event)
        if event.kind == "replica_died":
            died.append((folder / "over").exists())
            (folder / "over").touch()

    # Not before the pool knows both as ready: until then the end of one is a failed start.
    when(lambda: len(ready) == 2 and len(lab.pids()) == 1, kill_the_idle_one)
    config = PoolConfig(runner=apart, replicas=2, shards_in_flight_per_replica=1, num_cpus_per_replica=0.5)
    with open_runner(build, config) as runner:
        result = collect(runner.map(make_shards(1), on_event), [])
    assert set(result.receipts) == {"s0"}
    assert died == [False]


def test_replicas_that_end_together_while_they_load_are_one_failed_start(lab: Lab, apart: str) -> None:
    """As on a machine that is lost."""
    folder = lab.folder

    def build() -> FakeLabeler:
        (folder / f"replica@{os.getpid()}").touch()
        while len(list(folder.glob("replica@*"))) < 3:
            time.sleep(0.02)
        if len(list(folder.glob("replica@*"))) == 3:
            (folder / f"loading@{os.getpid()}").touch()
            while len(list(folder.glob("loading@*"))) < 3:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeLabeler(folder, label)

    def label(shard_id: str, earlier: int) -> None:
        while not (folder / "noticed").exists():  # or all would be labeled before the last of them is missed
            time.sleep(0.02)

    events: list[PoolEvent] = []

    def on_event(event: PoolEvent) -> None:
        events.append(event)
        if [one.kind for one in events].count("replica_start_failed") == 3:
            (folder / "noticed").touch()

    config = PoolConfig(runner=apart, replicas=3, num_cpus_per_replica=0.5, max_replica_start_failures=2)
    with open_runner(build, config) as runner:
        result = collect(runner.map(make_shards(4), on_event), events)
    assert len(result.receipts) == 4
    assert result.kinds()["replica_start_failed"] == 3


def test_a_shard_that_kills_every_replica_fails_alone(lab: Lab, apart: str) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        time.sleep(0.1)
        if shard_id == "s1":
            os.kill(os.getpid(), signal.SIGKILL)

    result = label_all(
        lab.factory(behave), PoolConfig(runner=apart, replicas=2, max_attempts_per_shard=2), make_shards(8)
    )
    assert {failure.shard_id: (failure.kind, failure.attempts) for failure in result.failures.values()} == {
        "s1": ("replica_died", 2)
    }
    assert len(result.receipts) == 7


@pytest.mark.parametrize("way", ["asleep", "stopped"])
def test_a_hung_replica_is_replaced_and_only_the_hung_shard_is_blamed(lab: Lab, apart: str, way: str) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        if shard_id == "s1" and way == "asleep":
            time.sleep(1000)
        elif shard_id == "s1":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.1)

    started = time.monotonic()
    in_flight = 2 if way == "asleep" else 1
    config = PoolConfig(
        runner=apart, max_attempts_per_shard=1, shard_timeout_s=2, shards_in_flight_per_replica=in_flight
    )
    result = label_all(lab.factory(behave), config, make_shards(5))
    assert {shard_id: failure.kind for shard_id, failure in result.failures.items()} == {"s1": "timeout"}
    assert len(result.receipts) == 4
    assert result.kinds()["replica_hung"] == 1
    assert time.monotonic() - started < 25


def test_a_replica_that_calls_itself_unusable_is_replaced(lab: Lab, apart: str) -> None:
    def behave(shard_id: str, earlier: int) -> None:
        if shard_id == "s1" and earlier == 0:
            raise ReplicaUnusable("CUDA error: an illegal memory access was encountered")

    result = label_all(lab.factory(behave), PoolConfig(runner=apart), make_shards(4))
    assert len(result.receipts) == 4
    assert result.kinds()["replica_died"] == 1
    assert len(lab.pids()) == 2


def test_a_replica_is_recycled_after_its_share(lab: Lab, apart: str) -> None:
    result = label_all(lab.factory(), PoolConfig(runner=apart, recycle_after_shards=2), make_shards(4))
    assert len(result.receipts) == 4
    assert len(lab.pids()) == 2
    assert result.kinds() == {"replica_started": 2, "replica_recycled": 1}


def test_a_start_that_takes_too_long_is_given_up(lab: Lab, apart: str) -> None:
    def build() -> FakeLabeler:
        time.sleep(1000)
        return lab.factory()()

    config = PoolConfig(runner=apart, replica_start_timeout_s=0.5, max_replica_start_failures=2)
    with open_runner(build, config) as runner, pytest.raises(ReplicaStartError, match=r"not ready after 0\.5 s"):
        runner.describe()


def test_replicas_without_room_keep_no_other_from_working(lab: Lab, on_ray: str) -> None:
    events: list[PoolEvent] = []

    def until_a_start_is_given_up() -> Iterator[Shard]:
        for shard in make_shards(1000):
            if any(event.kind == "replica_start_failed" for event in events):
                return
            yield shard

    config = PoolConfig(
        runner=on_ray, replicas=3, wait_for_nodes=True, replica_start_timeout_s=3, max_replica_start_failures=1
    )
    with open_runner(lab.factory(lambda shard_id, earlier: time.sleep(0.3)), config) as runner:
        result = collect(runner.map(until_a_start_is_given_up(), events.append), events)
    assert not result.failures
    assert set(lab.calls()) == set(result.receipts)
    assert result.kinds()["replica_start_failed"] >= 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        pytest.param({"num_gpus_per_replica": 1}, "room for 0: 2 CPUs and 0 GPUs on 1 node", id="no-gpu"),
        pytest.param({"replicas": 3}, "3 replicas of 1 CPUs .* Ray cluster has room for 2", id="too-many-replicas"),
        pytest.param({"runner": "processes", "replicas": 999}, "999 replicas .* this machine, .* room for", id="cores"),
    ],
)
def test_more_than_there_is_is_refused_at_once(lab: Lab, on_ray: str, asked: dict, message: str) -> None:
    started = time.monotonic()
    config = PoolConfig(**{"runner": on_ray, **asked})
    with pytest.raises(ReplicaStartError, match=message), open_runner(lab.factory(), config):
        pass
    assert time.monotonic() - started < 5


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code = f"""
from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
open_runner(dict, PoolConfig(ray_address="127.0.0.1:{port}")).__enter__()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "ReplicaStartError: the Ray cluster at '127.0.0.1:" in done.stderr
    assert "Connection refused" in done.stderr


LOCAL_RUN = """
import functools, signal, sys
sys.path.insert(0, {repository!r})
from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from pipelines.types import Shard, ShardReceipt

class Echo:
    def label(self, shard, attempt, crashes=None):
        return ShardReceipt(shard_id=shard.shard_id, attempt=attempt)
    def describe(self):
        import actors.pool.replica
        return {{"code": actors.pool.replica.__file__}}

handler = lambda number, frame: None
signal.signal(signal.SIGTERM, handler)
with open_runner(Echo, PoolConfig(runner=sys.argv[1])) as runner:
    import psutil
    assert runner.describe()["code"].startswith({repository!r})
    assert [receipt.shard_id for receipt in runner.map([Shard(shard_id="s0", images=())])] == ["s0"]
    assert signal.getsignal(signal.SIGTERM) is handler
    family = {{process.pid for process in psutil.Process().children(recursive=True)}}
    listening = {{c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in family}}
    assert listening <= {{"127.0.0.1", "::1", "::ffff:127.0.0.1"}}, listening
if sys.argv[1] == "ray":
    import ray
    assert not ray.is_initialized()
else:
    assert not {{"ray", "torch"}} & set(sys.modules)
    assert not listening
    psutil.wait_procs(map(psutil.Process, family & set(psutil.pids())), timeout=10)
    assert not family & set(psutil.pids())
"""


@pytest.mark.parametrize("kind", APART)
def test_a_source_checkout_runs_from_any_folder_and_home_on_loopback_alone(tmp_path: Path, kind: str) -> None:
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": "/dev/null/none"}
    script = tmp_path / "driver.py"
    script.write_text(LOCAL_RUN.format(repository=str(REPOSITORY)))
    done = subprocess.run(
        [sys.executable, script, kind], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_neither_config_nor_the_in_process_runner_loads_ray_or_torch() -> None:
    code = "import sys, actors.pool.config, actors.pool.in_process; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("settings", "expectation"),
    [
        pytest.param({"num_gpus_per_replica": 0.25, "replicas": 4}, nullcontext(), id="a-quarter-gpu"),
        pytest.param({"shard_timeout_s": None, "budget_s": None}, nullcontext(), id="no-limits"),
        pytest.param(
            {"runner": "slurm"},
            pytest.raises(ValueError, match="'auto', 'ray', 'processes' or 'in_process'"),
            id="runner",
        ),
        pytest.param(
            {"runner": "processes", "num_gpus_per_replica": 1}, pytest.raises(ValueError, match="take 'ray'"), id="gpu"
        ),
        pytest.param({"replicas": 0}, pytest.raises(ValueError, match="replicas is 0; allowed: 1 or"), id="replicas"),
        pytest.param({"budget_s": 0}, pytest.raises(ValueError, match="budget_s is 0"), id="budget"),
        pytest.param({"num_cpus_per_replica": -1}, pytest.raises(ValueError, match="num_cpus_per_repl"), id="cpus"),
        pytest.param({"num_gpus_per_replica": 1.5}, pytest.raises(ValueError, match="whole number"), id="gpus"),
        pytest.param({"ray_address": "ray://head:10001"}, pytest.raises(ValueError, match="host:port"), id="client"),
        pytest.param({"recycle_after_shards": 0}, pytest.raises(ValueError, match="recycle_after"), id="recycle"),
    ],
)
def test_config_says_what_is_wrong_and_what_is_allowed(settings: dict, expectation) -> None:
    with expectation:
        PoolConfig(**settings)


def test_processes_are_chosen_unless_something_asks_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # the session's tests have one
    assert PoolConfig(replicas=2).chosen_runner == "processes"
    for asks in ({"num_gpus_per_replica": 0.5}, {"wait_for_nodes": True}, {"ray_address": "local"}, {"runner": "ray"}):
        assert PoolConfig(**asks).chosen_runner == "ray", asks
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert PoolConfig().chosen_runner == "ray"
    assert PoolConfig(runner="in_process").chosen_runner == "in_process"


def test_config_from_a_file_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="replikas"):
        PoolConfig.model_validate({"replikas": 2})
    assert PoolConfig.model_validate({"replicas": 2}) == PoolConfig(replicas=2)
