"""An output as an SQL database: DuckDB views over its committed files, for DuckDB, pyarrow and Polars.

Nothing is written. Whole committed shards only, whoever is writing at the moment. Which rows are current:
pipelines/query/current_rows.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from pipelines.layout import KINDS, SCHEMA_VERSION, Kind
from pipelines.planning.plan import plan_documents
from pipelines.query.current_rows import create_views, find_replaced
from pipelines.query.fence import fence, harden, sql_literal
from pipelines.query.files import RunFiles, find_files, make_readable, query_errors
from pipelines.query.select_text import read_statement
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS
from pipelines.types import Status

if TYPE_CHECKING:
    import polars

VIEWS = ("annotations", "images", "coverage", "runs", "all_annotations", "all_images")
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("sequence", pa.int32(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("retry_of", pa.string()),
        pa.field("planned_at", pa.string()),
        pa.field("source", pa.string()),
        pa.field("model", pa.string()),
        pa.field("prompts", pa.list_(pa.string())),
        pa.field("images", pa.int64(), nullable=False),
        pa.field("shards", pa.int64(), nullable=False),
        pa.field("committed_shards", pa.int64(), nullable=False),
        *(pa.field(f"images_{status.value}", pa.int64(), nullable=False) for status in Status),
        pa.field("annotations", pa.int64(), nullable=False),
    ]
)
_REQUESTS_AT_ONCE = 16
_RUNS_AT_ONCE = 4


def open_database(
    store: Store,
    *,
    own_files: Collection[str] = (),
    memory_limit: str | None = None,
    max_threads: int | None = None,
    folder: Path | None = None,
    is_fenced: bool = True,
) -> duckdb.DuckDBPyConnection:
    """Open an output for SQL.

    Views, all of whole committed shards:

    - ``annotations``: the current rows, of the columns of schema.ANNOTATIONS. Of a prompt that several runs have asked
      of an image, the last answer is current; a run that could not answer (quarantined) replaces no answer; of an
      image that has changed only what was asked since is current.
    - ``images``: one row for each image, of the columns of schema.IMAGES; ``per_prompt``, ``captions``,
      ``num_annotations`` and ``status`` of what is current, of all runs together. It is quarantined if anything that
      was asked of it is unanswered because it was quarantined.
    - ``coverage``: one row for each image and prompt: image_id, prompt_id, n, max_score, rejected, status, reason,
      image_version, run_id.
    - ``runs``: one row for each run, of the columns of RUNS; ``place`` is their order, from 1.
    - ``all_annotations``, ``all_images``: the rows of every run.

    The views show what was committed when it was opened. A table too large for memory goes through temporary files.

    DuckDB's own locks are on: statements open the output's files and those named here, no others; no setting can be
    changed, no extension loaded. Tables may be registered and created: they live in memory.

    Args:
        store: the output.
        own_files: further files of this machine that statements may read, e.g. ["meta.csv"], as they write them.
        memory_limit: how much memory DuckDB may take, e.g. "4GB"; four fifths of the machine's by default.
        max_threads: of DuckDB's; by default as many as there are cores, and more for a store of objects.
        folder: existing folder for temporary files, in which results may be written too. Without one nothing is
            written but temporary files, in a private folder that is removed when the process ends.
        is_fenced: whether the locks are on. Without them a statement may read and write all that the process may:
            for statements of your own alone.

    Raises:
        StorageError: it cannot be read.
        QueryError: there is no such file.
    """
    connection = _connect(store, memory_limit, max_threads, folder)
    plans = plan_documents(store)
    with ThreadPoolExecutor(_RUNS_AT_ONCE) as readers:
        found = readers.map(lambda run: find_files(store, run, plans[run].get("schema_version", 0)), plans)
        held = dict(zip(plans, found, strict=True))
    with query_errors(store):
        tables = _create_all(connection, store, plans, held)
    if is_fenced:
        fence(connection, [*tables.folders, *([] if folder is None else [str(folder)])], own_files)
    return connection


def _create_all(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    plans: Mapping[str, Mapping[str, Any]],
    held: Mapping[str, RunFiles],
) -> _Tables:
    tables = _Tables(connection, store, held)
    for kind in KINDS:
        tables.create_view(f"all_{kind}", kind, held)
    runs = [_run(place, plans[run_id], files) for place, (run_id, files) in enumerate(held.items(), start=1)]
    tables.create("runs", pa.Table.from_pylist(runs, schema=RUNS))
    shared = find_replaced(connection)
    for kind in KINDS:
        tables.create_view(f"internal.shared_{kind}", kind, shared)
        tables.create_view(f"internal.own_{kind}", kind, held.keys() - set(shared))
    create_views(connection)
    return tables


def rows_of(kind: Kind, run_id: str | None) -> str:
    """Return what a SELECT names after FROM to read the rows of one run, or without one those that are current."""
    return kind if run_id is None else f"(FROM all_{kind} WHERE run_id = {sql_literal(run_id)})"


def open_arrow(store: Store, query: str = "FROM annotations") -> pa.RecordBatchReader:
    """Open a view, or the result of any SELECT over the views of open_database, for pyarrow, batch by batch.

    Files of this machine that the SELECT names are read too.

    Raises:
        QueryError: it is not one SELECT statement that only reads, or names a file that is not there.
        StorageError: the output cannot be read.
    """
    return _answer(store, query).to_arrow_reader()


def open_polars(store: Store, query: str = "FROM annotations") -> polars.LazyFrame:
    """Open a view, or the result of any SELECT over the views of open_database, for Polars, which reads what it needs.

    As open_arrow.
    """
    frame: polars.LazyFrame = _answer(store, query).pl(lazy=True)
    return frame


def _answer(store: Store, query: str) -> duckdb.DuckDBPyRelation:
    statement = read_statement(query)
    return open_database(store, own_files=statement.own_files).sql(statement.sql)


def _connect(
    store: Store, memory_limit: str | None, max_threads: int | None, folder: Path | None
) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    harden(connection, None if folder is None else folder / "spill")
    connection.execute("SET enable_progress_bar = false; SET parquet_metadata_cache = true")
    if memory_limit is not None:
        connection.execute(f"SET memory_limit = {sql_literal(memory_limit)}")
    if max_threads is None:
        (threads,) = connection.execute("SELECT current_setting('threads')").fetchall()[0]
        max_threads = max(threads, 1 if store.is_local else _REQUESTS_AT_ONCE)
    connection.execute(f"SET threads = {max_threads}")
    return connection


class _Tables:
    """Views over data files, by run; ``folders`` are where they lie, as DuckDB names it."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        store: Store,
        held: Mapping[str, RunFiles],
    ) -> None:
        self._connection, self._held = connection, held
        files = (file for run in held.values() for kind in KINDS for one in run.files[kind].values() for file in one)
        self._paths, self.folders = make_readable(connection, store, files)
        connection.execute("CREATE SCHEMA internal")
        for kind in KINDS:
            self.create(f"internal.no_{kind}", SCHEMAS[kind].empty_table())

    def create(self, name: str, rows: pa.Table) -> None:
        """Create a table that holds rows."""
        self._connection.register("rows_to_keep", rows)
        self._connection.execute(f"CREATE TABLE {name} AS FROM rows_to_keep")
        self._connection.unregister("rows_to_keep")

    def create_view(self, name: str, kind: Kind, runs: Collection[str]) -> None:
        """Create the view of some runs' files; those of every schema version apart, for DuckDB takes one for all."""
        paths: dict[int, list[str]] = {}
        for run_id in (run_id for run_id in self._held if run_id in runs):
            for version, files in self._held[run_id].files[kind].items():
                paths.setdefault(version, []).extend(sql_literal(self._paths[file.name]) for file in files)
        parts = [f"SELECT * FROM internal.no_{kind}"]
        for version, found in paths.items():
            # Those of a run that an earlier version began and a later one ended may be of either: not all commits say.
            by_name = ", union_by_name = true" if version < SCHEMA_VERSION else ""
            if found:
                parts.append(f"SELECT * FROM read_parquet([{', '.join(found)}], hive_partitioning = false{by_name})")
        rows = " UNION ALL BY NAME ".join(parts)
        if kind == "images" and any(version < SCHEMA_VERSION for version in paths):
            rows = f"SELECT * REPLACE (coalesce(image_version, 1) AS image_version) FROM ({rows})"
        self._connection.execute(f"CREATE VIEW {name} AS {rows}")


def _run(place: int, plan: Mapping[str, Any], held: RunFiles) -> dict[str, Any]:
    """Return a run's row."""
    facts, fingerprint = plan.get("facts", {}), plan.get("fingerprint", {})
    retry = fingerprint.get("retry")
    return {
        "run_id": plan["run_id"],
        "sequence": plan.get("sequence", 0),
        "place": place,
        "retry_of": retry and retry["run_id"],
        "planned_at": facts.get("planned_at"),
        "source": fingerprint.get("source"),
        "model": fingerprint.get("model"),
        "prompts": [prompt["prompt_id"] for prompt in facts.get("prompts", ())],
        "images": plan["num_images"],
        "shards": plan["num_shards"],
        "committed_shards": held.committed_shards,
        **{f"images_{status.value}": held.status_counts.get(status.value, 0) for status in Status},
        "annotations": held.num_annotations,
    }
