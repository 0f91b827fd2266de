"""Select the images and masks to export by the user's conditions, and stream them in the order of image_id.

Only counts and category names are held in Python; DuckDB holds the chosen images, and spills beyond its memory limit.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from pipelines.errors import SourceError, StorageError, some_of
from pipelines.export.choice import Choice, ExportCategory, ExportImage, ExportMask
from pipelines.export.splits import NUMBER
from pipelines.layout import data_name
from pipelines.planning.plan import plan_documents
from pipelines.query.database import count_forgotten, open_database
from pipelines.query.fence import sql_literal
from pipelines.query.row_agreement import check_agreement
from pipelines.query.select_text import read_condition
from pipelines.query.user_select import MASK_COLUMNS, condition_errors
from pipelines.storage.store import Store
from pipelines.types import CATEGORY_TASKS, MAP_TASKS, WORD_TASKS, Rle

_BATCH_ROWS = 4096
_MEMORY_LIMIT, _MAX_THREADS = "1GB", 4  # each of DuckDB's threads needs about 125 MB
# In the statements below a condition is followed by a line break: it may end in a comment.

_IMAGES = f"""
CREATE TEMP TABLE export_images AS
SELECT image_id, uri, {{url}} AS url, width, height, num_bytes, source_columns, tasks, {{split}} AS split,
    number + row_number() OVER (PARTITION BY number ORDER BY image_id) - 1 AS number
