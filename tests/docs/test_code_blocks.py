"""Every code block of README and docs/ runs; one that is marked to need more than a test has is checked as far as
that goes: Python is compiled and its imports resolve, commands and their options exist, configs are valid."""

from __future__ import annotations

import ast
import configparser
import csv
import json
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sybil import Example
from sybil.evaluators.python import PythonEvaluator

from flows.config import merge, parse_config
from pipelines.query.database import open_database
from pipelines.query.select_text import read_statement
from pipelines.query.user_select import check_select, first_rows
from pipelines.storage.store import open_store
from tests.docs import address, blocks, shell
from tests.docs.samples import write_samples
from tests.support.drivers import REPOSITORY


def _import_names(example: Example) -> None:
    """Compile a block, and look up what it imports; nothing heavy is imported for that."""
    for node in ast.walk(ast.parse(example.parsed)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names} - blocks.NEEDS.keys()
            missing = [name for name in names if find_spec(name) is None]
            assert not missing, f"there are no {missing}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                address.check(f"{node.module}.{alias.name}")


def _run_sql(example: Example) -> None:
    """Run statements over files in DuckDB itself, those over views as `xsam-label query` does."""
    sql = example.parsed
    if ".parquet'" in sql:
        with duckdb.connect() as plain:
            plain.execute(sql)
        return
    with open_database(open_store("OUTPUT"), own_files=read_statement(sql).own_files) as database:
        first_rows(database, check_select(database, sql), 10)


def _check_toml(example: Example) -> None:
    """Check a run's config, to which a block may leave what it is not about, or the sources of a training's."""
    values: dict[str, Any] = tomllib.loads(example.parsed)
    if "sources" in values:
        for source in values["sources"]:
            address.check(source["factory"].replace(":", "."))
        return
    parse_config(merge({"source": "photos", "output": "labels", "categories": ["forklift"]}, values))


def _check_service(example: Example) -> None:
    service = configparser.ConfigParser(strict=False)
    service.optionxform = str  # type: ignore[assignment, method-assign]
    service.read_string(example.parsed)
    shell.check_command(shlex.split(service["Service"]["ExecStart"]))


def _check_json(example: Example) -> None:
    json.loads(example.parsed)


def _check_csv(example: Example) -> None:
    rows = list(csv.reader(example.parsed.splitlines()))
    assert {len(row) for row in rows} == {len(rows[0])}


DATA = {
    "toml": _check_toml,
    "ini": _check_service,
    "csv": _check_csv,
    "json": _check_json,
    "text": lambda _example: None,
}
RUN = {"python": PythonEvaluator(), "bash": shell.run_block, "sql": _run_sql, **DATA}
CHECK = {"python": _import_names, "bash": shell.check_block, **DATA}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


@pytest.fixture
def folder(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own, with the output and the files that documents name, where their blocks run."""
    here = tmp_path / "here"
    shutil.copytree(samples, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    return here


@pytest.mark.parametrize("path", blocks.DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_block_of_a_document_runs(path: Path, folder: Path) -> None:
    failures = []
    for example in blocks.read(path, RUN, CHECK).examples():
        try:
            example.evaluate()
        except Exception as error:
            error.add_note(f"in the block at {path}:{example.line}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{path.name}: {len(failures)} blocks do not run", failures)


def test_a_mark_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("```bash needs=luck\nmake test\n```\n")
    with pytest.raises(ValueError, match="needs=luck"):
        blocks.read(document, RUN, CHECK)
    document.write_text("```\nmake test\n```\n")
    with pytest.raises(ValueError, match=r"page.md:1: no block of the language ''"):
        blocks.read(document, RUN, CHECK)


@pytest.mark.parametrize(
    "line",
    [
        "xsam-label runn -c label.toml",
        "xsam-label query OUTPUT --to",
        "xsam-label report OUTPUT --tp a.html",
        "python -m actors.scenes.evaluate --modell x",
        "python -m pytest tests/no_such_folder",
        "make tests",
        "ray job submit -- xsam-label run --config label.toml --replica 16",
    ],
)
def test_a_command_that_does_not_exist_is_an_error(line: str) -> None:
    (words,) = shell.commands_of(line)
    with pytest.raises(Exception, match=r".+"):
        shell.check_command(words)
