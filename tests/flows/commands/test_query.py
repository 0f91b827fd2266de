"""`xsam-label query`: what it prints, what it writes and where not, and how it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from flows.commands.query import show_rows
from pipelines.query.user_select import TEXT_FORMATS, Column
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
    """Return the values of CSV without its head."""
    return list(csv.reader(io.StringIO(ended.out)))[1:]


def on_terminal(width: int, columns: list[str], values: list[tuple[object, ...]], **more: int) -> str:
    """Return what a terminal of this width shows of rows."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, soft_wrap=True, color_system=None)
    show_rows([Column(name, "VARCHAR") for name in columns], values, terminal, **more)
    return terminal.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_values_are_shown_as_they_are(cli: Cli, output: Path) -> None:
    # Between colons stand names of emojis: in ids, times, ratios.
    ended = cli("query", output, "SELECT 'intseg:a:1' AS \"x:cat:\", '10:100:20' AS time, '[b]bold[/b]' AS marked")
    assert rows(ended) == [["intseg:a:1", "10:100:20", "[b]bold[/b]"]]
    assert "x:cat:" in ended.out


def test_a_pipe_gets_every_row_as_csv(cli: Cli, output: Path) -> None:
    before = contents(output)
    sql = "SELECT category_name, count(*) AS n, avg(area) AS mean FROM annotations GROUP BY 1 ORDER BY 1"
    ended = cli("query", output, sql)
    assert (ended.code, ended.err) == (0, "")
    assert rows(ended) == [["cat", "30", "16.0"], ["dog", "30", "4.0"]]
    assert contents(output) == before


def test_no_column_is_left_out_of_a_pipe_and_rows_only_if_asked(cli: Cli, output: Path) -> None:
    ended = cli("query", output, "FROM annotations ORDER BY image_id")
    assert (len(rows(ended)), ended.out.startswith("image_id,annotation_id,")) == (60, True)
    ended = cli("query", output, "FROM annotations ORDER BY image_id", "--rows", 3)
    assert [row[0] for row in rows(ended)] == ["[b]00[/b].png", "[b]00[/b].png", "[b]01[/b].png"]
    assert ended.err == ""


ODD = """
SELECT * FROM (VALUES ('a,b', 2::FLOAT, {'a': [1, NULL]}), (E'two\nlines "x"', 'NaN'::FLOAT, NULL), (NULL, 1e30, NULL))
AS odd("the name", f, nested)
"""


@pytest.mark.parametrize("text_format", TEXT_FORMATS)
def test_each_format_is_printed_as_a_file_of_it_holds_it(
    cli: Cli, output: Path, tmp_path: Path, text_format: str
) -> None:
    file = tmp_path / f"saved.{text_format}"
    assert cli("query", output, ODD, "--to", file).code == 0
    ended = cli("query", output, ODD, "--format", text_format)
    assert ended.code == 0
    printed, saved = (values(text, text_format) for text in (ended.out, file.read_text()))
    assert printed == saved
    assert len(printed) == 3 + (text_format == "csv")


def values(text: str, text_format: str) -> list[object]:
    if text_format == "csv":
        return list(csv.reader(io.StringIO(text)))
    return json.loads(text) if text_format == "json" else [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("text_format", "empty"), [("csv", "image_id\n"), ("json", "[\n]\n"), ("jsonl", "")])
def test_no_rows_are_a_whole_document_too(cli: Cli, output: Path, text_format: str, empty: str) -> None:
    ended = cli("query", output, "SELECT image_id FROM images WHERE false", "--format", text_format)
    assert (ended.code, ended.out) == (0, empty)


def test_columns_are_chosen_in_any_order(cli: Cli, output: Path) -> None:
    ended = cli("query", output, "FROM annotations LIMIT 1", "--columns", "area, image_id")
    assert ended.out.startswith("area,image_id\n")
    ended = cli("query", output, "FROM runs", "--columns", "run", "--columns", "run_id")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: --columns: the result has no run; it has run_id, ")


def test_a_format_that_is_unknown_or_not_the_files_is_refused(cli: Cli, output: Path, tmp_path: Path) -> None:
    ended = cli("query", output, "FROM runs", "--format", "xml")
    assert (ended.code, "give one of table, csv, json, jsonl" in ended.err) == (2, True)
    ended = cli("query", output, "FROM runs", "--format", "json", "--to", tmp_path / "a.csv")
    assert (ended.code, "the extension of --to" in ended.err) == (2, True)
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("sql", ["DESCRIBE annotations", "SUMMARIZE annotations"])
def test_a_view_is_described(cli: Cli, output: Path, sql: str) -> None:
    ended = cli("query", output, sql)
    assert ended.code == 0
    assert ["image_id", "VARCHAR"] in [row[:2] for row in rows(ended)]


def test_a_terminal_wraps_long_values() -> None:
    text = on_terminal(40, ["long", "n"], [("x" * 60, "1")])
    assert text.count("x") == 60
    assert max(map(len, text.splitlines())) <= 40
    assert "cut" not in text


def test_a_terminal_shows_the_beginning_of_what_takes_many_lines_and_tells() -> None:
    text = on_terminal(60, ["long", "n"], [("x" * 300, "1")])
    assert text.count("x") == 199
    assert "values cut at 200 characters" in text


def test_where_the_columns_do_not_fit_each_row_is_shown_line_by_line() -> None:
    columns, values = [f"column_{number}" for number in range(20)], [tuple(range(20))] * 7
    text = on_terminal(60, columns, values)
    assert text.count("row ") == 5
    assert [len(re.findall(rf"{name} +{number} *\n", text)) for number, name in enumerate(columns)] == [5] * 20
    assert text.splitlines()[-1].startswith("the first 5 rows; --rows shows more")
    assert on_terminal(60, columns, values, max_records=7).count("row ") == 7


def test_a_table_in_a_pipe_is_as_wide_as_its_values(cli: Cli, output: Path) -> None:
    ended = cli(
        "query",
        output,
        "SELECT repeat('long ', 1000) AS text, [range, NULL] AS list FROM range(1)",
        "--format",
        "table",
    )
    assert f"│ {'long ' * 1000} │ [0, null] │" in ended.out


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
