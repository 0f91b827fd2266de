"""The rule of which rows of an output are current, in SQL. docs/query.md states it; only this module implements it.

Images labeled by a single run need no rule. For those labeled by several, the replaced rows are worked out once, when
the output is opened, so that queries only join with the few that there are.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from pipelines.table.schema import IMAGES
from pipelines.types import CATEGORY_TASKS, MAP_TASKS, REGION_TASKS, TASKS, WORD_TASKS, Status

# Rows of earlier versions do not say which tasks were answered. Ids of common prompts begin with the task. Prompts of
# single images may have any id: they count as asked for masks, unless they were answered in words alone.
_TASKS_OF = f"""
list_distinct(flatten(list_transform(list_filter(per_prompt, lambda e: e.n IS NOT NULL), lambda e: CASE
    WHEN split_part(e.prompt_id, ':', 1) IN {TASKS} THEN [split_part(e.prompt_id, ':', 1)]
    WHEN list_contains(list_transform(list_filter(captions, lambda c: c.task = 'chat'), lambda c: c.prompt_id),
        e.prompt_id) THEN ['chat']
    ELSE {[*REGION_TASKS, "refseg", "reaseg"]} END)))
"""


# The status of an image that is not quarantined, by the rule of Status.of_answer.
_ANSWERED = (
    f"CASE WHEN num_annotations > 0 OR coalesce(len(captions), 0) > 0 THEN '{Status.OK}' "
    f"WHEN len(list_filter(tasks, lambda task: task NOT IN {WORD_TASKS})) > 0 THEN '{Status.EMPTY}' "
    f"ELSE '{Status.NOT_ASKED}' END"
)
# All categories of a semantic or panoptic task compete for pixels, so they are replaced together: as one unit.
_TABLES = f"""
CREATE MACRO internal.unit(prompt_id) AS
CASE WHEN split_part(prompt_id, ':', 1) IN {MAP_TASKS} THEN split_part(prompt_id, ':', 1) ELSE prompt_id END;
CREATE TABLE internal.several (image_id VARCHAR, newest INTEGER);
CREATE TABLE internal.replaced (image_id VARCHAR, run_id VARCHAR, wholly BOOLEAN, units VARCHAR[])
"""
# Cheap first test: runs whose ranges of image ids do not overlap, as is common for different nights, share no image.
_OVERLAPPING = """
WITH ranges AS (SELECT run_id, min(image_id) AS low, max(image_id) AS high FROM all_images GROUP BY run_id)
SELECT DISTINCT a.run_id FROM ranges AS a JOIN ranges AS b
ON a.run_id <> b.run_id AND a.low <= b.high AND b.low <= a.high
"""
_SEVERAL = """
INSERT INTO internal.several
SELECT image_id, max(coalesce(image_version, 1)) FROM all_images WHERE run_id IN $runs
GROUP BY image_id HAVING count(*) > 1
"""
_SHARING = "SELECT DISTINCT run_id FROM all_images SEMI JOIN internal.several USING (image_id) WHERE run_id IN $runs"
# Most images of a run were asked the same and answered alike. So the rule is evaluated once for each distinct history
# (runs, prompts, answered or not), not for each image.
_ASKED = """
to_json(list_transform(per_prompt, lambda entry: entry.prompt_id || CASE WHEN entry.n IS NULL THEN '-' ELSE '+' END))
"""
_HISTORIES = f"""
CREATE TEMP TABLE asked AS
SELECT md5_number({_ASKED}) AS asked, any_value(per_prompt) AS per_prompt
FROM all_images SEMI JOIN internal.several USING (image_id) WHERE run_id IN $runs GROUP BY 1;
CREATE TEMP TABLE histories AS
SELECT image_id, list_sort(list({{
    place: place, is_live: coalesce(image_version, 1) = newest, asked: md5_number({_ASKED})
}})) AS history
FROM all_images JOIN internal.several USING (image_id) JOIN (SELECT run_id, place FROM runs) USING (run_id)
WHERE run_id IN $runs GROUP BY image_id
"""
_REPLACED = """
INSERT INTO internal.replaced
WITH kinds AS MATERIALIZED (
    SELECT history, row_number() OVER () AS kind FROM (SELECT DISTINCT history FROM histories)
), rows AS (
    SELECT kind, unnest(history, recursive := true) FROM kinds
), units AS (
    SELECT kind, place, internal.unit(entry.prompt_id) AS unit, bool_and(entry.n IS NOT NULL) AS is_answered
    FROM (SELECT kind, place, unnest(per_prompt) AS entry FROM rows JOIN asked USING (asked) WHERE is_live)
    GROUP BY ALL
), judged AS (
    SELECT kind, place, unit, row_number() OVER (
        PARTITION BY kind, unit
        ORDER BY is_answered DESC, (is_answered AND imported IS NOT NULL AND place > over_place) DESC, place DESC
    ) > 1 AS is_replaced
    FROM (
        SELECT *, coalesce(
            max(place) FILTER (is_answered AND over_corrections) OVER (PARTITION BY kind, unit), 0
        ) AS over_place
        FROM units JOIN (SELECT place, imported, over_corrections FROM runs) USING (place)
    )
), lost AS (
    SELECT kind, place, true AS wholly, NULL AS units FROM rows WHERE NOT is_live
    UNION ALL
    SELECT kind, place, bool_and(is_replaced), list(unit) FILTER (is_replaced) FROM judged
    GROUP BY kind, place HAVING bool_or(is_replaced)
)
SELECT image_id, run_id, wholly, units
FROM lost JOIN kinds USING (kind) JOIN histories USING (history) JOIN (SELECT run_id, place FROM runs) USING (place);
DROP TABLE asked;
DROP TABLE histories
"""
# The rows of `images` of runs that share images, without what later runs have replaced.
_KEPT = """
CREATE VIEW internal.kept AS
SELECT * EXCLUDE (lost) REPLACE (
    list_filter(per_prompt, lambda entry: NOT list_contains(lost, internal.unit(entry.prompt_id))) AS per_prompt,
    list_filter(captions, lambda said: NOT list_contains(lost, internal.unit(said.prompt_id))) AS captions,
    list_filter(corrections, lambda one: NOT list_contains(lost, internal.unit(one.prompt_id))) AS corrections
)
FROM (
    SELECT i.*, coalesce(units, []) AS lost
    FROM internal.shared_images AS i LEFT JOIN internal.replaced USING (image_id, run_id) WHERE wholly IS NOT TRUE
)
"""
_ANNOTATIONS = """
CREATE VIEW {annotations} AS
FROM internal.own_annotations
UNION ALL
SELECT a.* FROM internal.shared_annotations AS a LEFT JOIN internal.replaced AS r USING (image_id, run_id)
WHERE r.run_id IS NULL OR NOT (wholly OR list_contains(units, internal.unit(prompt_id)))
"""
# The same without prompts that the latest run's config does not ask any more.
_NOT_REMOVED = "prompt_id NOT IN (SELECT prompt_id FROM prompts WHERE NOT is_asked)"
_WITHOUT_REMOVED = f"""
CREATE VIEW annotations AS FROM internal.every_annotation WHERE {_NOT_REMOVED};
CREATE VIEW coverage AS FROM internal.every_coverage WHERE {_NOT_REMOVED};
CREATE VIEW internal.asked_images AS
SELECT * EXCLUDE (removed) REPLACE (
    list_filter(per_prompt, lambda entry: NOT list_contains(removed, entry.prompt_id)) AS per_prompt,
    list_filter(captions, lambda said: NOT list_contains(removed, said.prompt_id)) AS captions
)
FROM internal.every_image, (SELECT list(prompt_id) FILTER (NOT is_asked) AS removed FROM prompts);
CREATE VIEW internal.counted_images AS
SELECT * REPLACE (
    coalesce(list_sum(list_transform(per_prompt, lambda entry: entry.n)), 0)::INTEGER AS num_annotations,
    list_filter(tasks, lambda task: task NOT IN {CATEGORY_TASKS} OR list_contains(
        list_transform(per_prompt, lambda entry: split_part(entry.prompt_id, ':', 1)), task)) AS tasks
)
FROM internal.asked_images;
CREATE VIEW images AS
SELECT * REPLACE (
    CASE WHEN status = '{Status.QUARANTINED}' AND (
        len(list_filter(per_prompt, lambda entry: entry.n IS NULL AND entry.rejected IS NULL)) > 0
        OR len(list_filter(per_prompt, lambda entry: entry.n IS NOT NULL)) = 0
    ) THEN status ELSE {_ANSWERED} END AS status
)
FROM internal.counted_images
"""
_COVERAGE = """
CREATE VIEW {coverage} AS
SELECT image_id, entry.prompt_id, entry.n, entry.max_score, entry.rejected, status, reason,
    coalesce(image_version, 1) AS image_version, run_id
