"""The rule that docs/query.md gives in SQL is the one that holds, and what its Python measures is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.labeled import box, mask, named, write_output

DOCUMENT = (Path(__file__).parents[3] / "docs" / "query.md").read_text()
CAT, DOG = named("ovseg", "cat", "dog")
SKY, SEA = named("ovseg_semantic", "sky", "sea")


def blocks(language: str, after: str, before: str = "\n## ") -> list[str]:
    section = DOCUMENT.split(f"\n## {after}", 1)[1].split(before, 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that share an image, and what a person said about it between them."""
    left, right = box(0, 0, 4, 4), box(1, 0, 4, 4)
    first = {"a": [mask(CAT, left, 0.9), mask(DOG, left), mask(SKY, left), mask(SEA, right)], "b": [], "c": None}
    write_output(tmp_path / "output", first, common=[CAT, DOG, SKY, SEA], run_id="run-1")
    corrected = {"a": [mask(CAT, left | right, 1.0)]}
    write_output(tmp_path / "output", corrected, common=[CAT], run_id="import-1", fingerprint={"import": {}})
    second = {"a": [mask(CAT, right, 0.8), mask(SKY, right)], "d": [mask(CAT, left)]}
    write_output(tmp_path / "output", second, common=[CAT, SKY], run_id="run-2")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "output"


def test_the_rule_in_sql_is_the_rule(output: Path) -> None:
    (sql,) = blocks("sql", "Without this package", "\n\n\n")
    with duckdb.connect() as plain:
        rows = plain.execute(sql.replace("OUTPUT", str(output))).fetchall()
    database = open_database(open_store(str(output)))
    current = database.sql("FROM annotations").fetchall()
    assert sorted(rows, key=str) == sorted(current, key=str)
    assert 0 < len(current) < len(database.sql("FROM all_annotations").fetchall())


def test_the_python_runs_and_measures(output: Path) -> None:
    names: dict[str, Any] = {}
    for code in (*blocks("python", "From Python"), *blocks("python", "Masks")):
        exec(code.replace("OUTPUT", str(output)), names)
    assert sorted(names["counts"]) == [("empty", 1), ("ok", 2), ("quarantined", 1)]
    assert names["frame"].height == 9
    assert np.array_equal(np.unique(names["pixels"]), [0, 1])
    assert sorted(names["best"].values()) == [pytest.approx(0.6), pytest.approx(0.6)]
