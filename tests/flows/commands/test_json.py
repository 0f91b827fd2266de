"""What the commands print as JSON, and how many lines they print for one cause."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.console import MAX_LINES, show_problems
from tests.support.commands import command
from tests.support.labeled import box, mask, named, write_output

(CAT,) = named("ovseg", "cat")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(tmp_path / "out", {f"{n:03d}": [mask(CAT, box(0, 0, 2, 2))] for n in range(60)}, common=[CAT])
    return tmp_path / "out"


def told(code: int, *words: object) -> dict[str, Any]:
    """Return the document that a command prints, and nothing beside it."""
    ended = command(*words, "--json")
    assert (ended.code, ended.errors) == (code, "")
    return json.loads(ended.out)  # type: ignore[no-any-return]


def test_verify_lists_every_problem_as_json_and_twenty_as_text(output: Path) -> None:
    assert told(0, "verify", output)["is_whole"] is True
    lost = list((output / "images").glob("*/*"))
    for path in lost:
        path.unlink()
    document = told(1, "verify", output)
    (run,) = document["runs"]
    assert (document["is_whole"], run["is_whole"], len(run["problems"]) >= len(lost)) == (False, False, True)
    ended = command("verify", output)
    more = len(run["problems"]) - MAX_LINES
    assert ended.out.count("problem: ") == MAX_LINES + 1
    assert f"problem: and {more} more: --json has them" in ended.out


def test_vacuum_lists_every_file_as_json_and_twenty_as_text(output: Path) -> None:
    (run,) = (output / "images").iterdir()
    held = next(run.iterdir())
    for number in range(30):
        (run / f"shard-{number:05d}-0000{number:04d}-0.parquet").write_bytes(held.read_bytes())
    arguments = ("vacuum", output, "--older-than", 0, "--dry-run")
    document = told(0, *arguments)
    assert (document["dry_run"], len(document["removed"])) == (True, 30)
    ended = command(*arguments)
    assert ended.out.count(".parquet") == MAX_LINES
    assert "and 10 more: --json has them" in ended.out
    assert "30 leftovers found" in ended.out


def test_compact_says_whether_anything_is_new(output: Path) -> None:
    first, second = (told(0, "compact", output) for _ in range(2))
    assert (first["is_new"], second["is_new"], first["folder"]) == (True, False, second["folder"])


def test_plan_tells_what_would_run(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a.png\nb.png\n")
    words = ("plan", "--source", tmp_path / "names.txt", "--output", tmp_path / "out", "--categories", "cat")
    document = told(0, *words)
    assert (document["planned"]["images"], document["planned"]["num_bytes"], document["resumed"]) == (2, None, [])
    assert "2 of the 2 local paths" in document["warnings"][0]
    assert not (tmp_path / "out").exists()


def test_a_few_problems_are_all_printed() -> None:
    printed = Console(file=io.StringIO(), width=80)
    show_problems(printed, map(str, range(MAX_LINES)))
    assert printed.file.getvalue().count("problem: ") == MAX_LINES  # type: ignore[attr-defined]
