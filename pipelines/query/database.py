"""Open an output as an SQL database: DuckDB views over its committed files, for DuckDB, pyarrow and Polars.

Nothing is written to the output. Only whole committed shards are visible, no matter who is writing at the moment. Which
rows are current is defined in pipelines/query/current_rows.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from pipelines.layout import KINDS, SCHEMA_VERSION, Kind
from pipelines.planning.draft import UNLISTED
from pipelines.planning.fingerprint import IMPORT, lists_source, relabeled
from pipelines.planning.plan import plan_documents, read_plan
from pipelines.query.conflicts import create_conflicts
from pipelines.query.current_rows import create_views, find_replaced, rows_of_earlier_versions
from pipelines.query.fence import fence, harden, sql_literal
from pipelines.query.files import RunFiles, find_files, make_readable, query_errors
from pipelines.query.select_text import read_statement
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS
from pipelines.types import Status

if TYPE_CHECKING:
    import polars

VIEWS = (
    *("annotations", "images", "coverage", "runs", "prompts", "corrections", "conflicts"),
    *("all_annotations", "all_images"),
)
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("sequence", pa.int32(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("retry_of", pa.string()),
        pa.field("relabeled", pa.string()),
        pa.field("imported", pa.string()),
        pa.field("over_corrections", pa.bool_(), nullable=False),
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
PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("first_run", pa.string(), nullable=False),
        pa.field("last_run", pa.string(), nullable=False),
        pa.field("is_asked", pa.bool_(), nullable=False),
    ]
)
_CORRECTIONS = """
CREATE VIEW corrections AS
SELECT image_id, unnest(corrections, recursive := true), run_id FROM all_images WHERE corrections IS NOT NULL
"""
# DuckDB's threads wait for an object store most of the time, so there may be more of them than cores.
_REQUESTS_AT_ONCE = 16
# Few: each of them reads its run's commits in many threads already.
_RUNS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was committed in an output at one moment.

    Attributes:
        plans: of its runs, as plan_documents returns them.
        files: of each run, in the same order.
    """

    plans: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, RunFiles]


def take_snapshot(
    store: Store, *, image_ids: Collection[str] | None = None, without_run: str | None = None
) -> Snapshot:
    """Find all that is committed now; arguments and errors are those of ``open_database``."""
    plans = {run_id: plan for run_id, plan in plan_documents(store).items() if run_id != without_run}
    with ThreadPoolExecutor(_RUNS_AT_ONCE) as readers:
        found = readers.map(lambda run: find_files(store, plans[run], image_ids), plans)
        return Snapshot(plans, dict(zip(plans, found, strict=True)))


