"""Replicas in processes of this machine: what they share and see, and that none of them outlives its driver."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from actors.pool import dispatch
from actors.pool.config import PoolConfig
from actors.pool.open import importing_ahead, open_runner
from actors.pool.processes import template, template_process, workers
from actors.pool.processes.memory import Memory
from actors.pool.runner import PoolEvent, ReplicaStartError, ShardFailure
from actors.pool.workers import WorkerEndedError
from pipelines.types import CrashHistory, ImageRef, ReplicaUnusable, Shard, ShardReceipt

pytestmark = pytest.mark.timeout(60)

REPOSITORY = Path(__file__).resolve().parents[4]
CONFIG = PoolConfig(runner="processes", num_cpus_per_replica=0.5)


def is_inheritable(descriptor: int) -> bool:
    with contextlib.suppress(OSError):  # what listed them
        return os.get_inheritable(descriptor)
    return False


class Labeler:
    """Behaves as the test asks, told the shard; describes its process."""

    def __init__(self, behave: Callable[[str], object] = lambda _shard_id: None) -> None:
        self._behave = behave
        self._facts = {
            "preloaded": str("tests.support.fakes" in sys.modules),
            **{name: os.environ.get(name, "unset") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")},
            "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
            "inheritable": str([fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_inheritable(fd)]),
        }

    def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
        self._behave(shard.shard_id)
        return ShardReceipt(shard_id=shard.shard_id, attempt=attempt)

    def describe(self) -> dict[str, str]:
        return self._facts


class Factory:
    preload = ("tests.support.fakes", "a.module.that.is.not.there")

    def __init__(self, behave: Callable[[str], object] = lambda _shard_id: None) -> None:
        self._behave = behave

    def __call__(self) -> Labeler:
        return Labeler(self._behave)


@pytest.fixture(autouse=True)
def by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(dispatch, "_LOOK_AROUND_S", 0.01)


def shards(count: int, images: int = 0) -> list[Shard]:
    refs = tuple(ImageRef(image_id=f"{n}", uri=f"memory://{n:0100}") for n in range(images))
    return [Shard(shard_id=f"s{number}", images=refs) for number in range(count)]


def label(factory: Any, config: PoolConfig, todo: list[Shard]) -> tuple[dict[str, Any], list[PoolEvent]]:
    events: list[PoolEvent] = []
    with open_runner(factory, config) as runner:
        return {outcome.shard_id: outcome for outcome in runner.map(todo, events.append)}, events


def test_a_replica_has_what_was_imported_once_and_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with open_runner(Factory(), CONFIG) as runner:
        assert runner.describe() == {
            "preloaded": "True",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "oom_score_adj": "1000",
            "inheritable": "[]",
        }


def test_what_replicas_need_is_imported_ahead_of_them() -> None:
    with importing_ahead(CONFIG, Factory.preload):
        (ahead,) = workers._ahead
        with open_runner(Factory(), CONFIG) as runner:
            assert runner.describe()["preloaded"] == "True"
            assert ahead._process.pid in {parent.pid for parent in psutil.Process().children()}
            assert not workers._ahead
        assert ahead.has_ended()
    with importing_ahead(CONFIG, Factory.preload):
        (unused,) = workers._ahead
    assert unused.has_ended()


def test_when_what_replicas_are_forked_from_is_killed_another_takes_its_place(tmp_path: Path) -> None:
    def behave(shard_id: str) -> None:
        if shard_id == "s1" and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(30)

    outcomes, events = label(Factory(behave), CONFIG, shards(4))
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes.values())
    assert len(outcomes) == 4
    assert [event.kind for event in events].count("replica_died") == 1


# Memory is nearly used up while a file exists.
FULL = """
import os
from actors.pool.processes.memory import Memory, Usage
Memory.usage = lambda self: Usage(950_000_000_001 if os.path.exists({flag!r}) else 0, 10**12)
main(settings)
"""


def test_a_replica_that_is_killed_before_memory_runs_out_says_so_and_names_no_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flag = tmp_path / "full"

    class Waiting(Labeler):
        def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
            if crashes is not None:
                crashes.report_in_progress(["an-image"])
            flag.touch()
            time.sleep(30)
            raise AssertionError

    def on_event(event: PoolEvent) -> None:
        flag.unlink(missing_ok=True)

    program = template_process._PROGRAM.replace("main(settings)", FULL.format(flag=str(flag)))
    monkeypatch.setattr(template_process, "_PROGRAM", program)
    config = CONFIG.replace(max_attempts_per_shard=2, shard_timeout_s=20)
    with open_runner(Waiting, config) as runner:
        (failure,) = runner.map(shards(1), on_event)
    assert isinstance(failure, ShardFailure)
    # With an image named, the last attempt would not count, and another one follow.
    assert (failure.kind, failure.attempts) == ("replica_died", 2)
    assert "95% of this machine's memory is used" in failure.error


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    ("ready_kb", "now_kb", "used_kb", "killed", "innocent"),
    [
        (10_000, 10_000, 94_000, False, False),
        (0, 3_000, 99_000, False, False),  # others would use too much without it
        (10_000, 12_000, 99_000, True, True),
        (10_000, 50_000, 99_000, True, False),
    ],
)
def test_only_a_replica_that_has_taken_the_memory_was_ended_by_its_images(
    tmp_path: Path, sleeper: int, *, ready_kb: int, now_kb: int, used_kb: int, killed: bool, innocent: bool
) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        forge = template.Template(there, os.getpid(), Memory(0.95, tmp_path, tmp_path))
        child = forge._children[sleeper] = template._Child(1, template.open_stderr())
        (tmp_path / str(sleeper)).mkdir()

        def are(held_kb: int, used_kb: int) -> None:
            pages = 1024 * held_kb // os.sysconf("SC_PAGE_SIZE")
            (tmp_path / str(sleeper) / "statm").write_text(f"{pages} {pages} 0 1 0 1 0\n")
            (tmp_path / "meminfo").write_text(f"MemTotal: 100000 kB\nMemAvailable: {100_000 - used_kb} kB\n")

        are(ready_kb, 45_000 + ready_kb)
        here.send(b'{"ready": 1}')
        assert forge._hear()
        are(now_kb, used_kb)
        assert (forge.spare_memory(), child.is_innocent) == (killed, innocent)
        assert bool(child.reason) == killed
        os.close(child.wrote)


def test_the_used_share_is_that_of_whatever_is_fuller(tmp_path: Path) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    (tmp_path / "proc" / "7" / "statm").write_text("900 300 100 1 0 1 0\n")
    memory = Memory(0.95, tmp_path / "proc", tmp_path / "cgroup")
    assert memory.usage().share == pytest.approx(0.4)
    assert memory.held_by(7) == 200 * os.sysconf("SC_PAGE_SIZE")
    assert memory.held_by(8) == 0
    group = tmp_path / "cgroup"
    group.mkdir()
    for name, text in (
        ("max", "1000"),
        ("current", "900"),
        ("stat", "anon 700\ninactive_file 60\nactive_file 30\nslab_reclaimable 10\n"),
    ):
        (group / f"memory.{name}").write_text(text)
    assert memory.usage().share == pytest.approx(0.8)
    for unknown in ("max", "0", ""):
        (group / "memory.max").write_text(unknown)
        assert memory.usage().share == pytest.approx(0.4)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:\n")
    assert memory.usage().share == 0


def test_a_replica_that_reads_nothing_does_not_block_the_driver() -> None:
    """More than the socket between them holds waits for a process that is stopped."""

    def behave(shard_id: str) -> None:
        if shard_id == "s0":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(30)  # another thread may take the signal, and this one go on for a moment

    # Given out at the same time, both may be overdue at once; the second attempt at each has a replica to itself.
    config = CONFIG.replace(shard_timeout_s=1.0, max_attempts_per_shard=2)
    outcomes, _ = label(Factory(behave), config, shards(2, images=20_000))
    assert {shard_id: isinstance(outcome, ShardReceipt) for shard_id, outcome in outcomes.items()} == {
        "s0": False,
        "s1": True,
    }
    assert outcomes["s0"].kind == "timeout"


def test_a_replica_that_gets_sigterm_finishes_what_it_labels() -> None:
    """As where a whole service or job is stopped: the driver gets it, too, and decides."""
    ran = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"

    def behave(_shard_id: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert subprocess.check_output([sys.executable, "-c", ran], text=True) == "True\n"

    outcomes, events = label(Factory(behave), CONFIG, shards(1))
    assert isinstance(outcomes["s0"], ShardReceipt)
    assert [event.kind for event in events] == ["replica_started"]


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)

    def __call__(self) -> Labeler:
        raise AssertionError


def test_a_factory_that_cannot_be_read_is_told() -> None:
    config = CONFIG.replace(max_replica_start_failures=1)
    with open_runner(Unreadable(), config) as runner, pytest.raises(ReplicaStartError, match="invalid literal"):
        runner.describe()


class Interrupted:
    """A lock that another thread gets hold of, and does something with, as soon as this one lets it go."""

    def __init__(self, lock: Any, meanwhile: Callable[[], object]) -> None:
        self._lock = lock
        self._meanwhile = meanwhile

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread() is threading.main_thread():
            self._meanwhile()


@pytest.fixture
def crew() -> Iterator[workers.ProcessWorkers]:
    crew = workers.ProcessWorkers(Factory(), CONFIG)
    crew.open()
    yield crew
    crew.close()


def test_a_shard_given_to_a_replica_as_it_ends_fails_like_any_other(crew: workers.ProcessWorkers) -> None:
    worker = crew.start()
    worker.ready.result(30)

    def end() -> None:
        worker.kill()
        worker.ended.exception(30)

    worker._guard = Interrupted(worker._guard, end)  # type: ignore[assignment]
    answer = worker.label(shards(1)[0], "an-attempt", None)
    assert isinstance(answer.exception(30), WorkerEndedError)
    assert isinstance(worker.label(shards(1)[0], "another", None).exception(30), WorkerEndedError)


def test_an_answer_that_cannot_be_read_is_told_and_the_next_one_is_read() -> None:
    class Telling(Labeler):
        def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
            if shard.shard_id == "s0":
                return Unreadable()  # type: ignore[return-value]
            return super().label(shard, attempt, crashes)

    config = CONFIG.replace(max_attempts_per_shard=1, shard_timeout_s=20)
    outcomes, events = label(Telling, config, shards(2))
    assert outcomes["s0"].kind == "error"
    assert "invalid literal" in outcomes["s0"].error
    assert isinstance(outcomes["s1"], ShardReceipt)
    assert "replica_died" not in [event.kind for event in events]


def test_a_replica_that_is_ready_and_cannot_be_read_has_failed_to_start() -> None:
    class Telling(Labeler):
        def describe(self) -> dict[str, str]:
            return {"a": Unreadable()}  # type: ignore[dict-item]

    config = CONFIG.replace(max_replica_start_failures=1, replica_start_timeout_s=20)
    with open_runner(Telling, config) as runner, pytest.raises(ReplicaStartError, match="invalid literal"):
        runner.describe()


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_replica_has_started_ends_with_it(crew: workers.ProcessWorkers, *, killed: bool, tmp_path: Path) -> None:
    def behave(_shard_id: str) -> None:
        (tmp_path / "started").write_text(str(subprocess.Popen(["sleep", "60"]).pid))

    crew._first = cloudpickle.dumps((Factory(behave), 1))
    worker = crew.start()
    worker.label(shards(1)[0], "an-attempt", None).result(30)
    started = psutil.Process(int((tmp_path / "started").read_text()))
    worker.kill() if killed else crew.close()
    _gone, alive = psutil.wait_procs([started], timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_the_death_of_a_replica_is_noticed_while_what_it_started_lives_on(tmp_path: Path) -> None:
    def behave(shard_id: str) -> None:
        if os.fork() == 0:
            os.setsid()
            (tmp_path / "left").write_text(str(os.getpid()))
            time.sleep(30)
            os._exit(0)
        while not (tmp_path / "left").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        config = CONFIG.replace(max_attempts_per_shard=1, shard_timeout_s=20)
        outcomes, _ = label(Factory(behave), config, shards(1))
    finally:
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert (outcomes["s0"].kind, "SIGKILL" in outcomes["s0"].error) == ("replica_died", True)


class Fails:
    """Fails to start in the way that is asked for."""

    preload = ()

    def __init__(self, how: str) -> None:
        self._how = how

    def __call__(self) -> Labeler:
        if self._how == "unusable":
            raise ReplicaUnusable("the cause")
        if self._how == "exit":
            sys.exit("the cause")
        if self._how == "abort":
            os.write(2, b"x" * 5000 + b" the cause")
            os.abort()
        labeler = Labeler()
        labeler._facts = None  # type: ignore[assignment]
        return labeler


@pytest.mark.parametrize("how", ["unusable", "exit", "abort", "describe"])
def test_why_a_replica_could_not_start_is_told(crew: workers.ProcessWorkers, how: str) -> None:
    crew._first = cloudpickle.dumps((Fails(how), 1))
    ready = crew.start().ready
    try:
        answer: object = ready.result(30)
    except WorkerEndedError as error:
        answer = error
    assert ("NoneType" if how == "describe" else "the cause") in str(answer)


def test_a_module_that_ends_the_process_as_it_is_imported_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import subprocess, sys\nsubprocess.Popen(['true'])\nsys.exit('none')\n"
    (tmp_path / "needs_a_license.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, tmp_path])  # Python ignores a Path as well
    monkeypatch.setattr(Factory, "preload", ("needs_a_license",))
    outcomes, events = label(Factory(), CONFIG, shards(1))
    assert isinstance(outcomes["s0"], ShardReceipt)
    assert [event.kind for event in events] == ["replica_started"]


def test_imports_are_not_waited_for_when_they_are_needed_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(60)\n"
    (tmp_path / "takes_a_minute.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with importing_ahead(CONFIG, ("takes_a_minute",)):
        (ahead,) = workers._ahead
        wait_until((tmp_path / "begun").exists)
    assert ahead._process.returncode == -signal.SIGTERM  # not SIGKILL, which comes after some seconds


def test_what_others_import_ahead_is_neither_taken_nor_ended() -> None:
    with importing_ahead(CONFIG.replace(num_cpus_per_replica=2), ()), importing_ahead(CONFIG, ("json",)):
        theirs = tuple(workers._ahead)
        with importing_ahead(CONFIG, ()):
            (mine,) = set(workers._ahead) - set(theirs)
            assert workers._take_ahead((), CONFIG) is mine
            mine.close()
        assert tuple(workers._ahead) == theirs
        assert not any(template.has_ended() for template in theirs)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline and not condition():
        time.sleep(0.02)
    assert condition()


DRIVER = """
import os, signal, sys, time
sys.path.insert(0, {repository!r})
from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from pipelines.types import Shard