FROM (SELECT *, unnest(per_prompt) AS entry FROM (FROM internal.own_images UNION ALL FROM internal.kept))
"""
# An image with several current rows becomes one row. These columns combine all of them; ...
_OF_ALL = ("image_id", "status", "num_annotations", "per_prompt", "tasks", "captions", "corrections")
# ... these come from the row that failed, if a prompt is unanswered because of it; all others from the last good row.
_OF_FAILURE = ("reason", "stage", "error", "run_id", "shard_id", "attempt")
_MERGED = """
CREATE VIEW internal.merged AS
WITH judged AS (
    SELECT *, status = '{quarantined}' AS has_failed,
        has_failed AND len(list_filter(per_prompt, lambda entry: entry.rejected IS NULL)) > 0 AS is_open
    FROM internal.kept SEMI JOIN internal.several USING (image_id) JOIN (SELECT run_id, place FROM runs) USING (run_id)
), grouped AS (
    SELECT image_id,
        bool_or(is_open) OR bool_and(has_failed) AS is_quarantined,
        flatten(list(per_prompt ORDER BY place)) AS per_prompt,
        list_distinct(flatten(list(tasks ORDER BY place) FILTER (tasks IS NOT NULL))) AS tasks,
        flatten(list(captions ORDER BY place) FILTER (captions IS NOT NULL)) AS captions,
        flatten(list(corrections ORDER BY place) FILTER (corrections IS NOT NULL)) AS corrections,
        arg_max({last}, (NOT has_failed, place)) AS last,
        arg_max({failure}, (is_open, place)) FILTER (has_failed) AS failure
    FROM judged GROUP BY image_id
), counted AS (
    SELECT *, coalesce(list_sum(list_transform(per_prompt, lambda entry: entry.n)), 0)::INTEGER AS num_annotations,
        CASE WHEN is_quarantined THEN '{quarantined}' ELSE {answered} END AS status
    FROM grouped
)
SELECT {columns} FROM counted
"""
_IMAGES = """
CREATE VIEW {images} AS
SELECT *, {is_listed} AS is_listed FROM (
    FROM internal.own_images
    UNION ALL FROM (FROM internal.kept ANTI JOIN internal.several USING (image_id))
    UNION ALL FROM internal.merged
)
"""


def find_replaced(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Work out which rows have been replaced, and store that in tables of the schema ``internal``.

    Args:
        connection: has the views ``all_images`` and ``runs``.

    Returns:
        Ids of the runs that share images with other runs. All rows of the remaining runs are current.
    """
    connection.execute(_TABLES)
    runs = _column(connection.execute(_OVERLAPPING))
    if runs:
        connection.execute(_SEVERAL, {"runs": runs})
        runs = _column(connection.execute(_SHARING, {"runs": runs}))
    if runs:
        for statement in _HISTORIES.split(";"):
            connection.execute(statement, {"runs": runs})
        connection.execute(_REPLACED)
    return runs