def open_database(  # noqa: PLR0913  (each is a choice of its own)
    store: Store,
    *,
    image_ids: Collection[str] | None = None,
    own_files: Collection[str] = (),
    memory_limit: str | None = None,
    max_threads: int | None = None,
    folder: Path | None = None,
    is_saved: bool = False,
    is_fenced: bool = True,
    drop_removed: bool = False,
    without_run: str | None = None,
    snapshot: Snapshot | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open an output for SQL.

    These views show whole committed shards:

    - ``annotations``: the current rows, with the columns of schema.ANNOTATIONS. If several runs asked an image the same
      prompt, the last answer is current; a run that could not answer (quarantined) replaces no answer; for an image
      that has changed, only what was asked since then is current. What a person has answered by an import, only another
      import replaces, or a run that was asked to.
    - ``images``: one row for each image, with the columns of schema.IMAGES; ``per_prompt``, ``captions``,
      ``num_annotations`` and ``status`` combine what is current of all runs, and ``is_listed`` tells whether the last
      incremental run that noted it found the image in its listing. An image is quarantined if any prompt is
      unanswered because a run quarantined it.
    - ``coverage``: one row for each image and prompt: image_id, prompt_id, n, max_score, rejected, status, reason,
      image_version, run_id.
    - ``runs``: one row for each run, with the columns of RUNS; ``place`` is their order, from 1.
    - ``corrections``: one row for each thing that a person has done to a mask, of all imports: image_id, the fields of
      types.Correction, run_id.
    - ``conflicts``: one row for each current mask that has the same place as one of another name and the same task; see
      conflicts.create_conflicts.
    - ``prompts``: one row for each prompt that a run asks of every image, with the columns of PROMPTS; ``is_asked``
      tells whether the latest run does, retries not counted.
    - ``all_annotations``, ``all_images``: the rows of every run; only in ``all_images`` there are those that stand for
      forgotten images, with the status ``forgotten``.

    The views show what was committed when the output was opened. Tables too large for memory spill to temporary files.

    DuckDB's own locks are on: statements can open the output's files and those given here, but no others; no setting
    can be changed and no extension loaded. Tables may be registered and created; they live in memory.

    Args:
        store: the output.
        image_ids: the only images that the views show; just the files that hold them are opened, which the plans tell,
            so that it takes as long for few images of many as of few. Then ``runs`` counts what these images' shards
            hold. By default all.
        own_files: further local files that statements may read, e.g. ["meta.csv"], spelled as the statements do.
        memory_limit: limit on DuckDB's memory, e.g. "4GB"; by default four fifths of the machine's.
        max_threads: number of DuckDB's threads; by default the number of cores, or more for an object store.
        folder: existing folder for temporary files, in which statements may write results, too. Without it only
            temporary files are written, to a private folder that is removed when the process ends.
        is_saved: whether results are written to Parquet. DuckDB would state for each column whether these rows have a
            null, so that two results of one query could not be read together; then all columns may.
        is_fenced: whether the locks are on. Without them a statement may read and write whatever the process may: only
            for trusted statements.
        drop_removed: whether ``annotations``, ``coverage`` and ``images`` are without the prompts that the latest run
            does not ask. Prompts of single images stay.
        without_run: a run of which nothing is shown, nor read.
        snapshot: what the views show, as take_snapshot found it with the same arguments; by default what is committed
            now.

    Raises:
        StorageError: the output cannot be read.
        DamagedError: a commit, or with ``image_ids`` a file of a plan, is damaged.
        QueryError: one of ``own_files`` does not exist.
    """
    connection = _connect(store, memory_limit, max_threads, folder)
    if is_saved:
        connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    if snapshot is None:
        snapshot = take_snapshot(store, image_ids=image_ids, without_run=without_run)
    with query_errors(store):
        tables = _create_all(connection, store, snapshot.plans, snapshot.files, drop_removed, image_ids)
    # Last: from here on no setting can be changed and no other file opened.
    if is_fenced:
        fence(connection, [*tables.folders, *([] if folder is None else [str(folder)])], own_files)
    return connection


def _create_all(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    plans: Mapping[str, Mapping[str, Any]],
    held: Mapping[str, RunFiles],
    drop_removed: bool,
    image_ids: Collection[str] | None,
) -> _Tables:
    tables = _Tables(connection, store, held, image_ids)
    for kind in KINDS:
        tables.create_view(f"all_{kind}", kind, held)
    runs = [_run(place, plans[run_id], files) for place, (run_id, files) in enumerate(held.items(), start=1)]
    tables.create("runs", pa.Table.from_pylist(runs, schema=RUNS))
    tables.create("prompts", pa.Table.from_pylist(_prompts(plans), schema=PROMPTS))
    tables.create("internal.unlisted", _unlisted(store, plans))
    connection.execute(_CORRECTIONS)
    shared = find_replaced(connection)
    for kind in KINDS:
        tables.create_view(f"internal.shared_{kind}", kind, shared, with_forgotten=False)
        tables.create_view(f"internal.own_{kind}", kind, held.keys() - set(shared), with_forgotten=False)
    create_views(connection, drop_removed=drop_removed)
    create_conflicts(connection)
    return tables


def rows_of(kind: Kind, run_id: str | None) -> str:
    """Return the SQL to put after FROM for the rows of one run, or for the current rows if ``run_id`` is None."""
    if run_id is None:
        return kind
    is_there = f" AND status <> '{Status.FORGOTTEN}'" if kind == "images" else ""
    return f"(FROM all_{kind} WHERE run_id = {sql_literal(run_id)}{is_there})"


def count_forgotten(database: duckdb.DuckDBPyConnection, run_id: str | None = None) -> int:
    """Return how many images of a run were forgotten, or of all runs if ``run_id`` is None."""
    # Each run that had an image has a row of the same id for it.
    query = f"SELECT count(DISTINCT image_id) FROM all_images WHERE status = '{Status.FORGOTTEN}'"
    of_run = "" if run_id is None else f" AND run_id = {sql_literal(run_id)}"
    (count,) = database.execute(query + of_run).fetchall()[0]
    return int(count)


def open_arrow(store: Store, query: str = "FROM annotations") -> pa.RecordBatchReader:
    """Return the result of a SELECT over the views of open_database, as a pyarrow reader of record batches.

    The SELECT may also read local files that it names.

    Raises:
        QueryError: the query is not a single SELECT that only reads, or names a file that does not exist.
        StorageError: the output cannot be read.
    """
    return _answer(store, query).to_arrow_reader()


def open_polars(store: Store, query: str = "FROM annotations") -> polars.LazyFrame:
    """Return the result of a SELECT over the views of open_database as a Polars LazyFrame; otherwise as open_arrow."""
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
    """Creates views over the data files of runs; ``folders`` are the files' folders as DuckDB names them."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        store: Store,
        held: Mapping[str, RunFiles],
        image_ids: Collection[str] | None,
    ) -> None:
        self._connection, self._held = connection, held
        # Literals, not a table: with them whole row groups are passed over.
        chosen = ", ".join(map(sql_literal, image_ids or ()))
        self._chosen = "" if image_ids is None else f"image_id IN ({chosen})" if chosen else "false"
        files = (file for run in held.values() for kind in KINDS for one in run.files[kind].values() for file in one)
        self._paths, self.folders = make_readable(connection, store, files)
        connection.execute("CREATE SCHEMA internal")
        for kind in KINDS:
            self.create(f"internal.no_{kind}", SCHEMAS[kind].empty_table())

    def create(self, name: str, rows: pa.Table) -> None:
        """Create a table with the given rows."""
        self._connection.register("rows_to_keep", rows)
        self._connection.execute(f"CREATE TABLE {name} AS FROM rows_to_keep")
        self._connection.unregister("rows_to_keep")

    def create_view(self, name: str, kind: Kind, runs: Collection[str], *, with_forgotten: bool = True) -> None:
        """Create a view of some runs' files, with or without the rows that stand for forgotten images.

        Files of different schema versions are read by separate calls, because read_parquet applies the first file's
        schema to all of them.
        """
        paths: dict[int, list[str]] = {}
        for run_id in (run_id for run_id in self._held if run_id in runs):
            for version, files in self._held[run_id].files[kind].items():
                paths.setdefault(version, []).extend(sql_literal(self._paths[file.name]) for file in files)
        # The empty table comes first: it gives the view its columns even where no run has a file.
        parts = [f"SELECT * FROM internal.no_{kind}"]
        for version, found in paths.items():
            # A run begun by an earlier version and finished by a later one may hold both; its commits need not say.
            by_name = ", union_by_name = true" if version < SCHEMA_VERSION else ""
            if found:
                parts.append(f"SELECT * FROM read_parquet([{', '.join(found)}], hive_partitioning = false{by_name})")
        rows = " UNION ALL BY NAME ".join(parts)
        if self._chosen:
            rows = f"SELECT * FROM ({rows}) WHERE {self._chosen}"
        if kind == "images" and any(version < SCHEMA_VERSION for version in paths):
            rows = rows_of_earlier_versions(rows)
        counts = [self._held[run_id].status_counts for run_id in runs if run_id in self._held]
        if kind == "images" and not with_forgotten and any(one.get(Status.FORGOTTEN) for one in counts):
            rows = f"SELECT * FROM ({rows}) WHERE status <> '{Status.FORGOTTEN}'"
        self._connection.execute(f"CREATE VIEW {name} AS {rows}")


