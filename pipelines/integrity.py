"""Is the table whole? verify recomputes every claim from the objects."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.manifest import Plan, require_plan, run_folder
from pipelines.repairs import file_problem
from pipelines.storage import Store
from pipelines.table import KINDS, SCHEMAS, DataFile, Kind, ShardCommit, data_files, read_commits
from pipelines.types import Shard, Status

_READERS = 8


@dataclass(frozen=True, slots=True)
class TableSize:
    """How many objects a run's shards have, data files and commits, and their bytes."""

    num_files: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class VerifyReport:
    """What verify found.

    Attributes:
        run_id: the run.
        listed: images in the plan.
        num_annotations: masks in committed shards.
        status_counts: images by status, from the commits and (deep) recounted from the rows.
        reason_counts: quarantined images by reason.
        shards, committed: planned and committed shards.
        size: what the run's shards take, data files that no commit names included.
        commits: the commits that were read, in shard order.
        problems: every discrepancy in words, naming its object; empty when the table is whole.
        leftovers: data files of the run that no commit names.
        broken: committed shards of which a file is gone or cut short.
    """

    run_id: str
    listed: int = 0
    num_annotations: int = 0
    status_counts: Counter[str] = field(default_factory=Counter)
    reason_counts: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    committed: int = 0
    size: TableSize = TableSize()
    commits: list[ShardCommit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every planned image has its one row and every committed object is as its commit says."""
        return not self.problems

    def ledger(self) -> dict[str, Any]:
        """Return listed and its parts: listed = ok + empty + quarantined in a whole table."""
        return {"listed": self.listed, **{status.value: self.status_counts[status.value] for status in Status}}


def verify(
    store: Store, run_id: str, *, deep: bool = True, on_shard: Callable[[str], None] | None = None
) -> VerifyReport:
    """Check a run's invariants against the objects themselves.

    Args:
        store: the output.
        run_id: the run.
        deep: read every data file and check hash, schema, rows and that images match the plan; otherwise one listing
            checks that the files exist with their committed sizes, and the counts are the commits'.
        on_shard: called with each shard id when it is done, for progress.

    Raises:
        PlanError: there is no such run.
    """
    plan = require_plan(store, run_id)
    report = VerifyReport(run_id=run_id, listed=plan.num_images, shards=plan.num_shards)
    # In this order: whatever a commit names is there by the time of the listing, also while the run goes on.
    commits = list(read_commits(store, run_id))
    sizes = data_files(store, run_id)
    report.commits, report.committed, report.size = commits, len(commits), _size(store, run_id, sizes)
    missing = sorted(set(plan.shard_ids()) - {commit.shard_id for commit in commits})
    if missing:
        report.problems.append(f"{len(missing)} planned shards are not committed: {_some(missing)}")
    for commit in commits:
        report.problems += _ledger_problems(plan, commit)
        report.num_annotations += commit.annotations.rows
        report.status_counts.update(commit.status_counts)
        report.reason_counts.update(commit.reason_counts)
        is_listed = [sizes.pop(file.name, None) == file.num_bytes for file in commit.files()]
        # A listing may be late: what it does not show is asked for by name.
        if not all(is_listed) and (problem := file_problem(store, commit)):
            report.broken.append(commit.shard_id)
            report.problems.append(f"{commit.shard_id}: {problem}; the next run labels it again")
    report.leftovers = sorted(sizes)
    if deep:
        _check_rows(store, plan, commits, report, on_shard)
    _check_ledger(report, complete=not missing)
    return report


def table_size(store: Store, run_id: str) -> TableSize:
    """Return what a run's shards take, by listings alone; no object is read."""
    return _size(store, run_id, data_files(store, run_id))


def _size(store: Store, run_id: str, data_files: Mapping[str, int]) -> TableSize:
    sizes = [*data_files.values(), *store.find(f"{run_folder(run_id)}/commits").values()]
    return TableSize(num_files=len(sizes), num_bytes=sum(sizes))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _ledger_problems(plan: Plan, commit: ShardCommit) -> Iterator[str]:
    """Yield what does not add up in a shard: its images are ok, empty or quarantined, the last for a reason each."""
    planned = plan.images_in(commit.shard_id)
    if planned is not None and planned != sum(commit.status_counts.values()):
        yield f"{commit.shard_id}: {planned} images planned, but {_sum_of(commit.status_counts)}"
    if commit.images.rows != sum(commit.status_counts.values()):
        yield f"{commit.shard_id}: {commit.images.rows} rows committed, but {_sum_of(commit.status_counts)}"
    quarantined, reasons = commit.status_counts.get(Status.QUARANTINED, 0), sum(commit.reason_counts.values())
    if quarantined != reasons:
        yield f"{commit.shard_id}: {quarantined} images quarantined, but {reasons} reasons counted"


def _sum_of(counts: Mapping[str, int]) -> str:
    parts = " + ".join(f"{counts.get(status.value, 0)} {status.value}" for status in Status)
    return f"{parts} = {sum(counts.values())}"


def _check_ledger(report: VerifyReport, *, complete: bool) -> None:
    if complete and report.status_counts.total() != report.listed:
        report.problems.append(f"{report.listed} images listed, but {_sum_of(report.status_counts)}")


def _check_rows(
    store: Store,
    plan: Plan,
    commits: list[ShardCommit],
    report: VerifyReport,
    on_shard: Callable[[str], None] | None,
) -> None:
    by_shard = {commit.shard_id: commit for commit in commits}
    shards = plan.shards(store, by_shard)
    with ThreadPoolExecutor(_READERS) as readers:
        # A few at a time: the image lists of a large plan do not fit into memory together.
        while group := list(islice(shards, 4 * _READERS)):
            found = readers.map(lambda shard: list(_shard_problems(store, by_shard[shard.shard_id], shard)), group)
            for shard, problems in zip(group, found, strict=True):
                report.problems += [f"{shard.shard_id}: {problem}" for problem in problems]
                if on_shard:
                    on_shard(shard.shard_id)


def _shard_problems(store: Store, commit: ShardCommit, shard: Shard) -> Iterator[str]:
    """Yield what is wrong between one commit, its two files and the planned shard."""
    tables: dict[Kind, pa.Table] = {}
    for kind, file in zip(KINDS, commit.files(), strict=True):
        problem, table = _read_file(store, kind, file)
        if problem:
            yield problem
        if table is not None:
            tables[kind] = table
    if len(tables) < len(KINDS):
        return
    images, annotations = tables["images"], tables["annotations"]
    planned = [ref.image_id for ref in shard.images]
    if images["image_id"].to_pylist() != planned:
        yield f"{commit.images.name} does not hold exactly one row for each planned image, in order"
    statuses = Counter(images["status"].to_pylist())
    if statuses != Counter(dict(commit.status_counts)):
        yield f"{commit.images.name} counts {dict(statuses)}, committed {dict(commit.status_counts)}"
    reasons = Counter(filter(None, images["reason"].to_pylist()))
    if reasons != Counter(dict(commit.reason_counts)):
        yield f"{commit.images.name} gives reasons {dict(reasons)}, committed {dict(commit.reason_counts)}"
    masks = Counter(annotations["image_id"].to_pylist())
    claimed = dict(zip(images["image_id"].to_pylist(), images["num_annotations"].to_pylist(), strict=True))
    wrong = [image for image in claimed | masks if claimed.get(image) != masks[image]]
    if wrong:
        yield f"num_annotations differs from the rows of {commit.annotations.name} for {_some(wrong)}"


def _read_file(store: Store, kind: Kind, file: DataFile) -> tuple[str | None, pa.Table | None]:
    try:
        data = store.read(file.name)
    except FileNotFoundError:
        return None, None  # the listing has already said so
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return f"{file.name} does not have the committed SHA-256", None
    table = pq.read_table(io.BytesIO(data))
    if table.schema != SCHEMAS[kind]:
        return f"{file.name} has another schema", None
    if table.num_rows != file.rows:
        return f"{file.name} has {table.num_rows} rows, committed {file.rows}", None
    return None, table
