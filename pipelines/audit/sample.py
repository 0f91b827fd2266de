"""Draw the sample of an audit from an output, and write it as an export for a person to check, with its record."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.audit.draw import SampleSize, band_sql, draw, number_sql
from pipelines.audit.record import IMAGES_SCHEMA, MASKS_SCHEMA, AuditFacts, AuditRecord, Stratum
from pipelines.errors import SourceError, some_of
from pipelines.export.choice import Choice
from pipelines.export.write import FORMATS, Export, export_output
from pipelines.importing.imports import READERS
from pipelines.layout import EXPORT_MARK
from pipelines.query.database import open_database
from pipelines.query.fence import sql_literal
from pipelines.query.files import query_errors
from pipelines.query.row_agreement import check_agreement
from pipelines.query.select_text import read_condition
from pipelines.query.user_select import condition_errors
from pipelines.redaction import quoted
from pipelines.storage.store import Store
from pipelines.storage.targets import open_target
from pipelines.types import CATEGORY_TASKS, MAP_TASKS, Status

EDGES = (0.0, 0.25, 0.5, 0.75)
"""Where bands of scores begin."""
TASKS = tuple(task for task in CATEGORY_TASKS if task not in MAP_TASKS)
"""Tasks whose masks can be audited: those of which each image tells whether a category was asked."""
_MEMORY_LIMIT, _MAX_THREADS = "1GB", 4
# A condition is followed by a line break: it may end in a comment.
_IMAGES = f"""
CREATE TEMP TABLE audited_images AS
SELECT image_id, width, height, {{number}} AS number FROM images
WHERE status <> '{Status.QUARANTINED}' AND width IS NOT NULL AND ({{where}}
)
"""
_MASKS = """
CREATE TEMP VIEW audited_masks AS
SELECT * FROM annotations SEMI JOIN audited_images USING (image_id) WHERE task = {task} AND score >= {score!r}
"""
_PROMPTS = "CREATE TEMP TABLE audited_prompts AS SELECT DISTINCT prompt_id, category_name FROM audited_masks"
_PAIRS = """
CREATE TEMP VIEW audit_pairs AS
SELECT image_id, category_name, {band} AS band, number
FROM coverage JOIN audited_prompts USING (prompt_id) JOIN audited_images USING (image_id) WHERE n IS NOT NULL
"""
_TOTALS = "SELECT category_name, {band} AS band, count(*) FROM audited_masks GROUP BY ALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditChoice:
    """What is audited.

    Attributes:
        score: masks from this score on are what the person checks; those below it count as not found.
        categories: names; empty for all of which there is such a mask.
        task: one of TASKS; empty for the only one of the output.
        images_where: SQL condition on the images, over the columns of ``images``.
        size: how many images are drawn.
        seed: another one draws other images.
        image_url: as for an export.
    """

    score: float = 0.5
    categories: tuple[str, ...] = ()
    task: str = ""
    images_where: str = ""
    size: SampleSize = field(default_factory=SampleSize)
    seed: int = 0
    image_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A sample that was written: its record, and the export."""

    record: AuditRecord
    export: Export


def write_sample(
    store: Store,
    target: str,
    format_name: str,
    choice: AuditChoice,
    *,
    overwrite: bool = False,
    on_masks: Callable[[int, int], None] = lambda *_: None,
) -> Sample:
    """Draw a sample, and write it into a new folder: the export, and what is needed to weight what comes back.

    Args:
        store: the output; it is only read.
        target: path or URI of the folder.
        format_name: one that can be read again: a key of imports.READERS.
        choice: what is audited.
        overwrite: whether to replace an earlier sample.
        on_masks: called with the number of masks written so far and their total.

    Raises:
        SourceError: nothing fits the choice, or it cannot be used; nothing is written.
        StorageError: the target exists or cannot be written, or the output cannot be read; nothing is left behind.
    """
    if format_name not in READERS:
        raise SourceError(f"format {quoted(format_name)} is none that people can edit: {', '.join(READERS)}")
    names = (*FORMATS[format_name].names, EXPORT_MARK, "audit.json", "audit-*.parquet")
    path = open_target(
        target, overwrite=overwrite, replaces=names, output=store.uri, what="a sample is written as a folder"
    )
    own_files = read_condition("--images-where", choice.images_where) if choice.images_where else ()
    with query_errors(store), path.place() as place:
        with open_database(
            store,
            own_files=own_files,
            memory_limit=_MEMORY_LIMIT,
            max_threads=min(_MAX_THREADS, os.cpu_count() or 1),
            folder=place,
        ) as database:
            check_agreement(database, store)
            record = _drawn(store, database, format_name, choice)
        exported = Choice(
            where=f"score >= {choice.score!r}",
            image_ids=tuple(record.images["image_id"].to_pylist()),
            tasks=(record.facts.task,),
            categories=tuple(record.facts.strata),
            image_url=choice.image_url,
        )
        whole = place / "whole"
        export = export_output(store, str(whole), format_name, exported, on_masks=on_masks)
        record.write(whole)
        path.publish(whole)
    return Sample(record=record, export=export)


