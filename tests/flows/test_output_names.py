"""Every command says in one line that an output's name is one that stores list otherwise than it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OUTPUT = "s3://bucket//labels"


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--source", "SOURCE", "--categories", "car", "--no-prefect", "--output", OUTPUT),
        ("plan", "--source", "SOURCE", "--categories", "car", "--output", OUTPUT),
        ("retry", OUTPUT),
        ("status", OUTPUT),
        ("verify", OUTPUT),
        ("vacuum", OUTPUT),
        ("report", OUTPUT),
        ("query", OUTPUT, "SELECT 1"),
        ("export", OUTPUT, "--to", "TARGET"),
        ("evaluate", OUTPUT, "--ground-truth", "TRUTH"),
    ],
    ids=lambda command: command[0],
)
def test_an_empty_folder_name_in_an_output_is_refused(
    cli: Callable[..., Any], command: tuple[str, ...], photographs: Path, tmp_path: Path
) -> None:
    places = {"SOURCE": photographs, "TARGET": tmp_path / "coco.json"}
    ended = cli(*(places.get(word, word) for word in command))
    assert ended.code == 2, ended.out + ended.err
    told = " ".join((ended.out + ended.err).split())
    assert f"'{OUTPUT}': an output's name must not hold an empty folder name ('//')" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["../other", "a/b", "..", ".", "", "a b", "_hidden"])
@pytest.mark.parametrize("command", ["run", "plan", "status", "verify", "vacuum", "retry", "evaluate"])
def test_a_run_is_not_looked_for_under_a_path(
    cli: Callable[..., Any], command: str, name: str, photographs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    needed = {
        "run": ("--source", photographs, "--categories", "car", "--output", output, "--no-prefect"),
        "plan": ("--source", photographs, "--categories", "car", "--output", output),
        "evaluate": (output, "--ground-truth", tmp_path / "truth.json"),
    }
    ended = cli(command, *needed.get(command, (output,)), "--run-id", name)
    assert ended.code == 2
    assert f"Invalid value for '--run-id': the name {name!r}" in ended.err
    assert not output.exists()
