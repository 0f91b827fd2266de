"""What a statement may touch: DuckDB's own locks are on wherever an output is opened for SQL."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from pipelines.errors import QueryError
from pipelines.query.database import VIEWS, open_arrow, open_database, open_polars
from pipelines.storage.store import Store, open_store
from tests.support.labeled import RUN, box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")
FOUND = {"a": [mask(CAT, box(0, 0, 2, 2), 0.9), mask(DOG, box(1, 1, 2, 2), 0.4)], "b": []}
WRITING = (
    "COPY runs TO '{folder}/target.csv'",
    "COPY runs TO '{folder}/target.csv' (USE_TMP_FILE false)",
    "EXPORT DATABASE '{folder}/target.csv'",
    "ATTACH '{folder}/target.csv' AS other",
    "FROM enable_logging(storage := 'file', storage_path := '{folder}/target.csv')",
    "FROM enable_profiling(save_location := '{folder}/target.csv')",
)
UNLOCKING = (
    "SET enable_external_access = true",
    "SET allowed_directories = ['{folder}']",
    "SET temp_directory = '{folder}/target.csv'",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "INSTALL httpfs",
    "LOAD httpfs",
)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = tmp_path / "output" if request.param == "folder" else f"memory://fence-{tmp_path.name}"
    return write_output(uri, FOUND, common=[CAT, DOG])[0]


@pytest.mark.parametrize("sql", [*WRITING, *UNLOCKING])
def test_a_statement_writes_and_unlocks_nothing(store: Store, tmp_path: Path, sql: str) -> None:
    with open_database(store) as database:
        with pytest.raises(duckdb.Error, match=r"(?i)disabled|locked"):
            database.execute(sql.replace("{folder}", str(tmp_path)))
        full = [view for view in VIEWS if view not in ("conflicts", "corrections")]
        assert all(database.sql(f"FROM {view}").fetchall() for view in full)
    assert not (tmp_path / "target.csv").exists()


def test_a_statement_reads_the_files_that_were_named_and_no_others(store: Store, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        (tmp_path / f"{name}.csv").write_text("image_id,site\na,harbour\n")
    with open_database(store, own_files=[str(tmp_path / "mine.csv")]) as database:
        joined = f"SELECT DISTINCT site FROM annotations JOIN '{tmp_path}/mine.csv' USING (image_id)"
        assert database.sql(joined).fetchall() == [("harbour",)]
        for refused in ("other.csv", "*.csv", "output/_runs/run-1/plan.json"):
            with pytest.raises(duckdb.PermissionException, match="disabled by configuration"):
                database.sql(f"FROM '{tmp_path}/{refused}'").fetchall()
    with pytest.raises(QueryError, match="No files found"):
        open_database(store, own_files=["missing.csv"])


def test_files_of_a_store_are_opened_for_reading_alone(tmp_path: Path) -> None:
    store, _ = write_output(f"memory://fence-{tmp_path.name}", FOUND, common=[CAT, DOG])
    before = store.find("")
    with open_database(store) as database:
        ((folders,),) = database.sql("SELECT current_setting('allowed_directories')").fetchall()
        (protocol,) = [folder for folder in folders if folder.startswith("xsam")]
        with pytest.raises((duckdb.Error, PermissionError), match="read, never written"):
            database.execute(f"COPY runs TO '{protocol}annotations/target.csv' (USE_TMP_FILE false)")
    assert store.find("") == before


def test_tables_are_registered_and_made_behind_the_fence(store: Store) -> None:
    with open_database(store) as database:
        database.register("wanted", open_arrow(store, "SELECT 'a' AS image_id").read_all())
        database.execute("CREATE TEMP TABLE kept AS FROM annotations SEMI JOIN wanted USING (image_id)")
        assert database.sql("SELECT count(*) FROM kept").fetchall() == [(2,)]


def test_arrow_and_polars_take_a_select_alone_and_the_files_that_it_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("image_id,site\na,harbour\n")
    joined = f"SELECT DISTINCT site FROM annotations JOIN '{tmp_path}/meta.csv' USING (image_id);"
    assert open_arrow(store, joined).read_all().to_pylist() == [{"site": "harbour"}]
    assert open_polars(store, joined).collect().rows() == [("harbour",)]
    for open_result in (open_arrow, open_polars):
        with pytest.raises(QueryError, match="one SELECT statement"):
            open_result(store, f"COPY runs TO '{tmp_path}/target.csv'")
    assert not (tmp_path / "target.csv").exists()


def test_who_asks_for_it_has_no_fence(store: Store, tmp_path: Path) -> None:
    with open_database(store, is_fenced=False) as database:
        database.execute(f"COPY (SELECT run_id FROM runs) TO '{tmp_path}/runs.csv'")
    assert (tmp_path / "runs.csv").read_text().splitlines() == ["run_id", RUN]


_SPILLS = """
import os, sys, tempfile
from pathlib import Path
from pipelines.query import open_database
from pipelines.storage import open_store
os.umask(0)
database = open_database(open_store(sys.argv[1]), memory_limit="60MB", max_threads=1)
database.execute("CREATE TEMP TABLE big AS SELECT range, repeat('x', 200) || range FROM range(400000)")
(folder,) = Path(tempfile.gettempdir()).iterdir()
print(oct(folder.stat().st_mode & 0o777), folder.name, sum(len(files) for _, _, files in os.walk(folder)))
"""


@pytest.mark.slow
def test_what_outgrows_the_memory_goes_to_a_private_folder_that_is_removed(tmp_path: Path) -> None:
    write_output(tmp_path / "output", FOUND, common=[CAT, DOG])
    spill = tmp_path / "spill"
    spill.mkdir()
    names = set()
    for _ in range(2):
        command = [sys.executable, "-c", _SPILLS, str(tmp_path / "output")]
        environment = {**os.environ, "TMPDIR": str(spill)}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
        assert ended.returncode == 0, ended.stderr[-2000:]
        mode, name, files = ended.stdout.split()
        assert (mode, int(files) > 0, list(spill.iterdir())) == ("0o700", True, [])
        names.add(name)
    assert len(names) == 2


def test_a_folder_given_for_results_is_written_and_spilled_to_in_private(tmp_path: Path) -> None:
    write_output(tmp_path / "output", FOUND, common=[CAT, DOG])
    folder = tmp_path / "place"
    folder.mkdir()
    with open_database(open_store(str(tmp_path / "output")), folder=folder) as database:
        database.execute(f"COPY (SELECT run_id FROM runs) TO '{folder}/runs.csv'")
        with pytest.raises(duckdb.PermissionException):
            database.execute(f"COPY (SELECT run_id FROM runs) TO '{tmp_path}/runs.csv'")
        assert stat.S_IMODE((folder / "spill").stat().st_mode) == 0o700
    assert (folder / "runs.csv").exists()
