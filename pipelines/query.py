"""An output as an SQL database: DuckDB views over its committed files, and the rule by which rows are current.

Nothing is written. Whole committed shards only, whoever is writing at the moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.manifest import plan_documents
from pipelines.storage import Store, protocol_of
from pipelines.table import KINDS, SCHEMAS, Kind, ShardCommit, read_commits
from pipelines.types import MAP_TASKS, Status

VIEWS = ("annotations", "images", "coverage", "runs", "all_annotations", "all_images")
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("sequence", pa.int32(), nullable=False),
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

# Of semantic and panoptic tasks all categories are answered together, so they are replaced together.
_UNIT = f"""
CREATE MACRO prompt_unit(prompt_id) AS
CASE WHEN split_part(prompt_id, ':', 1) IN {MAP_TASKS} THEN split_part(prompt_id, ':', 1) ELSE prompt_id END
"""
_SUPERSEDED = """
CREATE TEMP TABLE superseded AS
WITH several AS (
    SELECT image_id, max(coalesce(image_version, 1)) AS newest FROM all_images GROUP BY image_id HAVING count(*) > 1
), asked AS (
    SELECT image_id, run_id, sequence, newest, coalesce(image_version, 1) AS version, unnest(per_prompt) AS entry
    FROM all_images JOIN several USING (image_id) JOIN runs USING (run_id)
), answers AS (
    SELECT image_id, run_id, prompt_unit(entry.prompt_id) AS unit,
        any_value(sequence) AS sequence, any_value(newest) AS newest, any_value(version) AS version,
        bool_and(entry.n IS NOT NULL) AS is_answered
    FROM asked GROUP BY ALL
)
SELECT image_id, run_id, unit FROM answers
QUALIFY version < newest
    OR row_number() OVER (PARTITION BY image_id, unit ORDER BY version DESC, is_answered DESC, sequence DESC) > 1
"""
_ANNOTATIONS = """
CREATE VIEW annotations AS
SELECT a.* FROM all_annotations AS a ANTI JOIN superseded AS s
ON a.image_id = s.image_id AND a.run_id = s.run_id AND prompt_unit(a.prompt_id) = s.unit
"""
_COVERAGE = """
CREATE VIEW coverage AS
SELECT c.* FROM (
    SELECT image_id, entry.prompt_id, entry.n, entry.max_score, entry.rejected, status, reason,
        coalesce(image_version, 1) AS image_version, run_id
    FROM (SELECT *, unnest(per_prompt) AS entry FROM all_images)
) AS c ANTI JOIN superseded AS s
ON c.image_id = s.image_id AND c.run_id = s.run_id AND prompt_unit(c.prompt_id) = s.unit
"""
_IMAGES = """
CREATE VIEW images AS
SELECT i.* FROM all_images AS i JOIN runs USING (run_id)
QUALIFY row_number() OVER (
    PARTITION BY image_id ORDER BY coalesce(image_version, 1) DESC, status = 'quarantined', sequence DESC
) = 1
"""


def open_database(store: Store) -> duckdb.DuckDBPyConnection:
    """Open an output for SQL.

    Views, all of whole committed shards:

    - ``annotations``: the current rows, of the columns of schema.ANNOTATIONS. Of a prompt that several runs have asked
      of an image, the last answer is current; a run that could not answer (quarantined) replaces no answer; of an
      image that has changed only what was asked since is current.
    - ``images``: one row for each image, of the columns of schema.IMAGES.
    - ``coverage``: one row for each image and prompt: image_id, prompt_id, n, max_score, rejected, status, reason,
      image_version, run_id.
    - ``runs``: one row for each run, of the columns of RUNS.
    - ``all_annotations``, ``all_images``: the rows of every run.

    Args:
        store: the output.

    Raises:
        StorageError: it cannot be read.
    """
    connection = duckdb.connect()
    connection.execute("SET enable_progress_bar = false")
    plans = plan_documents(store)
    commits = {run_id: list(read_commits(store, run_id)) for run_id in plans}
    if not store.is_local:
        connection.register_filesystem(store.fs)
    for kind in KINDS:
        _create_table_view(connection, store, kind, plans, commits)
    connection.register("runs", pa.Table.from_pylist([_run(p, commits[r]) for r, p in plans.items()], schema=RUNS))
    for statement in (_UNIT, _SUPERSEDED, _ANNOTATIONS, _COVERAGE, _IMAGES):
        connection.execute(statement)
    return connection


def _create_table_view(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    kind: Kind,
    plans: Mapping[str, Mapping[str, Any]],
    commits: Mapping[str, Iterable[ShardCommit]],
) -> None:
    """Create the view of a table's files; those of every schema version apart, for DuckDB takes one schema for all."""
    names: dict[int, list[str]] = {}
    for run_id, held in commits.items():
        version = plans[run_id].get("schema_version", 0)
        files = (commit.annotations if kind == "annotations" else commit.images for commit in held)
        names.setdefault(version, []).extend(file.name for file in files if file.rows)
    connection.register(f"no_{kind}", SCHEMAS[kind].empty_table())
    parts = [f"SELECT * FROM no_{kind}"]
    parts += [f"SELECT * FROM read_parquet({_literal(store, found)})" for found in names.values() if found]
    connection.execute(f"CREATE VIEW all_{kind} AS {' UNION ALL BY NAME '.join(parts)}")


def _literal(store: Store, names: Iterable[str]) -> str:
    """Return files as an SQL list of the paths by which DuckDB opens them."""
    prefix = "" if store.is_local else f"{protocol_of(store.uri)}://"
    paths = [prefix + store.path(name) for name in names]
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"


def _run(plan: Mapping[str, Any], commits: Iterable[ShardCommit]) -> dict[str, Any]:
    """Return a run's row."""
    commits = list(commits)
    counts = Counter[str]()
    for commit in commits:
        counts.update(commit.status_counts)
    facts, fingerprint = plan.get("facts", {}), plan.get("fingerprint", {})
    retry = fingerprint.get("retry")
    return {
        "run_id": plan["run_id"],
        "sequence": plan.get("sequence", 0),
        "retry_of": retry and retry["run_id"],
        "planned_at": facts.get("planned_at"),
        "source": fingerprint.get("source"),
        "model": fingerprint.get("model"),
        "prompts": [prompt["prompt_id"] for prompt in facts.get("prompts", ())],
        "images": plan["num_images"],
        "shards": plan["num_shards"],
        "committed_shards": len(commits),
        **{f"images_{status.value}": counts[status.value] for status in Status},
        "annotations": sum(commit.annotations.rows for commit in commits),
    }
