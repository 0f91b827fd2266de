"""Collect a report's facts about one run: its counts, when its shards were labeled, and the origin of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.planning.fingerprint import relabeled
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.run_summary import readable_summary
from pipelines.table.shard_commit import ShardCommit
from pipelines.types import Status

_MAX_PROMPTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The labeling of one shard, from its commit: beginning and end in seconds since the epoch, number of images."""

    started_at: float
    ended_at: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The facts about one run.

    Attributes:
        run_id: the run.
        retry_of: the run whose quarantined images it labels again; None if it is not a retry.
        relabeled: which images of the output it labels again; None if it is not a relabel.
        planned_at, first_at, last_at: ISO 8601 times of planning, of the first shard's beginning, of the last commit.
        listed, shards, committed: numbers of listed images, planned shards and committed shards.
        counts: images by status.
        reasons: quarantined images by reason.
        masks, current_masks: committed masks, and those of them that no later run has replaced.
        work: the labeling of each committed shard.
        origin: source, model, weights, device, times and so on, by name, as text.
        versions: package versions.
        prompts: the first of the prompts asked of every image, by task.
        num_prompts: number of all these prompts.
        config: the planned config, as JSON.
        source_options, allow_http: how its images are fetched.
        problems: problems recorded in its summary.
    """

    run_id: str
    retry_of: str | None
    relabeled: str | None
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
        """Number of listed images that are not labeled yet."""
        return self.listed - sum(self.counts.values())


def read_run_facts(store: Store, plan: Mapping[str, Any], current_masks: int) -> RunFacts:
    """Read a run's commits and summary.

    Args:
        store: the output.
        plan: the run's plan, as plan_documents returns it.
        current_masks: number of its masks that no later run has replaced.

    Raises:
        StorageError: a commit cannot be read.
    """
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
    summary = readable_summary(store, run_id)
    versions = {str(name): str(value) for name, value in facts.get("versions", {}).items()}
    prompts = facts.get("prompts", ())
    by_task: dict[str, list[str]] = {}
    for prompt in prompts[:_MAX_PROMPTS]:
        by_task.setdefault(str(prompt["task"]), []).append(str(prompt["text"]))
    return RunFacts(
        run_id=run_id,
        retry_of=retry and retry["run_id"],
        relabeled=relabeled(plan),
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
        origin={n: v for n, v in _origin(fingerprint, config, predictors, summary).items() if versions.get(n) != v},
        versions=versions,
        prompts=by_task,
        num_prompts=len(prompts),
        config=json.dumps(config, indent=1, ensure_ascii=False),
        source_options={**(source.get("storage_options") or {}), "http": source.get("http")},
        allow_http=bool(source.get("allow_http")),
        problems=tuple(str(problem) for problem in summary.get("problems", ())),
    )


def _work(commit: ShardCommit) -> Work:
    images = sum(commit.status_counts.values())
    return Work(started_at=commit.committed_at - commit.elapsed_s, ended_at=commit.committed_at, images=images)


def _origin(
    fingerprint: Mapping[str, Any],
    config: Mapping[str, Any],
    predictors: Mapping[str, Counter[str]],
    summary: Mapping[str, Any],
) -> dict[str, str]:
    """Return what is known about the origin of a run's rows, as text; values that differ by shard have their counts."""
    known: dict[str, Any] = {
        "source": fingerprint.get("source"),
        "model": (config.get("model") or {}).get("path"),
        "weights_sha256": fingerprint.get("model"),
        "prompts_sha256": fingerprint.get("prompts"),
        "least score": fingerprint.get("model.min_score"),
    }
    for name, values in predictors.items():
        shown = [
            value if len(values) == 1 else f"{value} ({counted(number, 'shard')})"
            for value, number in values.most_common(6)
        ]
        known[name] = ", ".join(shown)
    known["finished"] = summary.get("facts", {}).get("finished_at")
    return {name: str(value) for name, value in known.items() if value is not None}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
