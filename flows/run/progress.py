"""How far the runs of an output are, from plans, commits and summaries alone: read at any time, from any machine."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.config import ConfigError, RunConfig, parse_config
from flows.run.engine import cut_waves
from pipelines.layout import shard_name
from pipelines.storage.store import Store
from pipelines.table.commits import committed_shards, read_commits
from pipelines.table.run_summary import readable_summary
from pipelines.table.shard_commit import ShardCommit
from pipelines.types import Status

RECENT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run in a line.

    Attributes:
        run_id, sequence, retry_of: which run, its place in the order of planning, and the run that it labels again.
        planned_at: ISO 8601, None if the plan does not say.
        state: "finished", "unfinished" or "not begun".
        images, done: listed, and labelled or quarantined.
        masks: committed.
    """

    run_id: str
    sequence: int
    retry_of: str | None
    planned_at: str | None
    state: str
    images: int
    done: int
    masks: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """One run as its commits tell.

    Attributes:
        line: the run in a line.
        counts: images by status; reasons: quarantined images by reason.
        shards, committed: of the plan.
        waves, waves_done: of the plan as it was planned; None where its config cannot be read any more.
        rate: images a second over the time in which any shard was being labelled; None before the first commit.
        recent_rate: the same of the shards committed in the last RECENT_S before the last commit.
        left_s: seconds that the rest takes at the recent rate; None where nothing is left or no rate is known.
        last_commit_at: seconds since 1970.
        gpu_hours: what committed shards kept busy, see replica_seconds, times the GPUs of a replica.
        cost: that times the price of a GPU hour; None where no price is known.
        problems: as the summary tells, if an invocation of the run has ended and none has committed anything since.
    """

    line: RunLine
    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    shards: int
    committed: int
    waves: int | None = None
    waves_done: int | None = None
    rate: float | None = None
    recent_rate: float | None = None
    left_s: float | None = None
    last_commit_at: float | None = None
    gpu_hours: float = 0.0
    cost: float | None = None
    problems: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        line: dict[str, Any] = values.pop("line")
        return line | values


def read_lines(store: Store, plans: Mapping[str, Mapping[str, Any]]) -> list[RunLine]:
    """Read every run in a line; of one that has ended its summary is read instead of its commits, if it tells of all.

    Args:
        store: the output.
        plans: what plan_documents returns.
    """
    return [_line(store, plan) for plan in plans.values()]


def read_progress(store: Store, plan: Mapping[str, Any], *, gpu_price: float | None = None) -> RunProgress:
    """Read all commits of a run.

    Args:
        store: the output.
        plan: of the run, as plan_documents returns it.
        gpu_price: price of a GPU hour; by default what the plan's config says.
    """
    config = _config(plan)
    commits = list(read_commits(store, plan["run_id"]))
    counts, reasons = Counter[str](), Counter[str]()
    for commit in commits:
        counts.update(commit.status_counts)
        reasons.update(commit.reason_counts)
    line = _line_of(plan, counts.total(), len(commits), sum(commit.annotations.rows for commit in commits))
    last = max((commit.committed_at for commit in commits), default=None)
    recent = _rate([c for c in commits if last is not None and c.committed_at >= last - RECENT_S])
    left = line.images - line.done
    gpu_hours = 0.0 if config is None else _gpu_hours(commits, config)
    price = config.pool.gpu_price_per_hour if gpu_price is None and config is not None else gpu_price
    waves = None if config is None else _waves(plan, config, {commit.shard_id for commit in commits})
    return RunProgress(
        line=line,
        counts={status.value: counts[status.value] for status in Status},
        reasons=dict(reasons),
        shards=plan["num_shards"],
        committed=len(commits),
        waves=waves and waves[0],
        waves_done=waves and waves[1],
        rate=_rate(commits),
        recent_rate=recent,
        left_s=left / recent if recent and left > 0 else None,
        last_commit_at=last,
        gpu_hours=gpu_hours,
        cost=None if price is None or not gpu_hours else gpu_hours * price,
        problems=_problems(store, plan["run_id"], len(commits)),
    )


