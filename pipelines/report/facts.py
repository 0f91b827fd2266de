"""What a report says in numbers: runs and their provenance, the ledger, categories, distributions.

Aggregates only: what is read into Python is bounded by the number of runs, shards, reasons and shown categories.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb

from pipelines.manifest import plan_documents, run_folder
from pipelines.storage import StorageError, Store
from pipelines.table import ShardCommit, read_commits
from pipelines.types import Status

SCORE_BINS = 20
AREA_EDGES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Shares of the image's pixels; the first bin also holds what is smaller."""
MASK_EDGES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)
"""Masks of an image, each the least of its bin; the last bin has no end."""
_MAX_PROMPTS = 60


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
class Work:
    """A shard's labelling as its commit tells: so many images between two moments, seconds since 1970."""

    started_at: float
    ended_at: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One run.

    Attributes:
        run_id, retry_of: which, and the run whose quarantined images it labels again.
        planned_at, first_at, last_at: ISO 8601; when its first shard was begun and its last one committed.
        listed, shards, committed: of its plan.
        counts: images by status; reasons: quarantined images by reason.
        masks, current_masks: committed, and those that no later run has replaced.
        work: of each commit.
        origin: source, model, weights, device, times and so on, by name, as text.
        versions: of packages.
        prompts: asked of every image, by task (the first of them); num_prompts: how many there are.
        config: as planned, JSON.
        source_options, allow_http: how its images are fetched.
        problems: as its summary tells.
    """

    run_id: str
    retry_of: str | None
    planned_at: str | None
    first_at: str | None
    last_at: str | None
    listed: int
    shards: int
    committed: int
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    masks: int
    current_masks: int
    work: tuple[Work, ...]
    origin: Mapping[str, str]
    versions: Mapping[str, str]
    prompts: Mapping[str, Sequence[str]]
    num_prompts: int
    config: str
    source_options: Mapping[str, Any] = field(default_factory=dict)
    allow_http: bool = False
    problems: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Listed images that are not labelled yet."""
        return self.listed - sum(self.counts.values())


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
        database: of the same output; see pipelines.query.
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
        runs=tuple(_run(store, plan, current.get(run_id, 0)) for run_id, plan in plan_documents(store).items()),
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


def _image_counts(database: duckdb.DuckDBPyConnection, labelled: int) -> tuple[int, ...]:
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
    return (max(0, labelled - sum(found)), *found[1:])


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


def _run(store: Store, plan: Mapping[str, Any], current_masks: int) -> RunFacts:
    run_id, facts, fingerprint = plan["run_id"], plan.get("facts", {}), plan.get("fingerprint", {})
    config, retry = facts.get("config", {}), fingerprint.get("retry")
    source = config.get("source") or {}
    counts, reasons, work, masks = Counter[str](), Counter[str](), list[Work](), 0
    predictors: dict[str, Counter[str]] = {}
    for commit in read_commits(store, run_id):
        counts.update(commit.status_counts)
        reasons.update(commit.reason_counts)
        masks += commit.annotations.rows
        work.append(_work(commit))
        for name, value in commit.predictor.items():
            predictors.setdefault(name, Counter())[str(value)] += 1
    summary = _summary(store, run_id)
    prompts = facts.get("prompts", ())
    by_task: dict[str, list[str]] = {}
    for prompt in prompts[:_MAX_PROMPTS]:
        by_task.setdefault(str(prompt["task"]), []).append(str(prompt["text"]))
    return RunFacts(
        run_id=run_id,
        retry_of=retry and retry["run_id"],
        planned_at=facts.get("planned_at"),
        first_at=_iso(min((shard.started_at for shard in work), default=None)),
        last_at=_iso(max((shard.ended_at for shard in work), default=None)),
        listed=plan["num_images"],
        shards=plan["num_shards"],
        committed=len(work),
        counts={status.value: counts[status.value] for status in Status},
        reasons=dict(reasons),
        masks=masks,
        current_masks=current_masks,
        work=tuple(work),
        origin=_origin(fingerprint, config, predictors, summary),
        versions={str(name): str(value) for name, value in facts.get("versions", {}).items()},
        prompts=by_task,
        num_prompts=len(prompts),
        config=json.dumps(config, indent=1, ensure_ascii=False),
        source_options=source.get("storage_options") or {},
        allow_http=bool(source.get("allow_http")),
        problems=tuple(str(problem) for problem in summary.get("problems", ())),
    )


def _work(commit: ShardCommit) -> Work:
    images = sum(commit.status_counts.values())
    return Work(started_at=commit.committed_at - commit.elapsed_s, ended_at=commit.committed_at, images=images)


def _summary(store: Store, run_id: str) -> Mapping[str, Any]:
    """Return what the run's summary holds; nothing if it has none yet, or one that cannot be read."""
    try:
        summary = store.read_json(f"{run_folder(run_id)}/summary.json")
    except (FileNotFoundError, StorageError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _origin(
    fingerprint: Mapping[str, Any],
    config: Mapping[str, Any],
    predictors: Mapping[str, Counter[str]],
    summary: Mapping[str, Any],
) -> dict[str, str]:
    """Return where a run's rows come from: what is known, each as text; where shards differ, with their numbers."""
    known: dict[str, Any] = {
        "source": fingerprint.get("source"),
        "model": (config.get("model") or {}).get("path"),
        "weights_sha256": fingerprint.get("model"),
        "prompts_sha256": fingerprint.get("prompts"),
        "least score": fingerprint.get("model.min_score"),
    }
    for name, values in predictors.items():
        shown = [
            value if len(values) == 1 else f"{value} ({number:,} shards)" for value, number in values.most_common(6)
        ]
        known[name] = ", ".join(shown)
    known["finished"] = summary.get("facts", {}).get("finished_at")
    return {name: str(value) for name, value in known.items() if value is not None}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
