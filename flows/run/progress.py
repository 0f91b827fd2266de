"""Report the progress of an output's runs from plans, commits and summaries alone, at any time and from any machine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.config import ConfigError, RunConfig, parse_config
from flows.run.canary import is_approved, read_canary, told
from flows.run.waves import cut_waves
from pipelines.layout import shard_name
from pipelines.planning.fingerprint import relabeled
from pipelines.storage.store import Store
from pipelines.table.commits import committed_shards, read_commits
from pipelines.table.run_summary import readable_summary
from pipelines.table.shard_commit import ShardCommit
from pipelines.types import Status

RECENT_S = 3600.0
# Besides a few times the longest shard: for a start of replicas, and clocks that differ.
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """The state of one run in brief.

    Attributes:
        run_id: the run.
        sequence: its number in the order of planning.
        retry_of: the run whose quarantined images it labels again; None if it is not a retry.
        relabeled: which images of the output it labels again; None if it is not a relabel.
        planned_at: ISO 8601; None if the plan does not record it.
        state: "finished", "unfinished" or "not begun".
        images, done: listed images, and those of them that are labeled or quarantined.
        masks: committed masks.
        num_problems: those in the summary, if no shard has been committed since it was written.
        seems_stopped: whether an unfinished run has committed nothing for so long that nobody seems to label it.
    """

    run_id: str
    sequence: int
    retry_of: str | None
    relabeled: str | None
    planned_at: str | None
    state: str
    images: int
    done: int
    masks: int
    num_problems: int = 0
    seems_stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The progress of one run, from its commits.

    Attributes:
        line: the run in brief.
        counts: images by status.
        reasons: quarantined images by reason.
        shards, committed: planned and committed shards.
        waves, waves_done: waves as planned, and complete ones; None if this version cannot read the planned config.
        rate: images per second over the time in which any shard was being labeled; None before the first commit.
        recent_rate: the same for shards committed in the last RECENT_S before the last commit.
        left_s: seconds that the rest takes at the recent rate; None if nothing is left or no rate is known.
        last_commit_at: seconds since the epoch.
        gpu_hours: busy time of replicas, see replica_seconds, times GPUs per replica.
        cost: gpu_hours times the price of a GPU hour; None if no price is known.
        num_noted: images with pixel_notes.
        canary: what was found of its first images, in words; None if nothing was (yet).
        problems: those in the summary, if no shard has been committed since it was written.
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
    num_noted: int = 0
    canary: str | None = None
    problems: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        line: dict[str, Any] = values.pop("line")
        return line | values


def read_lines(store: Store, plans: Mapping[str, Mapping[str, Any]]) -> list[RunLine]:
    """Read the state of every run in brief; from its summary if that covers all its commits, else from the commits.

    Args:
        store: the output.
        plans: as plan_documents returns them.
    """
    return [_line(store, plan) for plan in plans.values()]


def read_progress(store: Store, plan: Mapping[str, Any], *, gpu_price: float | None = None) -> RunProgress:
    """Read the progress of a run from all its commits.

    Args:
        store: the output.
        plan: the run's plan, as plan_documents returns it.
        gpu_price: price of a GPU hour; by default that of the planned config.
    """
    config = _config(plan)
    commits = list(read_commits(store, plan["run_id"]))
    counts, reasons = Counter[str](), Counter[str]()
    for commit in commits:
        counts.update(commit.status_counts)
        reasons.update(commit.reason_counts)
    problems = _problems(store, plan["run_id"], len(commits))
    masks = sum(commit.annotations.rows for commit in commits)
    line = _line_of(plan, counts.total(), len(commits), masks, len(problems), _seems_stopped(commits))
    last = max((commit.committed_at for commit in commits), default=None)
    recent = _rate([c for c in commits if last is not None and c.committed_at >= last - RECENT_S])
    left = line.images - line.done
    gpu_hours = 0.0 if config is None else _gpu_hours(commits, config)
    price = config.pool.gpu_price_per_hour if gpu_price is None and config is not None else gpu_price
    canary = read_canary(store, plan["run_id"])
    waves = None if config is None else _waves(plan, config, {commit.shard_id for commit in commits})
    return RunProgress(
        line=line,
        counts=Status.counted(counts),
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
        num_noted=sum(commit.num_noted for commit in commits),
        canary=None if canary is None else told(canary, approved=is_approved(store, plan["run_id"])),
        problems=problems,
    )


def chosen_run(lines: Sequence[RunLine]) -> str:
    """Return the run to show if none is named: the last unfinished one, or else the last."""
    unfinished = [line for line in lines if line.state != "finished"]
    return (unfinished or lines)[-1].run_id


def replica_seconds(spans: Iterable[tuple[float, float]], shards_in_flight: int) -> float:
    """Return a lower bound of the time that all replicas together were busy, seconds.

    While c shards are in progress, at least c / shards_in_flight replicas (rounded up) work on them; that is exact as
    long as every replica has all its slots in use. Not included are loading models, idle replicas, failed attempts, and
    shards that are not committed yet.

    Args:
        spans: beginning and end of the labeling of each committed shard, seconds.
        shards_in_flight: number of shards that a replica works on at once.
    """
    # A sweep over beginnings and ends in order of time; at equal times ends come first, since -1 sorts before 1.
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    total, under_way, before = 0.0, 0, 0.0
    for at, change in changes:
        total += math.ceil(under_way / shards_in_flight) * (at - before)
        under_way, before = under_way + change, at
    return total


def _rate(commits: Sequence[ShardCommit]) -> float | None:
    """Return images per second over the time in which any of these shards was in progress; pauses do not count."""
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
    """Return the number of waves as planned, and how many of them are completely committed."""
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
        return _line_of(plan, done, num_committed, summary["num_annotations"], len(summary.get("problems", ())))
    commits = list(read_commits(store, run_id))
    done = sum(sum(commit.status_counts.values()) for commit in commits)
    masks = sum(commit.annotations.rows for commit in commits)
    return _line_of(plan, done, len(commits), masks, seems_stopped=_seems_stopped(commits))


def _seems_stopped(commits: Sequence[ShardCommit]) -> bool:
    """Return whether the next commit should have come long ago, by how long a shard took."""
    if not commits:
        return False
    longest_s = max(commit.elapsed_s for commit in commits)
    return time.time() - max(commit.committed_at for commit in commits) > 3 * longest_s + _PATIENCE_S


def _line_of(
    plan: Mapping[str, Any],
    done: int,
    committed: int,
    masks: int,
    num_problems: int = 0,
    seems_stopped: bool = False,
) -> RunLine:
    retry = plan.get("fingerprint", {}).get("retry")
    state = "finished" if committed >= plan["num_shards"] else "unfinished" if committed else "not begun"
    return RunLine(
        run_id=plan["run_id"],
        sequence=plan.get("sequence", 0),
        retry_of=retry and retry["run_id"],
        relabeled=relabeled(plan),
        planned_at=plan.get("facts", {}).get("planned_at"),
        state=state,
        images=plan["num_images"],
        done=done,
        masks=masks,
        num_problems=num_problems,
        seems_stopped=seems_stopped and state == "unfinished",
    )


def _problems(store: Store, run_id: str, committed: int) -> tuple[str, ...]:
    summary = readable_summary(store, run_id)
    return tuple(summary.get("problems", ())) if summary.get("committed") == committed else ()
