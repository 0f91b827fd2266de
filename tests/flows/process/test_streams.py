"""A terminal that goes away ends no run; a command that only prints ends without it, as command line tools do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from flows import cli
from flows.run.observer import Several, Silent
from pipelines.storage.store import open_store
from pipelines.table.verify import verify
from tests.reliability.small_run import SmallRun, as_driver, write_source
from tests.reliability.small_run import run as run_small
from tests.support.drivers import REPOSITORY
from tests.support.fakes import BrightPredictor
from tests.support.labeled import RUN

pytestmark = pytest.mark.timeout(120)

NUM_IMAGES = 5
WARNING = "warning: standard output cannot be written ({}); the command goes on without it\n"
BROKEN, FULL = "Broken pipe", "No space left on device"


def closed_pipe() -> TextIO:
    """A pipe of which the reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def pipe_closed_after(num_lines: int) -> TextIO:
    """A pipe of which the reader goes away after so many lines, as that of `head` does."""
    reader, writer = os.pipe()

    def read() -> None:
        with open(reader) as lines:
            for _ in range(num_lines):
                lines.readline()

    threading.Thread(target=read, daemon=True).start()
    return open(writer, "w")


def full_disk() -> TextIO:
    return open("/dev/full", "w")


@dataclass
class Told:
    """How a command ended, and what it said on standard error."""

    code: int | str
    errors: str


@contextlib.contextmanager
def ending_without_a_word(stream: TextIO) -> Iterator[None]:
    """Let go of a stream that cannot be flushed; after a command there is nothing in it that could fail."""
    try:
        yield
    finally:
        stream.close()


def command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, out: TextIO, *args: object, errors: TextIO | None = None
) -> Told:
    """Run `xsam-label ...` with these streams."""
    said = folder / "errors.txt"
    with open(said, "w") as to_file, ending_without_a_word(out), monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["xsam-label", *map(str, args)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", errors or to_file)
        with as_driver(BrightPredictor()), pytest.raises(SystemExit) as ended:
            cli.main()
        assert sys.stdout is out
    return Told(ended.value.code or 0, said.read_text())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.json.yaml"
    values = {
        "source": write_source(tmp_path / "images", NUM_IMAGES),
        "output": {"uri": str(tmp_path / "out"), "run_id": RUN},
        "model": {"path": "fake"},
        "categories": ["bright"],
        "plan": {"images_per_shard": 1},
        "pool": {"runner": "in_process", "shards_in_flight_per_replica": 1},
    }
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A finished output."""
    small = SmallRun(source=write_source(tmp_path / "images"), output=str(tmp_path / "labeled"))
    assert run_small(small).ok
    return small.output


def is_whole(output: Path) -> bool:
    store = open_store(str(output))
    return verify(store, RUN).ok


@pytest.mark.parametrize(
    ("open_out", "why"),
    [
        pytest.param(closed_pipe, BROKEN, id="closed"),
        pytest.param(lambda: pipe_closed_after(3), BROKEN, id="closed after 3 lines"),
        pytest.param(full_disk, FULL, id="full"),
    ],
)
def test_a_run_goes_on_without_its_terminal_and_says_so_once(
    open_out: Callable[[], TextIO], why: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command(monkeypatch, tmp_path, open_out(), "run", "-c", config, "--no-prefect")
    assert told == Told(0, WARNING.format(why))
    assert is_whole(tmp_path / "out")
    assert (tmp_path / f"out/_runs/{RUN}/summary.json").exists()


def test_a_run_goes_on_when_both_streams_are_gone(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = closed_pipe()
    assert command(monkeypatch, tmp_path, closed_pipe(), "run", "-c", config, "--no-prefect", errors=errors).code == 0
    errors.close()
    assert is_whole(tmp_path / "out")


def test_a_mistake_has_its_exit_code_though_nobody_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = closed_pipe()
    told = command(monkeypatch, tmp_path, closed_pipe(), "run", "-c", tmp_path / "none.toml", errors=errors)
    errors.close()
    assert told.code == 2


READING = [
    ("status",),
    ("verify",),
    ("vacuum", "--dry-run"),
    ("query", "SELECT image_id FROM images"),
]


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_a_command_that_only_prints_ends_quietly_when_nobody_reads(
    words: tuple[str, ...], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command(monkeypatch, tmp_path, closed_pipe(), words[0], output, *words[1:])
    assert told == Told(141, "")


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_a_command_that_only_prints_says_in_one_line_why_it_cannot(
    words: tuple[str, ...], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command(monkeypatch, tmp_path, full_disk(), words[0], output, *words[1:])
    assert told == Told(2, f"error: standard output cannot be written: [Errno 28] {FULL}\n")


def test_a_plan_that_nobody_reads_ends_quietly(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, tmp_path, closed_pipe(), "plan", "-c", config) == Told(141, "")


@pytest.mark.parametrize(
    "words",
    [
        ("query", "SELECT image_id FROM images", "--to", "written.csv"),
        ("report", "--to", "written.html"),
        ("export", "--to", "written.json"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_writes_a_file_writes_it_whole_without_its_terminal(
    words: tuple[str, ...], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        told = command(monkeypatch, tmp_path, full_disk(), words[0], output, *words[1:])
    assert told == Told(0, WARNING.format(FULL))
    assert (tmp_path / words[-1]).stat().st_size > 50


@pytest.mark.parametrize(("out", "code", "said"), [("closed", 141, ""), ("full", 2, FULL), ("none", 0, "")])
def test_a_process_ends_with_that_code_and_nothing_more_is_said(
    out: str, code: int, said: str, output: str, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-m", "flows.cli", "status", output]
    if out == "none":
        arguments = ["sh", "-c", 'exec "$@" >&-', "sh", *arguments]
    with full_disk() if out == "full" else closed_pipe() as stream:
        ended = subprocess.run(arguments, cwd=REPOSITORY, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (code, 1 if said else 0)
    assert said in ended.stderr


def test_an_observer_whose_console_ends_the_process_ends_no_run() -> None:
    heard: list[str] = []

    class Printing(Silent):
        def on_event(self, event: object) -> None:
            Ending(file=sys.stdout).on_broken_pipe()

    class Ending(Console):
        def on_broken_pipe(self) -> None:
            raise SystemExit(1)  # as rich's own does, which also turns standard output away

    class Listening(Silent):
        def on_event(self, event: object) -> None:
            heard.append(getattr(event, "kind", ""))

    Several(Printing(), Listening()).on_event(None)  # type: ignore[arg-type]
    assert heard == ["observer_failed", ""]


@pytest.mark.parametrize("ending", ["signals._end_now(signal.SIGTERM)", "signals.end_in_time(143); time.sleep(60)"])
def test_a_process_that_is_to_end_in_time_does_so_without_its_terminal(ending: str) -> None:
    begin = "import signal, sys, time; from flows.process import signals; signals.GRACE_S = 0; sys.stdout.write('x')"
    code = f"{begin}; {ending}"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with closed_pipe() as gone:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env=buffered,
            stdout=gone,
            stderr=gone,
            timeout=50,
            check=False,
        )
    assert ended.returncode == 143


@pytest.mark.slow
def test_training_goes_on_without_its_terminal() -> None:
    code = "from xsam_model.training.loop import launch; [launch._say('step') for _ in range(3)]"
    with closed_pipe() as gone:
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (0, "")