def create_views(connection: duckdb.DuckDBPyConnection, *, drop_removed: bool) -> None:
    """Create the views of current rows.

    Args:
        connection: find_replaced has been called; the views ``internal.shared_images`` and
            ``internal.shared_annotations`` show the runs that it returned, ``internal.own_...`` the other runs, and
            ``prompts`` which prompts the latest run asks, ``internal.unlisted`` the ids that the last listing lacked.
        drop_removed: whether to leave out what only earlier runs asked of every image.
    """
    (removed,) = connection.execute("SELECT count(*) FROM prompts WHERE NOT is_asked").fetchall()[0]
    (unlisted,) = connection.execute("SELECT count(*) FROM internal.unlisted").fetchall()[0]
    drop_removed = drop_removed and removed > 0
    every = {"annotations": "internal.every_annotation", "coverage": "internal.every_coverage"}
    every |= {"images": "internal.every_image"}
    names = every if drop_removed else {name: name for name in every}
    words = {
        "quarantined": Status.QUARANTINED,
        "answered": _ANSWERED,
        "last": _struct(name for name in IMAGES.names if name not in _OF_ALL),
        "failure": _struct(_OF_FAILURE),
        "columns": ", ".join(_merged_column(name) for name in IMAGES.names),
        **names,
        "is_listed": "image_id NOT IN (SELECT image_id FROM internal.unlisted)" if unlisted else "true",
    }
    statements = [_KEPT, *(one.format_map(words) for one in (_ANNOTATIONS, _COVERAGE, _MERGED, _IMAGES))]
    for statement in [*statements, *(_WITHOUT_REMOVED.split(";") if drop_removed else ())]:
        connection.execute(statement)


def rows_of_earlier_versions(rows: str) -> str:
    """Return a SELECT of rows of ``images`` of any schema version, completed by what earlier versions left out."""
    known = f"SELECT * REPLACE (coalesce(image_version, 1) AS image_version, coalesce(tasks, {_TASKS_OF}) AS tasks)"
    judged = f"CASE WHEN status = '{Status.EMPTY}' THEN {_ANSWERED} ELSE status END"
    return f"SELECT * REPLACE ({judged} AS status) FROM ({known} FROM ({rows}))"


def _struct(names: Iterable[str]) -> str:
    return "{" + ", ".join(f"{name}: {name}" for name in names) + "}"


def _merged_column(name: str) -> str:
    if name in _OF_ALL:
        return name
    if name in _OF_FAILURE:
        return f"CASE WHEN is_quarantined THEN failure.{name} ELSE last.{name} END AS {name}"
    return f"last.{name}"


def _column(found: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in found.fetchall()]