class Labeler:
    def label(self, shard, attempt, crashes=None):
        print(os.getpid(), os.getppid(), file=open({told!r}, "a"), flush=True)
        while True:
            sum(range(10**7))  # never idle, and never at the socket

    def describe(self):
        return {{}}

with open_runner(Labeler, PoolConfig(runner="processes", replicas=2, num_cpus_per_replica=0.5)) as runner:
    if os.fork() == 0:  # a process that outlives the driver, and holds all that it has opened
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    list(runner.map(Shard(shard_id=f"s{{n}}", images=()) for n in range(4)))
"""


def test_no_replica_outlives_a_driver_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = DRIVER.format(repository=str(REPOSITORY), told=str(told))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    left_behind = psutil.Process(int(driver.stdout.readline()))
    wait_until(lambda: told.exists() and len(set(told.read_text().split())) == 3)
    pids = {int(pid) for pid in told.read_text().split()}
    assert len(pids) == 3  # two replicas, and what they were forked from
    family = [psutil.Process(pid) for pid in pids]
    driver.kill()
    driver.wait()
    _gone, alive = psutil.wait_procs(family, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert left_behind.is_running()
    left_behind.kill()
    driver.stdout.close()


def test_what_imports_for_replicas_does_not_outlive_a_driver_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(50)"
    (tmp_path / "takes_a_minute.py").write_text(code)
    code = f"""import sys; sys.path[:0] = {[str(REPOSITORY), str(tmp_path)]!r}
from actors.pool.config import PoolConfig
from actors.pool.open import importing_ahead
with importing_ahead(PoolConfig(runner="processes"), ["takes_a_minute"]):
    sys.stdin.read()
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    wait_until(lambda: told.exists() and told.read_text().endswith("."))
    importing = psutil.Process(int(told.read_text()[:-1]))
    driver.kill()
    driver.communicate()
    _gone, alive = psutil.wait_procs([importing], timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