def _drawn(store: Store, database: duckdb.DuckDBPyConnection, format_name: str, choice: AuditChoice) -> AuditRecord:
    with condition_errors("--images-where"):
        database.execute(_IMAGES.format(number=number_sql(choice.seed), where=choice.images_where or "true"))
    task = _task(store, database, choice)
    database.execute(_MASKS.format(task=sql_literal(task), score=choice.score))
    database.execute(_PROMPTS)
    names = _names(store, database, choice, task)
    listed = ", ".join(map(sql_literal, names))
    database.execute(f"DELETE FROM audited_prompts WHERE category_name NOT IN ({listed})")
    database.execute(_PAIRS.format(band=band_sql("max_score", EDGES)))
    draw(database, choice.size)
    facts = AuditFacts(
        output=store.uri,
        format_name=format_name,
        task=task,
        score=choice.score,
        edges=EDGES,
        seed=choice.seed,
        drawn_at=datetime.now(UTC).isoformat(timespec="seconds"),
        runs=tuple(row[0] for row in database.execute("SELECT run_id FROM runs ORDER BY place").fetchall()),
        images_where=choice.images_where,
        strata=_strata(database, names),
    )
    images = _dicts(
        database,
        "SELECT image_id, width, height, probability, bands FROM audit_images JOIN audited_images USING (image_id) "
        "ORDER BY image_id",
    )
    masks = _dicts(
        database,
        f"SELECT image_id, annotation_id, category_name, score, {band_sql('score', EDGES)} AS band, source, "
        "segmentation FROM audited_masks SEMI JOIN audit_images USING (image_id) "
        f"WHERE category_name IN ({listed}) ORDER BY image_id, score DESC, annotation_id",
    )
    return AuditRecord(
        facts=facts,
        images=pa.Table.from_pylist(images, schema=IMAGES_SCHEMA),
        masks=pa.Table.from_pylist(masks, schema=MASKS_SCHEMA),
    )


def _task(store: Store, database: duckdb.DuckDBPyConnection, choice: AuditChoice) -> str:
    held = [row[0] for row in database.execute("SELECT DISTINCT task FROM annotations ORDER BY 1").fetchall()]
    able = [task for task in held if task in TASKS]
    if choice.task and choice.task not in able:
        raise SourceError(
            f"{store.uri}: masks of {quoted(choice.task)} cannot be audited; there are {', '.join(held) or 'none'}, of "
            f"which {', '.join(TASKS)} can: masks that were looked for by name, one by one"
        )
    if len(able) != 1 and not choice.task:
        what = f"holds masks of {' and '.join(able)}: name one with --task" if able else (
            f"holds no masks of {' or '.join(TASKS)}, which alone can be audited; it holds {', '.join(held) or 'none'}"
        )  # fmt: skip
        raise SourceError(f"{store.uri} {what}")
    return choice.task or able[0]


def _names(store: Store, database: duckdb.DuckDBPyConnection, choice: AuditChoice, task: str) -> list[str]:
    held = [
        row[0] for row in database.execute("SELECT DISTINCT category_name FROM audited_prompts ORDER BY 1").fetchall()
    ]
    where = f" of the images that fit {quoted(choice.images_where)}" if choice.images_where else ""
    if not held:
        raise SourceError(
            f"{store.uri} holds no mask of {task} from score {choice.score:g} on{where}: nothing to audit"
        )
    if unknown := [name for name in choice.categories if name not in held]:
        raise SourceError(
            f"{store.uri} holds no mask of {some_of(unknown)} from score {choice.score:g} on{where}; it holds those of "
            f"{some_of(held)}"
        )
    return list(dict.fromkeys(choice.categories)) or held


def _strata(database: duckdb.DuckDBPyConnection, names: list[str]) -> Mapping[str, tuple[Stratum, ...]]:
    found = database.execute("SELECT category_name, band, images, drawn FROM audit_strata").fetchall()
    images = {(name, band): (num_images, drawn) for name, band, num_images, drawn in found}
    totals = database.execute(_TOTALS.format(band=band_sql("score", EDGES))).fetchall()
    masks = {(name, band): number for name, band, number in totals}

    def stratum(name: str, band: int) -> Stratum:
        num_images, drawn = images.get((name, band), (0, 0))
        return Stratum(band=band, images=num_images, drawn=drawn, masks=masks.get((name, band), 0))

    return {name: tuple(stratum(name, band) for band in range(len(EDGES) + 1)) for name in names}


def _dicts(database: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.sql(query).to_arrow_table().to_pylist()
    return rows