FROM (
    SELECT *, {NUMBER} AS number
    FROM images WHERE status <> 'quarantined' AND width IS NOT NULL AND ({{where}}
    )
)
"""
_MASKS = f"""
CREATE TEMP VIEW possible_masks AS
SELECT a.*, {MASK_COLUMNS}, i.number, i.split
FROM annotations AS a JOIN export_images AS i USING (image_id)
WHERE a.task IN ({{tasks}})
"""
_CHOSEN = """
CREATE TEMP VIEW chosen_masks AS
SELECT * FROM possible_masks WHERE ({where}
) AND {of_categories}
"""
_CATEGORIES = """
CREATE TEMP TABLE export_categories AS
SELECT category_name, coalesce(bool_or(is_thing), false) AS is_thing, {order} AS position, count(*) AS masks
FROM chosen_masks GROUP BY category_name
"""
_COUNTS = """
CREATE TEMP TABLE export_counts AS SELECT image_id, count(*) AS masks FROM chosen_masks GROUP BY image_id
"""
# Of an image that no exported prompt was asked of, nothing is known: without masks it is no negative.
_UNASKED = """
DELETE FROM export_images WHERE image_id NOT IN (SELECT image_id FROM export_counts)
AND NOT list_has_any(tasks, [{tasks}]::VARCHAR[])
"""
_ANSWERED = """
CREATE TEMP TABLE wanted_prompts AS SELECT DISTINCT prompt_id FROM chosen_masks WHERE task IN ({tasks});
CREATE TEMP TABLE export_answered AS
SELECT image_id, count(DISTINCT prompt_id) AS num_answered FROM coverage SEMI JOIN wanted_prompts USING (prompt_id)
WHERE n IS NOT NULL GROUP BY image_id
"""
_UNASKED_CATEGORIES = """
DELETE FROM export_images WHERE image_id NOT IN (SELECT image_id FROM export_counts)
AND image_id NOT IN (SELECT image_id FROM export_answered) AND NOT list_has_any(tasks, [{tasks}]::VARCHAR[])
"""
_PARTLY_ASKED = """
SELECT count(*) FROM export_images LEFT JOIN export_answered USING (image_id)
WHERE coalesce(num_answered, 0) < (SELECT count(*) FROM wanted_prompts)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected images and masks.

    Attributes:
        database: contains the tables export_images and export_categories and the view chosen_masks.
        choice: the user's choice.
        tasks: tasks whose masks are selected.
        categories: all categories, by position.
        num_images, num_masks: counts by split.
        num_quarantined: images left out because they could not be labeled.
        num_forgotten: images left out because they were forgotten.
        num_unasked: images left out because none of the exported tasks and categories was asked of them.
        num_partly_asked: images that were never asked about some of the categories, so nothing is known about those.
        left_out: number of masks of other tasks, by task.
        models: the model of each run, in words.
        withheld: split and number of masks of each image that a format's writer could not write after all.
    """

    database: duckdb.DuckDBPyConnection
    choice: Choice
    tasks: tuple[str, ...]
    categories: tuple[ExportCategory, ...]
    num_images: Mapping[str, int]
    num_masks: Mapping[str, int]
    num_quarantined: int
    num_forgotten: int
    num_unasked: int
    num_partly_asked: int
    left_out: Mapping[str, int]
    models: Mapping[str, str]
    withheld: list[tuple[str, int]] = field(default_factory=list)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; one empty name if there are none."""
        return self.choice.splits.names

    def images(self, split: str) -> Iterator[ExportImage]:
        """Yield the images of a split with their masks, in the order of image_id."""
        # LEFT JOIN keeps images without masks; ordering by id last makes an export reproducible.
        rows = self.rows(
            """
            SELECT i.image_id, i.number, i.uri, i.url, i.width, i.height, m.annotation_id, m.task, m.score, m.is_thing,
                m.category_name, c.position, m.bbox_x, m.bbox_y, m.bbox_w, m.bbox_h, m.segmentation, m.run_id,
                m.shard_id, m.attempt
            FROM export_images AS i
            LEFT JOIN chosen_masks AS m ON i.image_id = m.image_id
            LEFT JOIN export_categories AS c ON m.category_name = c.category_name
            WHERE i.split = $split ORDER BY i.image_id, m.score DESC, m.annotation_id
            """,
            split,
        )
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            first, *others = group
            image_id, number, uri, url, width, height, annotation_id, *_ = first
            masks = () if annotation_id is None else tuple(_mask(row) for row in (first, *others))
            yield ExportImage(
                image_id=image_id, number=number, uri=uri, url=url, width=width, height=height, masks=masks
            )

    def rows(self, query: str, split: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query with the parameter ``$split``, a batch in memory at a time.

        Raises:
            duckdb.Error: the table's files cannot be read; see query.files.query_errors.
        """
        result = self.database.execute(query, {"split": split})
        while batch := result.fetchmany(_BATCH_ROWS):
            yield from batch


def _mask(row: Sequence[Any]) -> ExportMask:
    annotation_id, task, score, is_thing, name, position, *box, segmentation, run_id, shard_id, attempt = row[6:]
    return ExportMask(
        annotation_id=annotation_id,
        category=position,
        category_name=name,
        task=task,
        score=score,
        is_thing=is_thing,
        bbox_xywh=(box[0], box[1], box[2], box[3]),
        segmentation=Rle.from_coco(segmentation),
        run_id=run_id,
        file=data_name("annotations", run_id, shard_id, attempt),
    )


def open_selection(store: Store, choice: Choice, *, of_maps: bool, folder: Path) -> Selection:
    """Select what is to be exported.

    Args:
        store: the output.
        choice: the user's choice.
        of_maps: whether the format shows maps: it then takes the panoptic task by default, else all tasks whose masks
            are found one by one.
        folder: existing folder for data that does not fit into memory.

    Raises:
        SourceError: a condition is invalid, the output has no labeled image, or no mask fits.
        StorageError: the output cannot be read.
        duckdb.Error: its rows cannot be read; see query.files.query_errors.
    """
    conditions = {"--where": choice.where, "--images-where": choice.images_where}
    own_files = [name for option, text in conditions.items() if text for name in read_condition(option, text)]
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    database = open_database(
        store,
        image_ids=choice.image_ids,
        own_files=own_files,
        memory_limit=_MEMORY_LIMIT,
        max_threads=threads,
        folder=folder,
        drop_removed=choice.drop_removed,
    )
    try:
        return _open(store, database, choice, of_maps)
    except (duckdb.Error, SourceError, StorageError):
        database.close()
        raise


def _open(store: Store, database: duckdb.DuckDBPyConnection, choice: Choice, of_maps: bool) -> Selection:
    counts = dict(database.execute("SELECT status = 'quarantined', count(*) FROM images GROUP BY 1").fetchall())
    if not counts.get(False):
        raise SourceError(f"{store.uri} holds no labeled image yet, so there is nothing to export")
    check_agreement(database, store)
    where = choice.images_where or "true"
    prefix = choice.image_url + "/" * choice.image_url[-1:].isalnum()
    url = f"{sql_literal(prefix)} || replace(url_encode(image_id), '%2F', '/')" if choice.image_url else "uri"
    statement = _IMAGES.format(url=url, split=choice.splits.sql(), where=where)
    _conditioned(database, "--images-where", statement)
    held = dict(database.execute("SELECT task, count(*) FROM annotations GROUP BY task ORDER BY task").fetchall())
    tasks = _tasks(store, choice, held, of_maps)
    database.execute(_MASKS.format(tasks=_list(tasks)))
    names = tuple(dict.fromkeys(choice.categories))
    of_categories = f"category_name IN ({_list(names)})" if names else "true"
    _conditioned(database, "--where", _CHOSEN.format(where=choice.where or "true", of_categories=of_categories))
    order = f"list_position([{_list(names)}], category_name) - 1" if names else (
        "row_number() OVER (ORDER BY category_name) - 1"
    )  # fmt: skip
    _conditioned(database, "--where", _CATEGORIES.format(order=order))
    database.execute(_COUNTS)
    num_unasked, num_partly_asked = _leave_out_unasked(database, tasks)
    if not choice.with_empty:
        database.execute("DELETE FROM export_images WHERE image_id NOT IN (SELECT image_id FROM export_counts)")
    found = database.execute(
        "SELECT split, count(*), coalesce(sum(masks), 0)::BIGINT "
        "FROM export_images LEFT JOIN export_counts USING (image_id) GROUP BY split"
    ).fetchall()
    if not sum(masks for _, _, masks in found):
        raise SourceError(_nothing(store, choice, tasks, {task: held.get(task, 0) for task in tasks}))
    return Selection(
        database=database,
        choice=choice,
        tasks=tasks,
        categories=_categories(database, names),
        num_images=dict.fromkeys(choice.splits.names, 0) | {split: images for split, images, _ in found},
        num_masks=dict.fromkeys(choice.splits.names, 0) | {split: masks for split, _, masks in found},
        num_quarantined=counts.get(True, 0),
        num_forgotten=count_forgotten(database),
        num_unasked=num_unasked,
        num_partly_asked=num_partly_asked,
        left_out={task: number for task, number in held.items() if task not in tasks},
        models={run_id: _model(run_id, plan) for run_id, plan in plan_documents(store).items()},
    )


def _model(run_id: str, plan: Mapping[str, Any]) -> str:
    """Return the name of a run's model and the beginning of its hash; the run's id where a plan does not tell."""
    path = str(plan.get("facts", {}).get("config", {}).get("model", {}).get("path") or "")
    digest = str(plan.get("fingerprint", {}).get("model") or "")[:8]
    return " ".join(part for part in (path.rstrip("/").rpartition("/")[2], digest) if part) or run_id


def _leave_out_unasked(database: duckdb.DuckDBPyConnection, tasks: Sequence[str]) -> tuple[int, int]:
    """Leave out images without masks of which nothing exported was asked.

    Returns:
        How many they are, and how many others were not asked about all categories: none in an output of a single run.
    """
    negative = [task for task in tasks if task not in WORD_TASKS]
    (left_out,) = database.execute(_UNASKED.format(tasks=_list(negative))).fetchall()[0]
    (runs,) = database.execute("SELECT count(*) FROM runs").fetchall()[0]
    (categories,) = database.execute(
        f"SELECT count(*) FROM chosen_masks WHERE task IN ({_list(CATEGORY_TASKS)})"
    ).fetchall()[0]
    if runs < 2 or not categories:
        return int(left_out), 0
    for statement in _ANSWERED.format(tasks=_list(CATEGORY_TASKS)).split(";"):
        database.execute(statement)
    others = _list([task for task in negative if task not in CATEGORY_TASKS])
    (more,) = database.execute(_UNASKED_CATEGORIES.format(tasks=others)).fetchall()[0]
    (partly,) = database.execute(_PARTLY_ASKED).fetchall()[0]
    return int(left_out + more), int(partly)


def _tasks(store: Store, choice: Choice, held: Mapping[str, int], of_maps: bool) -> tuple[str, ...]:
    """Return the tasks whose masks are exported."""
    if choice.tasks:
        if unknown := [task for task in choice.tasks if task not in held]:
            raise SourceError(f"{store.uri} holds no masks of {some_of(unknown)}; it holds {', '.join(held) or 'none'}")
        tasks = choice.tasks
    else:
        tasks = tuple(t for t in held if (t in MAP_TASKS and (not of_maps or t.endswith("_panoptic"))) == of_maps)
    if not of_maps:
        if not tasks and held:
            raise SourceError(
                f"{store.uri} holds masks of {', '.join(held)} alone, which are maps: export them as panoptic, or name "
                "one with --task to have its segments as masks"
            )
    elif not tasks and held:
        raise SourceError(
            f"{store.uri} holds no masks of a panoptic task; it holds {', '.join(held)}. Name a *_semantic one with "
            "--task, or choose another format"
        )
    elif len(tasks) > 1 or not set(tasks) <= set(MAP_TASKS):
        raise SourceError(
            f"a map has room for one panoptic or semantic task, whose masks do not overlap; asked for: "
            f"{', '.join(tasks)}. Name one with --task"
        )
    return tasks


def _conditioned(database: duckdb.DuckDBPyConnection, option: str, statement: str) -> None:
    """Execute a statement that contains a user's condition, and name its option if the condition is invalid."""
    with condition_errors(option):
        database.execute(statement)


def _categories(database: duckdb.DuckDBPyConnection, names: Sequence[str]) -> tuple[ExportCategory, ...]:
    rows = database.execute("FROM export_categories ORDER BY position").fetchall()
    found = {name: ExportCategory(name, position, is_thing, masks) for name, is_thing, position, masks in rows}
    if not names:
        return tuple(found.values())
    return tuple(found.get(name, ExportCategory(name, place, False, 0)) for place, name in enumerate(names))


def _nothing(store: Store, choice: Choice, tasks: Sequence[str], held: Mapping[str, int]) -> str:
    options = {"--where": choice.where, "--images-where": choice.images_where, "--categories": choice.categories}
    asked = " and ".join(name for name, value in options.items() if value)
    total = f"{sum(held.values()):,} masks of {', '.join(tasks)}" if tasks else "no masks"
    return f"{store.uri} holds {total}" + (f", and none of them fits {asked}" if asked else ": nothing to export")


def _list(values: Sequence[str]) -> str:
    return ", ".join(map(sql_literal, values)) or "NULL"
