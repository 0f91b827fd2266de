"""What a report says in numbers of all runs together: the ledger, categories, distributions.

Aggregates only: what is read into Python is bounded by the number of runs, shards, reasons and shown categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from pipelines.planning.plan import plan_documents
from pipelines.report.run_facts import RunFacts, read_run_facts
from pipelines.storage.store import Store
from pipelines.types import Status

SCORE_BINS = 20
AREA_EDGES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Shares of the image's pixels; the first bin also holds what is smaller."""
MASK_EDGES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)
"""Masks of an image, each the least of its bin; the last bin has no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """The current masks of one category of one task.

    Attributes:
        task, name: which; of captions the name is the phrase.
        masks: how many.
        mean_score: of them.
        score_counts: masks by score, SCORE_BINS bins of one width from 0 to 1.
    """

    task: str
    name: str
    masks: int
    mean_score: float
    score_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """An output in numbers, of current rows.

    Attributes:
        runs: in the order of planning.
        counts: images by status; reasons: quarantined images by reason, most first.
        masks: all of them; num_categories: pairs of task and category among them.
        categories: those with most masks.
        score_counts: masks by score, SCORE_BINS bins from 0 to 1.
        image_counts: images that are not quarantined by their number of masks, by MASK_EDGES.
        area_counts: masks by their share of the image, between AREA_EDGES.
    """

    runs: tuple[RunFacts, ...]
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    masks: int
    num_categories: int
    categories: tuple[Category, ...]
    score_counts: tuple[int, ...]
    image_counts: tuple[int, ...]
    area_counts: tuple[int, ...]


def read_facts(store: Store, database: duckdb.DuckDBPyConnection, *, max_categories: int) -> Facts:
    """Count.

    Args:
        store: the output.
        database: of the same output; see pipelines.query.database.
        max_categories: how many categories are told apart.

    Raises:
        StorageError: it cannot be read.
    """
    current = dict(database.execute("SELECT run_id, count(*) FROM annotations GROUP BY 1").fetchall())
    counts = dict(database.execute("SELECT status, count(*) FROM images GROUP BY 1").fetchall())
    reasons = database.execute(
        "SELECT coalesce(reason, 'unknown'), count(*) FROM images WHERE status = 'quarantined' "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    database.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE report_scores AS
        SELECT task, category_name, least(greatest(floor(score * {SCORE_BINS})::INT, 0), {SCORE_BINS - 1}) AS bin,
            count(*) AS masks, sum(score) AS total
        FROM annotations GROUP BY ALL
        """
    )
    return Facts(
        runs=tuple(
            read_run_facts(store, plan, current.get(run_id, 0)) for run_id, plan in plan_documents(store).items()
        ),
        counts={status.value: counts.get(status.value, 0) for status in Status},
        reasons=dict(reasons),
        masks=sum(current.values()),
        num_categories=_number(
            database, "SELECT count(*) FROM (SELECT DISTINCT task, category_name FROM report_scores)"
        ),
        categories=_categories(database, max_categories),
        score_counts=_bins(database, "SELECT bin, sum(masks) FROM report_scores GROUP BY 1", SCORE_BINS),
        image_counts=_image_counts(database, counts.get("ok", 0) + counts.get("empty", 0)),
        area_counts=_area_counts(database),
    )


def _categories(database: duckdb.DuckDBPyConnection, most: int) -> tuple[Category, ...]:
    rows = database.execute(
        """
        SELECT task, category_name, sum(masks)::BIGINT, sum(total) / sum(masks), map(list(bin), list(masks))
        FROM report_scores GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT ?
        """,
        [most],
    ).fetchall()
    return tuple(
        Category(
            task=task,
            name=name,
            masks=masks,
            mean_score=mean,
            score_counts=tuple(counts.get(number, 0) for number in range(SCORE_BINS)),
        )
        for task, name, masks, mean, counts in rows
    )


def _image_counts(database: duckdb.DuckDBPyConnection, labeled: int) -> tuple[int, ...]:
    """Count images by their number of masks; those without any have no row in ``annotations``."""
    edges = [edge - 0.5 for edge in MASK_EDGES]
    found = _bins(
        database,
        f"""
        SELECT {_bin_of("n", edges)}, count(*)
        FROM (SELECT count(*) AS n FROM annotations GROUP BY image_id) GROUP BY 1
        """,
        len(MASK_EDGES),
    )
    return (max(0, labeled - sum(found)), *found[1:])


def _area_counts(database: duckdb.DuckDBPyConnection) -> tuple[int, ...]:
    # Sizes come from the images: beside the run lengths they would have to be read with them.
    rows = f"""
        SELECT {_bin_of("a.area / (i.width::DOUBLE * i.height)", AREA_EDGES[:-1])}, count(*)
        FROM annotations AS a JOIN all_images AS i USING (image_id, run_id) WHERE i.width * i.height > 0 GROUP BY 1
    """
    return _bins(database, rows, len(AREA_EDGES) - 1)


def _bin_of(value: str, edges: Sequence[float]) -> str:
    """Return SQL for the number of a value's bin, by the bins' least values; what is less is in the first."""
    inner = " + ".join(f"({value} >= {edge})::INT" for edge in edges[1:])
    return f"({inner})"


def _bins(database: duckdb.DuckDBPyConnection, query: str, number: int) -> tuple[int, ...]:
    found = dict(database.execute(query).fetchall())
    return tuple(int(found.get(place, 0)) for place in range(number))


def _number(database: duckdb.DuckDBPyConnection, query: str) -> int:
    row = database.execute(query).fetchone()
    return int(row[0]) if row else 0