def chosen_run(lines: Sequence[RunLine]) -> str:
    """Return the run to look at where none is named: the last that is not finished, else the last."""
    unfinished = [line for line in lines if line.state != "finished"]
    return (unfinished or lines)[-1].run_id


def replica_seconds(spans: Iterable[tuple[float, float]], shards_in_flight: int) -> float:
    """Return for how long replicas were busy at least, all of them together.

    While c shards are under way, at least c / shards_in_flight replicas, rounded up, work on them. That is exact while
    every replica has all of its shards in flight. Not in it: loading of models, replicas that wait, attempts that
    failed, and shards that are not committed yet.

    Args:
        spans: from when until when each committed shard was labelled, seconds.
        shards_in_flight: that one replica works on at once.
    """
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    total, under_way, before = 0.0, 0, 0.0
    for at, change in changes:
        total += math.ceil(under_way / shards_in_flight) * (at - before)
        under_way, before = under_way + change, at
    return total


def _rate(commits: Sequence[ShardCommit]) -> float | None:
    """Return images a second over the time in which any of these shards was under way: pauses do not count."""
    busy_s, until = 0.0, -math.inf
    for start, end in sorted(_spans(commits)):
        busy_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return sum(sum(commit.status_counts.values()) for commit in commits) / max(busy_s, 1e-3) if commits else None


def _spans(commits: Iterable[ShardCommit]) -> list[tuple[float, float]]:
    return [(commit.committed_at - commit.elapsed_s, commit.committed_at) for commit in commits]


def _gpu_hours(commits: Sequence[ShardCommit], config: RunConfig) -> float:
    pool = config.pool
    seconds = replica_seconds(_spans(commits), pool.shards_in_flight_per_replica)
    return seconds * pool.num_gpus_per_replica / 3600


def _waves(plan: Mapping[str, Any], config: RunConfig, committed: set[str]) -> tuple[int, int]:
    """Return how many waves a run was planned as, and how many are committed to the last shard."""
    waves = cut_waves([shard_name(number) for number in range(plan["num_shards"])], config)
    return len(waves), sum(committed.issuperset(wave) for wave in waves)


def _config(plan: Mapping[str, Any]) -> RunConfig | None:
    """Return a run's config as planned; None if this version cannot read it."""
    try:
        return parse_config(plan.get("facts", {}).get("config", {}))
    except ConfigError:
        return None


def _line(store: Store, plan: Mapping[str, Any]) -> RunLine:
    run_id = plan["run_id"]
    summary, num_committed = readable_summary(store, run_id), len(committed_shards(store, run_id))
    if summary.get("committed") == num_committed:
        done = sum(number for name, number in summary["ledger"].items() if name != "listed")
        return _line_of(plan, done, num_committed, summary["num_annotations"])
    commits = list(read_commits(store, run_id))
    done = sum(sum(commit.status_counts.values()) for commit in commits)
    return _line_of(plan, done, len(commits), sum(commit.annotations.rows for commit in commits))


def _line_of(plan: Mapping[str, Any], done: int, committed: int, masks: int) -> RunLine:
    retry = plan.get("fingerprint", {}).get("retry")
    state = "finished" if committed >= plan["num_shards"] else "unfinished" if committed else "not begun"
    return RunLine(
        run_id=plan["run_id"],
        sequence=plan.get("sequence", 0),
        retry_of=retry and retry["run_id"],
        planned_at=plan.get("facts", {}).get("planned_at"),
        state=state,
        images=plan["num_images"],
        done=done,
        masks=masks,
    )


def _problems(store: Store, run_id: str, committed: int) -> tuple[str, ...]:
    summary = readable_summary(store, run_id)
    return tuple(summary.get("problems", ())) if summary.get("committed") == committed else ()
