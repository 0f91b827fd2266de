"""What shows a run in Prefect is never waited for by labeling, and whatever becomes of it is told in one message."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.launch import launch
from flows.config import ConfigError
from flows.prefect_server import reach, show_process, shown_run
from flows.prefect_server.shown_run import ShownRun
from flows.process.signals import Terminated
from flows.run.summary import RunSummary
from pipelines.types import Answer, Image, Prompt
from tests.reliability.small_run import SmallRun, as_driver, write_source
from tests.support.drivers import run_file, wait_until
from tests.support.fakes import BrightPredictor

pytestmark = pytest.mark.timeout(60)

# Stands for the process: what it does once it has heard of a run.
PROGRAM = """
import json, os, sys, time
from multiprocessing.connection import Connection
settings = json.loads(sys.argv[1])
line = Connection(settings["socket"])
heard = []
def hear():
    heard.append(line.recv())
    return heard[-1]
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
try:
    assert hear()[0] == "show"
    {does}
    while True:
        hear()
except EOFError:
    pass
"""
WAIT_FOR_END = 'any(what == "end" for what, *_ in iter(hear, None))'
WAIT_FOR_OUTCOME = WAIT_FOR_END.replace("end", "outcome")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallRun:
    """Four shards of one image, one of them broken, where no server is named."""
    monkeypatch.setattr(reach, "may_name_server", lambda: False)
    monkeypatch.setattr(show_process, "may_name_server", lambda: False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return SmallRun(write_source(tmp_path / "images", 4), str(tmp_path / "out"), images_per_shard=1, max_attempts=1)


@pytest.fixture
def shown_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let the process do something else; there is none yet, though a test before may have left one."""
    _close_all()
    yield lambda does: monkeypatch.setattr(show_process, "_PROGRAM", PROGRAM.format(does=does))
    _close_all()


def _close_all() -> None:
    for process in show_process._running:
        process.close()
    show_process._running.clear()


@dataclass
class Meanwhile(BrightPredictor):
    """Does something before it answers."""

    happens: Callable[[], object]

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        self.happens()
        return super().predict(images, prompts)


def launched(small: SmallRun, happens: Callable[[], object] = lambda: None) -> tuple[RunSummary, str]:
    printed = io.StringIO()
    with as_driver(Meanwhile(happens)):
        return launch(small.config(), Console(file=printed, width=300), prefect=True), printed.getvalue()


