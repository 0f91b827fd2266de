"""Driver processes and what belongs to them: the command line as a user starts it, a Prefect server, comparable tables.

Whatever is started here leads a session of its own, so that all of it can be found, counted and killed by that id.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from pipelines.layout import Kind
from pipelines.storage.checksummed_json import BLANK
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from tests.support.forked_driver import REPOSITORY, DriverServer, ForkedProcess, heed_interrupts

# What differs between two runs that label the same: who did it, and how long it took.
UNSTABLE = ("attempt", "decode_ms", "model_ms")


@dataclass
class Driver:
    """A running `xsam-label ...`, leader of its own session."""

    process: subprocess.Popen[str] | ForkedProcess

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, timeout_s: float = 120) -> tuple[int, str, str]:
        """Wait for its end and return exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 120) -> None:
        """Wait for a condition that it will bring about; fail if it ends before."""
        wait_until(lambda: condition() or self.process.poll() is not None, timeout_s)
        if not condition():
            raise AssertionError(f"it ended before that: {self.end()}")

    def relatives(self) -> list[psutil.Process]:
        """Living processes of its session: itself, Ray, replicas, an embedded Prefect server."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_all(self) -> None:
        """SIGKILL it and everything that belongs to it, at once."""
        for process in self.relatives():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def driver(
    *args: object, env: Mapping[str, str], cwd: Path = REPOSITORY, server: DriverServer | None = None
) -> Iterator[Driver]:
    """Run the command line in a process; nothing of it is left when the block ends.

    Args:
        args: of the command line.
        env: its whole environment.
        cwd: the folder it starts in.
        server: forks it, if given; it then need not import everything anew.
    """
    running = Driver(server.start(*args, env=env, cwd=cwd) if server else _started(*args, env=env, cwd=cwd))
    try:
        yield running
    finally:
        running.kill_all()
        running.process.communicate(timeout=20)


def _started(*args: object, env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY), **env},
        cwd=cwd,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - one call that takes no lock
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def command_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return what runs the command line's main function in this process, as the console script does."""
    from flows.cli import main

    def call(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["xsam-label", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return call


@dataclass(frozen=True)
class PrefectServer:
    """A running `prefect server start`: its address, its home folder and its process, which leads a group."""

    api_url: str
    home: Path
    pid: int

    def kill(self) -> None:
        """SIGKILL it, with all that it started."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def wait_until_ready(self) -> None:
        """Wait for its first answer."""
        log = self.home / "server.log"
        wait_until(lambda: _answers(f"{self.api_url}/health"), 120, lambda: log.read_text()[-2000:])

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST to the API; a server that is busy (503) is asked again, as Prefect's own client does."""
        request = urllib.request.Request(
            f"{self.api_url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        for pause_s in (0.5, 1, 2, 4, None):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503 or pause_s is None:
                    raise
                time.sleep(pause_s)
        raise AssertionError("unreachable: the last try returns or raises")

    def ended_task_runs(self, flow_run_id: str, expected: int) -> list[dict[str, Any]]:
        """Return the task runs of a flow run that has ended, once the server knows of as many as are expected.

        A flow run is told to the server, but a task run only emits events, which the server records in its own time.
        """
        chosen = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        found: list[dict[str, Any]] = []

        def are_recorded() -> bool:
            found[:] = self.ask("task_runs/filter", chosen)
            ended = [run for run in found if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
            return len(ended) >= expected

        wait_until(are_recorded, 60, lambda: str([(run["name"], run["state_type"]) for run in found]))
        return found


def migrated_home(home: Path, template: Path) -> Path:
    """Make a home folder of Prefect whose database is migrated already, which costs a new one many seconds.

    Args:
        home: the folder.
        template: a database that the first of all processes to come here makes, and the others wait for.

    Returns:
        ``home``.
    """
    with open(template.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            making = template.with_suffix(".home")
            env = {**os.environ, "PREFECT_HOME": str(making), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
            (making / "prefect.db").rename(template)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(template, home / "prefect.db")
    return home


# Services that look for what no test waits for, every five seconds: a tenth of a core for each server. The one that
# plans the runs of new deployments looks more often. No test has a block, whose types are registered at a start.
_QUIET = {
    **{
        f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
        for name in ("CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "TRIGGERS")
    },
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
}


@contextlib.contextmanager
def prefect_server(home: Path, port: int | None = None, services: Sequence[str] = ()) -> Iterator[PrefectServer]:
    """Run a Prefect server on the loopback address with its database in a folder; it is not ready at once.

    Args:
        home: the folder.
        port: where it listens; None for any that is free.
        services: those of _QUIET that it runs all the same.
    """
    home.mkdir(parents=True, exist_ok=True)
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    wanted = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "true" for name in services}
    env = {
        **os.environ,
        **_QUIET,
        **wanted,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"],
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )
    try:
        yield PrefectServer(env["PREFECT_API_URL"], home, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)  # at once where a test has killed it, and waited for it


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=2).status == 200
    return False


def wait_until(condition: Callable[[], object], timeout_s: float, explain: Callable[[], str] = lambda: "") -> None:
    """Look every 20 ms until a condition holds; fail with an explanation if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s:g} s: {explain()}")
        time.sleep(0.02)


def committed(output: str, kind: Kind, *, without: tuple[str, ...] = UNSTABLE) -> pa.Table:
    """Return the committed rows of an output in a fixed order, without the columns that differ from run to run."""
    table = open_table(open_store(output), kind).to_table()
    return comparable(table, kind, without=without)


def comparable(table: pa.Table, kind: Kind, *, without: tuple[str, ...] = UNSTABLE) -> pa.Table:
    """Sort rows and drop columns, so that equal labels make equal tables."""
    key = {"annotations": ["image_id", "rank", "prompt_id"], "images": ["image_id"]}[kind]
    dropped = table.drop_columns([name for name in without if name in table.column_names])
    return dropped.sort_by([(name, "ascending") for name in key]).combine_chunks().replace_schema_metadata()


def listing(output: Path) -> dict[str, tuple[int, int]]:
    """Return every file below a folder with its size and modification time."""
    return {
        str(path.relative_to(output)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def run_file(output: Path | str, name: str) -> Any:
    """Read a JSON file of the one run that an output holds, without its checksum."""
    store = open_store(str(output))
    (run_id,) = store.folders("_runs")
    document = store.read_json(f"_runs/{run_id}/{name}")
    return {key: value for key, value in document.items() if key not in BLANK}
