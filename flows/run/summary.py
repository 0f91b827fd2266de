"""The summary of a run: shown to the user, stored as summary.json, and the basis of the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from actors.pool.runner import ShardFailure
from pipelines.errors import DamagedError, UserError
from pipelines.planning.plan import Plan, retries_by_run
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.run_summary import read_summary
from pipelines.table.verify import TableSize, VerifyReport
from pipelines.types import RejectedPrompt

_MAX_REPORTED = 1000
_MAX_REPORTED_FAILURES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How a run ended; also the content of ``summary.json``.

    Attributes:
        run_id, output: the run and its output.
        ledger: numbers of listed, ok, empty, not_asked and quarantined images, and of forgotten ones if there are any;
            those after the first add up to it.
        reason_counts: quarantined images by reason.
        num_annotations: masks in the table.
        shards, committed: planned and committed shards.
        num_files, num_bytes: number and size of the run's data files and commits.
        names_sha256: digest of their names and sizes.
        labelled_now: shards that this invocation labeled; 0 if there was nothing left to do.
        problems: what verify found wrong, and shards that failed; empty if the run succeeded.
        fruitless: that not one image could be labeled, and why; empty if one could. Such a run is complete, for every
            image has its row, but it has failed.
        warnings: problems that do no harm to the table.
        rejected_prompts: the first thousand prompts of single images that could not be asked, with row and reason.
        num_rejected_prompts: number of all of them.
        elapsed_s: wall-clock seconds of this invocation, from the beginning of planning.
        model_s: seconds in the model over all committed shards.
        facts: versions, device, weights, times, and the errors of failed shards with their tracebacks.
    """

    run_id: str
    output: str
    ledger: dict[str, int]
    reason_counts: dict[str, int]
    num_annotations: int
    shards: int
    committed: int
    num_files: int = 0
    num_bytes: int = 0
    names_sha256: str = ""
    labelled_now: int = 0
    problems: list[str] = field(default_factory=list)
    fruitless: str = ""
    warnings: list[str] = field(default_factory=list)
    rejected_prompts: list[dict[str, Any]] = field(default_factory=list)
    num_rejected_prompts: int = 0
    elapsed_s: float = 0.0
    model_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every listed image is accounted for and every object matches its commit."""
        return not self.problems

    @property
    def has_succeeded(self) -> bool:
        """Whether the run is complete, and any of its images could be labeled: exit code 0."""
        return self.ok and not self.fruitless

    @property
    def failures(self) -> list[str]:
        """Everything that makes the run a failure, including that no image could be labeled; empty on success."""
        return [*self.problems, *filter(None, [self.fruitless])]

    def is_current(self, plan: Plan, size: TableSize) -> bool:
        """Whether the run was complete and its objects are still listed with the same names and sizes."""
        is_whole = self.ok and self.shards == self.committed == plan.num_shards
        return is_whole and self.names_sha256 == size.names_sha256

    def same_outcome_as(self, other: RunSummary | None) -> bool:
        """Whether another invocation of the run ended in the same state; False if there was none."""
        names = ("ledger", "committed", "names_sha256", "problems")
        return other is not None and all(getattr(self, name) == getattr(other, name) for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunSummary:
        """Read the values of to_dict, possibly written by an earlier version.

        Raises:
            KeyError: a value that a summary has now is missing.
        """
        # Warnings are about one invocation, such as a leftover that it could not remove, and are not carried on. What
        # was fruitless then may have been mended by a retry.
        told = (name for name in cls.__slots__ if name not in ("warnings", "fruitless"))
        return cls(**{name: document[name] for name in told})


def read_run_summary(store: Store, run_id: str) -> RunSummary | None:
    """Read the summary an earlier invocation left; None if there is none, or none that this version can read.

    Nothing depends on it: without a summary, a run looks at its objects themselves, and writes the summary again.
    """
    try:
        document = read_summary(store, run_id)
        return None if document is None else RunSummary.from_dict(document)
    except (DamagedError, KeyError):
        return None


def why_fruitless(store: Store, plan: Plan, summary: RunSummary, *, is_update: bool) -> str:
    """Return that not one image of a run could be labeled, and why; empty if one could.

    A retry is not judged: its images were known to be bad. Nor is a run that was complete before, once other runs have
    labeled some of its images: its retries, or for an update that had nothing to ask any run.
    """
    listed = summary.ledger["listed"] - summary.ledger.get("forgotten", 0)
    bad = summary.ledger["quarantined"]
    if not summary.ok or not listed or bad != listed or plan.retry_of is not None:
        return ""
    if not summary.labelled_now:
        retries = retries_by_run(store)
        every = [*retries, *(name for names in retries.values() for name in names)]
        told = (read_run_summary(store, run_id) for run_id in (every if is_update else retries.get(plan.run_id, ())))
        if any(one.ledger["quarantined"] < one.ledger["listed"] for one in told if one is not None):
            return ""
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in Counter(summary.reason_counts).most_common(3))
    return (
        f"not one of its {listed:,} images could be labeled ({reasons}): their rows in `images` say more. Remove the "
        f"cause, then label them again: xsam-label retry {summary.output}"
    )


class RunFailedError(UserError, RuntimeError):
    """A run ended with listed images unaccounted for. What is committed is kept; the same command resumes the run."""

    def __init__(self, summary: RunSummary) -> None:
        problems = "\n".join(f"  {problem}" for problem in summary.problems[:20])
        incomplete = (
            f"run {summary.run_id} is not complete:\n{problems}\n{summary.committed:,} of "
            f"{counted(summary.shards, 'shard')} are "
            "committed and kept; the same command resumes the run."
        )
        super().__init__(f"run {summary.run_id}: {summary.fruitless}" if summary.ok else incomplete)
        self.summary = summary


def rejected_row(rejected: RejectedPrompt) -> dict[str, Any]:
    """Return a rejected prompt as plain JSON values."""
    return {"row": rejected.row, "prompt_id": rejected.prompt_id, "image": rejected.image, "reason": rejected.reason}


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    packages = ("xsam-label", "torch", "transformers", "ray", "prefect", "pyarrow", "pycocotools", "numpy")
    for name in (*packages, "pillow", "simplejpeg"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def summarize(
    store: Store,
    plan: Plan,
    report: VerifyReport,
    *,
    failures: list[ShardFailure],
    stopped: str,
    committed_before: int,
    elapsed_s: float,
    warnings: Sequence[str] = (),
) -> RunSummary:
    """Summarize a run from its verify report."""
    # Prompts are rejected twice: by planning, and by shards, once an image's size is known.
    rejected = list(plan.facts.get("rejected_prompts", []))
    model_s, num_noted, devices = 0.0, 0, Counter[str]()
    predictor: dict[str, str] = {}
    for commit in report.commits:
        rejected += [dict(row) for row in commit.rejected_prompts]
        model_s += commit.model_s
        num_noted += commit.num_noted
        devices[commit.predictor.get("device", "unknown")] += 1
        predictor = dict(commit.predictor)
    rejected.sort(key=lambda row: row["row"])
    return RunSummary(
        run_id=plan.run_id,
        output=store.uri,
        ledger=report.ledger(),
        reason_counts=dict(report.reason_counts),
        num_annotations=report.num_annotations,
        shards=report.shards,
        committed=report.committed,
        num_files=report.size.num_files,
        num_bytes=report.size.num_bytes,
        names_sha256=report.size.names_sha256,
        labelled_now=max(0, report.committed - len(report.broken) - committed_before),
        problems=[
            *([stopped] if stopped else []),
            *report.problems,
            *(_failure(f) for f in failures),
        ],
        warnings=list(warnings),
        rejected_prompts=rejected[:_MAX_REPORTED],
        num_rejected_prompts=len(rejected),
        elapsed_s=round(elapsed_s, 3),
        model_s=round(model_s, 3),
        facts={
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": dict(versions()),
            "shards_by_device": dict(devices),
            "predictor": predictor,
            "images_with_pixel_notes": num_noted,
            "failures": [
                {"shard_id": f.shard_id, "kind": f.kind, "attempts": f.attempts, "error": f.error}
                for f in failures[:_MAX_REPORTED_FAILURES]
            ],
        },
    )


def _failure(failure: ShardFailure) -> str:
    """Describe a shard's failure in one line; summary.json has the traceback."""
    what = "was not finished" if failure.kind == "unfinished" else f"failed {failure.attempts} times"
    return f"{failure.shard_id} {what}: {failure.error.partition(chr(10))[0] or failure.kind}"
