"""Keys that would lead out of a folder, or command a terminal: they stay text, in the table and on the screen."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from flows.commands.console import literal
from flows.commands.inspect import show_plan
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.reliability.small_run import RUN, SmallRun, as_driver, run
from tests.support.drivers import listing
from tests.support.fakes import BrightPredictor, half_bright, png

ODD = (
    "../../outside",
    "/etc/outside",
    "C:\\outside",
    "a/../../../b",
    "..",
    ".",
    "~root",
    "line\nbreak\ttab",
    "\x1b]0;title\x07\x1b[2Jescape",
    "\u202egnp.exe",
    "nul\0nul",
    "_runs/run-1/plan.json",
    "annotations/run-1/shard-00000-x.parquet",
    "[bold]markup[/]",
    "x" * 2000,
    "' OR 1=1 --",
    "ünï—☃",
)


def odd_collection(folder: Path) -> SmallRun:
    """A table whose image ids are odd, and whose images are good."""
    (folder / "in" / "deep").mkdir(parents=True)
    (folder / "in" / "deep" / "a.png").write_bytes(png(half_bright()))
    table = "".join(json.dumps({"image_id": name, "uri": "a.png"}) + "\n" for name in ODD)
    (folder / "in" / "deep" / "table.jsonl").write_text(table)
    return SmallRun(source=str(folder / "in" / "deep" / "table.jsonl"), output=str(folder / "in" / "out"))


def test_image_ids_are_carried_unchanged_and_lead_nowhere(tmp_path: Path) -> None:
    small = odd_collection(tmp_path)
    before = {name for name in listing(tmp_path) if not name.startswith("in/out/")}
    assert run(small).ok
    written = listing(tmp_path)
    assert {name for name in written if not name.startswith("in/out/")} == before
    assert all(re.fullmatch(r"[\w./-]+", name) for name in written)
    assert sorted(open_table(small.store(), "images").to_table()["image_id"].to_pylist()) == sorted(ODD)
    assert open_table(small.store(), "annotations").count_rows() == 2 * len(ODD)
    assert verify(small.store(), RUN).ok


def test_what_is_shown_of_them_commands_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[31mred"
    small = odd_collection(folder)
    screen = io.StringIO()
    with as_driver(BrightPredictor()):
        show_plan(small.config(), Console(file=screen, width=500, force_terminal=False))
    assert "\x1b" not in screen.getvalue()
    assert "\\x1b[31mred" in screen.getvalue()


def test_literal_text_keeps_letters_and_lines_and_shows_the_rest() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=500)
    for text in ("ünï—☃ [b]x[/]", "two\nlines", "\x1b[2J\x07\r\u202e\x9b"):
        console.print(literal(text), highlight=False)
    assert screen.getvalue().splitlines() == ["ünï—☃ [b]x[/]", "two", "lines", r"\x1b[2J\x07\x0d\x202e\x9b"]