def test_a_run_is_labeled_and_verified_before_there_is_a_server_and_told_once_there_is_one(
    small: SmallRun, shown_by: Callable[[str], None], tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    told = f'open({str(heard)!r}, "w").write(json.dumps([what for what, *_ in heard])); line.send(("told", ""))'
    shown_by(f'{WAIT_FOR_END}; line.send(("starting",)); line.send(("up",)); {told}')
    summary, printed = launched(small)
    assert (summary.ok, summary.committed) == (True, 4)
    assert "Prefect could not" not in printed
    words = [word for word in json.loads(heard.read_text()) if word not in ("log", "progress", "artifact")]
    assert words == ["show", "wave", "outcome", "verify", "verified", "end"]


def test_a_run_whose_server_cannot_be_started_is_stopped_with_its_message(
    small: SmallRun, shown_by: Callable[[str], None]
) -> None:
    shown_by('line.send(("starting",)); line.send(("failed", "the embedded server cannot be started (why)"))')

    def wait() -> None:
        wait_until(lambda: show_process._running[0].failure, 20)

    with pytest.raises(ConfigError, match=r"server cannot be started \(why\). What is committed is kept$"):
        launched(small, wait)
    ended = run_file(small.output, "summary.json")
    assert (ended["committed"] < 4, bool(ended["problems"])) == (True, True)


def test_a_run_that_is_complete_all_the_same_has_one_warning(small: SmallRun, shown_by: Callable[[str], None]) -> None:
    shown_by(f'{WAIT_FOR_END}; line.send(("failed", "the embedded server cannot be started (why)"))')
    summary, printed = launched(small)
    assert summary.ok
    assert "Prefect could not be told of all of this run (the embedded server cannot be started (why))" in printed
    assert printed.count("warning") == 1


@pytest.mark.parametrize("is_up", [True, False])
def test_a_process_that_is_killed_costs_one_warning(
    small: SmallRun, shown_by: Callable[[str], None], *, is_up: bool
) -> None:
    shown_by('line.send(("starting",))' + '; line.send(("up",))' * is_up)

    def kill() -> None:
        process, *others = show_process._running
        assert not others
        wait_until(lambda: process.is_up == is_up and (process._state or process.has_ended()), 20)
        if not process.has_ended():
            os.kill(process._process.pid, signal.SIGKILL)
        wait_until(process.has_ended, 20)

    summary, printed = launched(small, kill)
    assert (summary.ok, summary.committed) == (True, 4)
    assert "Prefect could not be told of all of this run (the process that tells it has ended)" in printed


def test_one_that_ends_before_there_is_a_server_is_told_as_what_could_not_be_started(
    small: SmallRun, shown_by: Callable[[str], None]
) -> None:
    shown_by("sys.exit(3)")
    with pytest.raises(ConfigError, match=r"^the process that shows runs in Prefect ended with code 3: see what"):
        launched(small, lambda: wait_until(show_process._running[0].has_ended, 20))


def test_what_still_imports_ends_with_the_driver(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Path(small.output).with_name("begun")
    importing = f"import time; open({str(begun)!r}, 'w').close(); time.sleep(60)"
    program = show_process._PROGRAM.replace("from flows.prefect_server.show import main", importing)
    monkeypatch.setattr(show_process, "_PROGRAM", program)
    process = show_process.ShowProcess(may_start=True)
    wait_until(begun.exists, 20)
    process.close()
    assert process._process.returncode == 1  # by itself: not SIGKILL, which comes after some time


def test_one_that_is_slow_to_tell_of_a_stopped_run_may_do_so_when_the_driver_has_ended(
    small: SmallRun, shown_by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    shown_by(f"{WAIT_FOR_END}; wait_for({str(told)!r})")
    monkeypatch.setattr(shown_run, "PATIENCE_S", 0.05)
    process = show_process.show_process()
    assert ShownRun(process, small.config()).end(Terminated()) == "there was no time to tell the rest"
    process.close()
    assert process._process.poll() is None
    told.touch()
    assert process._process.wait(20) == 0


# Stands for it where no server is named: it has one to show runs on only if it may start one.
ASKING = """
import json, sys
from multiprocessing.connection import Connection
settings = json.loads(sys.argv[1])
line = Connection(settings["socket"])
line.send(("starting",) if settings["may_start"] else ("nobody",))
try:
    while True:
        line.recv()
except EOFError:
    pass
"""


def test_a_run_that_needs_a_server_gets_one_after_a_run_that_found_none(
    small: SmallRun, shown_by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_by("")
    monkeypatch.setattr(show_process, "_PROGRAM", ASKING)
    assert not show_process.show_process(may_start=False).has_server()
    assert show_process.show_process().has_server()
    assert len(show_process._running) == 1


def test_what_was_decided_about_a_wave_is_not_taken_for_the_same_wave_of_the_next_run(
    small: SmallRun, shown_by: Callable[[str], None]
) -> None:
    again = 'line.send(("again", "1/1")); hear(); line.send(("settled", "1/1"))'
    shown_by(f'{WAIT_FOR_END}; line.send(("settled", "1/1")); line.send(("told", "")); {WAIT_FOR_OUTCOME}; {again}')
    process = show_process.show_process()
    assert ShownRun(process, small.config()).end(None) == ""
    wave = Ending("a: bad", "")
    ShownRun(process, small.config()).watch(wave)  # type: ignore[arg-type]
    assert not wave.problems


# Stands for show.py: as Prefect does while a flow runs, it lets SIGTERM interrupt it.
HEEDING = """
import os, signal, socket

def main(driver, settings):
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
    os.kill(os.getpid(), signal.SIGTERM)
    socket.socket(fileno=settings["socket"]).send(str(heard).encode())
"""


def test_sigterm_to_all_processes_does_not_end_what_is_shown_before_the_driver_does(tmp_path: Path) -> None:
    package = tmp_path / "flows" / "prefect_server"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "driver.py").write_text("Driver = int")
    (package / "show.py").write_text(HEEDING)
    ours, theirs = socket.socketpair()
    settings = {"path": [str(tmp_path), *sys.path], "socket": theirs.fileno()}
    with ours, theirs:
        command = [sys.executable, "-P", "-c", show_process._PROGRAM, json.dumps(settings)]
        subprocess.run(command, pass_fds=[theirs.fileno()], check=True, timeout=50)
        assert ours.recv(100) == b"[]"


class Decided:
    """Stands for the process: remembers what it is told, and decides about waves with failures."""

    def __init__(self, *decisions: bool) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._decisions = iter(decisions)

    def say(self, *message: Any) -> None:
        self.told.append(message)

    def is_to_try_again(self, label: str) -> bool:
        assert label == "1/1"
        return next(self._decisions)


class Ending:
    """A wave that ends as it is told, each time that it is tried."""

    label = "1/1"

    def __init__(self, *problems: str) -> None:
        self.problems = [(problem, True) for problem in problems]

    def problem(self) -> tuple[str, bool]:
        return self.problems.pop(0)


def test_a_wave_is_tried_again_as_often_as_prefect_says(small: SmallRun) -> None:
    for problems, decisions in (
        [("a: bad", "a: worse", ""), (True, True)],
        [("a: bad",), (False,)],
        [("",), ()],
    ):
        process, wave = Decided(*decisions), Ending(*problems)
        ShownRun(process, small.config()).watch(wave)  # type: ignore[arg-type]
        assert not wave.problems
        assert process.told[1:] == [("wave", "1/1"), *(("outcome", "1/1", problem, True) for problem in problems)]


def test_where_the_server_could_not_write_nothing_is_planned(
    small: SmallRun, shown_by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown_by("pass")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ConfigError, match="needs a folder that it can write: set PREFECT_HOME"):
        launched(small)
    assert not Path(small.output, "_runs").exists()


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("pyproject.toml", '[project]\ndependencies = ["prefect>=3"]\n', False),
        ("pyproject.toml", '[tool.prefect]\napi.url = "http://127.0.0.1:4200/api"\n', True),
        ("pyproject.toml", "[tool", True),
        (".env", "PREFECT_API_URL=http://127.0.0.1:4200/api\n", True),
        (".env", "OTHER=1\n", False),
        ("prefect.toml", "", True),
    ],
)
def test_only_settings_of_prefect_may_name_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, *, names: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reach.os, "environ", {"PREFECT_HOME": str(tmp_path)})
    monkeypatch.delitem(reach.sys.modules, "prefect", raising=False)
    (tmp_path / name).write_text(text)
    assert reach.may_name_server() is names


@pytest.mark.usefixtures("small")
def test_a_process_that_has_failed_shows_no_later_run(shown_by: Callable[[str], None]) -> None:
    shown_by('line.send(("failed", "no server"))')
    failed = show_process.show_process()
    assert show_process.show_process() is failed
    failed.say("show", {}, 0, 0.0)
    wait_until(lambda: bool(failed.failure), 30)
    assert show_process.show_process() is not failed
    assert failed.has_ended()
