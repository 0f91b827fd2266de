"""`xsam-label query`: what it prints, what it writes and where not, and how it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from flows.commands.query import show_rows
from pipelines.query.user_select import Column
from tests.flows.commands.comparing.test_evaluate import contents
from tests.flows.conftest import Ended
from tests.support.labeled import RUN, box, mask, named, write_output

Cli = Callable[..., Ended]

CAT, DOG = named("ovseg", "cat", "dog")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    found = {
        f"[b]{number:02d}[/b].png": [mask(CAT, box(0, 0, 4, 4), 0.9), mask(DOG, box(1, 1, 2, 2))]
        for number in range(30)
    }
    write_output(tmp_path / "output", found, common=[CAT, DOG])
    return tmp_path / "output"


def rows(ended: Ended) -> list[list[str]]:
    """Return the cells of the printed table, without its head."""
    lines = [line for line in ended.out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]


def test_values_are_shown_as_they_are(cli: Cli, output: Path) -> None:
    # Between colons stand names of emojis: in ids, times, ratios.
    ended = cli("query", output, "SELECT 'intseg:a:1' AS \"x:cat:\", '10:100:20' AS time, '[b]bold[/b]' AS marked")
    assert rows(ended) == [["intseg:a:1", "10:100:20", "[b]bold[/b]"]]
    assert "x:cat:" in ended.out


def test_a_result_is_shown_as_a_table(cli: Cli, output: Path) -> None:
    before = contents(output)
    sql = "SELECT category_name, count(*) AS n, avg(area) AS mean FROM annotations GROUP BY 1 ORDER BY 1"
    ended = cli("query", output, sql)
    assert (ended.code, ended.err) == (0, "")
    assert rows(ended) == [["cat", "30", "16"], ["dog", "30", "4"]]
    assert contents(output) == before


def test_what_does_not_fit_is_said(cli: Cli, output: Path) -> None:
    ended = cli("query", output, "FROM annotations ORDER BY image_id", "--rows", 3)
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines()[:-2])) <= 120
    *_, columns, note = ended.out.splitlines()
    assert "more columns do not fit: " in columns
    assert "segmentation" in columns
    assert note == "the first 3 rows; --rows shows more, --to FILE saves all"
    assert "[b]00[/b].png" in ended.out


def test_only_a_terminal_gets_long_values_cut_and_is_told() -> None:
    columns, values = [Column("text", "VARCHAR"), Column("n", "BIGINT")], [("long " * 8, 1), ("x" * 41, 2)]
    for is_terminal in (True, False):
        printed = Console(file=io.StringIO(), force_terminal=is_terminal, width=60, soft_wrap=True, color_system=None)
        show_rows(columns, values, printed)
        text = printed.file.getvalue()  # type: ignore[attr-defined]
        assert ("x" * 41 in text) != is_terminal
        assert ("cells cut at 40 characters; --to FILE has them whole" in text) == is_terminal
    show_rows(columns, values[:1], printed)
    assert "cells cut" not in printed.file.getvalue()  # type: ignore[attr-defined]


def test_long_values_are_whole_in_a_pipe(cli: Cli, output: Path) -> None:
    ended = cli("query", output, "SELECT repeat('long ', 1000) AS text, [range, NULL] AS list FROM range(1)")
    (row,) = rows(ended)
    assert row == [("long " * 1000).strip(), "[0, null]"]


def test_all_rows_are_saved(cli: Cli, output: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    ended = cli("query", output, "SELECT image_id, segmentation FROM annotations", "--to", file)
    assert (ended.code, ended.out) == (0, f"60 rows written to {file}\n")
    assert len({json.loads(line)["image_id"] for line in file.read_text().splitlines()}) == 30


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("FROM anotations", "runs, prompts, corrections, conflicts, all_annotations, all_images\n"),
        ("SELECT scor FROM annotations", "\nannotations: image_id, annotation_id"),
        ("DROP VIEW images", "must be one SELECT statement, this is DROP"),
        (
            "WITH a AS (COPY images TO '{output}/annotations/x.parquet') FROM a",
            "a query only reads, and COPY does more; nothing was run",
        ),
        ("SELECT error('[red]no[/]')", "[red]no[/]"),
    ],
)
def test_a_wrong_query_is_one_message(cli: Cli, output: Path, sql: str, said: str) -> None:
    before = contents(output)
    ended = cli("query", output, sql.replace("{output}", str(output)))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err) < 1000
    assert "all_annotations: " not in ended.err
    assert contents(output) == before


def test_a_file_that_exists_is_left_as_it_is(cli: Cli, output: Path, tmp_path: Path) -> None:
    (tmp_path / "held.csv").write_text("mine")
    for name, said in (("held.csv", "exists already"), ("new.xlsx", "is not known")):
        ended = cli("query", output, "FROM images", "--to", tmp_path / name)
        assert ended.code == 2
        assert said in ended.err
    (held,) = [path for path in (output / "images" / RUN).iterdir() if "00000" in path.name]
    before = contents(output)
    assert cli("query", output, "FROM images", "--to", held).code == 2
    assert contents(output) == before
    assert (tmp_path / "held.csv").read_text() == "mine"
    for target in (tmp_path / "held.csv", tmp_path / "new" / "er.csv"):
        assert cli("query", output, "FROM images", "--to", target, "--overwrite").code == 0
        assert target.read_text().startswith("image_id,")
    assert cli("query", output, "SELECT image_id FROM images", "--to", "memory://saved/er/a.jsonl").code == 0
    assert fsspec.filesystem("memory").cat_file("/saved/er/a.jsonl").count(b"\n") == 30


def test_an_output_without_a_run_is_named(cli: Cli, tmp_path: Path) -> None:
    ended = cli("query", tmp_path / "nowhere", "FROM images")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{tmp_path}/nowhere holds no run" in ended.err
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_has_committed_nothing_has_no_rows(cli: Cli, tmp_path: Path) -> None:
    write_output(tmp_path / "output", {"a": [mask(CAT, box(0, 0, 2, 2))]}, common=[CAT], committed=0)
    ended = cli("query", tmp_path / "output", "SELECT count(*) AS n FROM annotations")
    assert rows(ended) == [["0"]]


def test_some_images_are_asked_for_by_id(cli: Cli, output: Path) -> None:
    chosen = ("--image-id", "[b]03[/b].png", "--image-id", "[b]20[/b].png")
    ended = cli("query", output, "SELECT image_id, count(*) AS n FROM annotations GROUP BY 1 ORDER BY 1", *chosen)
    assert rows(ended) == [["[b]03[/b].png", "2"], ["[b]20[/b].png", "2"]]
    ended = cli("query", output, "SELECT image_id FROM images", "--image-id", "unknown.png")
    assert (ended.code, rows(ended)) == (0, [])
