"""Compute a report's numbers over all runs: the ledger, categories, distributions.

DuckDB aggregates: what is read into Python is bounded by the number of runs, shards, reasons and shown categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from pipelines.planning.plan import plan_documents
from pipelines.query.database import count_forgotten
from pipelines.report.run_facts import RunFacts, read_run_facts
from pipelines.storage.store import Store
from pipelines.types import Status

SCORE_BINS = 20
AREA_EDGES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Edges of bins in shares of the image's pixels; the first bin includes smaller masks."""
MASK_EDGES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)
"""Lower edges of bins in masks per image; the last bin is open-ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """The current masks of one category of one task.

    Attributes:
        task, name: the task and the category; for captions the phrase.
        masks: number of masks.
        mean_score: mean of their scores.
        score_counts: masks by score, in SCORE_BINS bins of equal width from 0 to 1.
    """

    task: str
    name: str
    masks: int
    mean_score: float
    score_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The numbers of an output, over its current rows.

    Attributes:
        runs: the runs, in the order of planning.
        counts: images by status.
        reasons: quarantined images by reason, the most frequent first.
        masks: number of masks.
        num_categories: number of different pairs of task and category.
        categories: the categories with the most masks.
        score_counts: masks by score, in SCORE_BINS bins from 0 to 1.
        image_counts: images that are not quarantined, by number of masks, in bins of MASK_EDGES.
        area_counts: masks by their share of the image, in bins of AREA_EDGES.
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
    """Compute the numbers of an output.

    Args:
        store: the output.
        database: the same output's database, see pipelines.query.database.
        max_categories: number of categories to list.

    Raises:
        StorageError: the output cannot be read.
    """
    current = dict(database.execute("SELECT run_id, count(*) FROM annotations GROUP BY 1").fetchall())
    counts = dict(database.execute("SELECT status, count(*) FROM images GROUP BY 1").fetchall())
    reasons = database.execute(
        "SELECT coalesce(reason, 'unknown'), count(*) FROM images WHERE status = 'quarantined' "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    # Scores are read once: all figures by category or score are made from these counts.
    database.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE report_scores AS
        SELECT task, category_name, least(greatest(floor(score * {SCORE_BINS})::INT, 0), {SCORE_BINS - 1}) AS bin,
            count(*) AS masks, sum(score) AS total
        FROM annotations GROUP BY ALL
        """
    )
    query = "SELECT count(*) FROM (SELECT DISTINCT task, category_name FROM report_scores)"
    ((num_categories,),) = database.execute(query).fetchall()
    plans = plan_documents(store).items()
    return Facts(
        runs=tuple(read_run_facts(store, plan, current.get(run_id, 0)) for run_id, plan in plans),
        counts={status.value: counts.get(status.value, 0) for status in Status}
        | {Status.FORGOTTEN.value: count_forgotten(database)},
        reasons=dict(reasons),
        masks=sum(current.values()),
        num_categories=num_categories,
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
    """Count images by number of masks; those without any have no row in ``annotations``, and are the difference."""
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
    # Width and height come from `images`: the size in `segmentation` lies in one column with the run lengths, which are
    # most of the table's bytes and would be read along with it.
    rows = f"""
        SELECT {_bin_of("a.area / (i.width::DOUBLE * i.height)", AREA_EDGES[:-1])}, count(*)
        FROM annotations AS a JOIN all_images AS i USING (image_id, run_id) WHERE i.width * i.height > 0 GROUP BY 1
    """
    return _bins(database, rows, len(AREA_EDGES) - 1)


def _bin_of(value: str, edges: Sequence[float]) -> str:
    """Return an SQL expression for a value's bin, given the bins' lower edges; smaller values are in the first bin."""
    inner = " + ".join(f"({value} >= {edge})::INT" for edge in edges[1:])
    return f"({inner})"


def _bins(database: duckdb.DuckDBPyConnection, query: str, number: int) -> tuple[int, ...]:
    found = dict(database.execute(query).fetchall())
    return tuple(int(found.get(place, 0)) for place in range(number))