def _prompts(plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the view ``prompts``; what asks no listing (retries, imports) tells not what is asked now."""
    found: dict[str, dict[str, Any]] = {}
    latest = None
    for run_id, plan in plans.items():
        if not lists_source(plan.get("fingerprint", {})):
            continue
        latest = run_id
        for prompt in plan.get("facts", {}).get("prompts", ()):
            told = {"task": prompt["task"], "text": prompt["text"], "last_run": run_id}
            found.setdefault(prompt["prompt_id"], {**prompt, "first_run": run_id}).update(told)
    return [{**prompt, "is_asked": prompt["last_run"] == latest} for prompt in found.values()]


def _unlisted(store: Store, plans: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return the ids of images that the last incremental run which noted it did not find in its listing."""
    noted = next((run_id for run_id in reversed(list(plans)) if "unlisted" in plans[run_id]), None)
    plan = None if noted is None else read_plan(store, noted)
    return UNLISTED.empty_table() if plan is None else plan.unlisted_ids(store)


def _run(place: int, plan: Mapping[str, Any], held: RunFiles) -> dict[str, Any]:
    """Return a run's row of the view ``runs``."""
    facts, fingerprint = plan.get("facts", {}), plan.get("fingerprint", {})
    retry, imported = fingerprint.get("retry"), fingerprint.get(IMPORT)
    return {
        "run_id": plan["run_id"],
        "sequence": plan.get("sequence", 0),
        "place": place,
        "retry_of": retry and retry["run_id"],
        "relabeled": relabeled(plan),
        "imported": None if imported is None else str(facts.get("imported", {}).get("file", "")),
        "over_corrections": bool(fingerprint.get("over_corrections")),
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
