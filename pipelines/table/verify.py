"""Verify a run: recompute from its objects everything that its commits claim, and report each discrepancy."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, SCHEMA_VERSION, Kind, split_commit_name, split_data_name
from pipelines.planning.erasures import Forgotten, read_forgotten
from pipelines.planning.plan import Plan, require_plan
from pipelines.redaction import counted, named
from pipelines.storage.store import Store
from pipelines.table.commits import commit_files, data_files, inspect_commits
from pipelines.table.correction_checks import untrue_corrections
from pipelines.table.file_checks import hash_problem, size_problem
from pipelines.table.run_summary import read_summary
from pipelines.table.schema import SCHEMAS, VERSION_KEY, schema_of
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import Status

_READERS = 8
_MENDED_BY_CHECK = "`run --check` labels it again (of a retry `retry --check`, of an import `import` of its file)"


@dataclass(frozen=True, slots=True)
class TableSize:
    """The number and size of a run's objects, and a digest that identifies them.

    Attributes:
        num_files, num_bytes: of data files and commits.
        names_sha256: digest of their names and sizes. Numbers alone may agree by chance: the files of two attempts at a
            shard often have the same size.
    """

    num_files: int = 0
    num_bytes: int = 0
    names_sha256: str = ""


@dataclass(slots=True)
class VerifyReport:
    """The result of verify.

    Attributes:
        run_id: the run.
        listed: images in the plan.
        num_annotations: masks in committed shards.
        status_counts: images by status, from the commits and (deep) recounted from the rows.
        reason_counts: quarantined images by reason.
        shards, committed: planned and committed shards.
        size: number and bytes of the run's commits and the files they name.
        commits: the commits that were read, in shard order.
        problems: a message for every discrepancy, naming its object; empty if the table is whole.
        notes: messages for damage that puts no row at risk and that the next run repairs.
        leftovers: data files of the run that no commit names.
        broken: committed shards of which a file is missing or truncated, or the commit is damaged.
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
    notes: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every planned image has exactly one row and every committed object matches its commit."""
        return not self.problems

    def ledger(self) -> dict[str, Any]:
        """Return the counts of listed images and of each status; in a whole table these add up to the listed ones."""
        return {"listed": self.listed, **Status.counted(self.status_counts)}


def verify(
    store: Store, run_id: str, *, deep: bool = True, on_shard: Callable[[str], None] | None = None
) -> VerifyReport:
    """Check a run's invariants against the objects themselves.

    Args:
        store: the output.
        run_id: the run.
        deep: whether to read every file, the plan's too, and check hashes, schemas, rows and that images match the
            plan. Otherwise one listing checks that files exist with the committed sizes, and counts are the commits'.
        on_shard: called with the id of each shard once it is checked, for progress.

    Raises:
        PlanError: there is no such run.
    """
    report = VerifyReport(run_id=run_id)
    plan = _read_plan(store, run_id, report)
    # In this order, since a run may go on meanwhile: a file is written before its commit, so the later listing shows
    # every file that a commit read here names. What is committed in between appears as leftovers, not as damage.
    commit_sizes = commit_files(store, run_id)
    found = dict(inspect_commits(store, run_id, commit_sizes))
    sizes = data_files(store, run_id)
    commits = [commit for commit in found.values() if isinstance(commit, ShardCommit)]
    report.commits, report.committed = commits, len(found)
    missing = [] if plan is None else sorted(set(plan.shard_ids()) - found.keys())
    if missing:
        report.problems.append(
            f"{counted(len(missing), 'planned shard is', 'planned shards are')} not committed: {_some(missing)}"
        )
    for shard_id, commit in found.items():
        if isinstance(commit, ShardCommit):
            _count(store, plan, commit, sizes, report)
        else:
            report.broken.append(shard_id)
            report.problems.append(f"{shard_id}: {commit}; {_MENDED_BY_CHECK}")
    report.leftovers = sorted(sizes)
    # The files that commits name, not those that the listing shows: a listing that lags lacks files that are found by
    # name, and the summary would then vouch for their absence once they are gone. Leftovers are left out: if one could
    # not be removed, the sizes differ, and the next run looks again and tries again to remove it.
    committed_files = {file.name: file.num_bytes for commit in commits for file in commit.files()}
    report.size = _size(committed_files, commit_sizes)
    if deep:
        _check_rows(store, plan, commits, report, on_shard)
        _check_unlisted(store, plan, report)
    elif plan is not None:
        report.problems += filter(None, (plan.part_problem(store, part) for part in plan.files))
    is_whole = plan is not None and not missing and len(commits) == len(found)
    if is_whole and report.status_counts.total() != report.listed:
        report.problems.append(f"{counted(report.listed, 'image')} listed, but {_sum_of(report.status_counts)}")
    return report


def _read_plan(store: Store, run_id: str, report: VerifyReport) -> Plan | None:
    """Read the plan and check the summary, noting damage. Without a plan the run's files are still checked."""
    try:
        read_summary(store, run_id)
    except DamagedError as error:
        report.notes.append(f"{error}; nothing needs it, and the next run writes it again")
    try:
        plan = require_plan(store, run_id, oldest=1)
    except DamagedError as error:
        report.problems.append(str(error))
        return None
    report.listed, report.shards = plan.num_images, plan.num_shards
    return plan


def _count(store: Store, plan: Plan | None, commit: ShardCommit, sizes: dict[str, int], report: VerifyReport) -> None:
    """Add a commit's counts to the report, check its files and take them out of ``sizes``: the rest are leftovers."""
    if plan is not None:
        report.problems += _ledger_problems(plan, commit)
    report.num_annotations += commit.annotations.rows
    report.status_counts.update(commit.status_counts)
    report.reason_counts.update(commit.reason_counts)
    problems = [size_problem(store, file, sizes) for file in commit.files()]
    for file in commit.files():
        sizes.pop(file.name, None)
    if wrong := [problem for problem in problems if problem]:
        report.broken.append(commit.shard_id)
        report.problems += [f"{commit.shard_id}: {problem}; the next run labels it again" for problem in wrong]


def table_size(store: Store, run_id: str) -> TableSize:
    """Return the number and bytes of a run's data files and commits, by listings alone; no object is read."""
    return _size(data_files(store, run_id), commit_files(store, run_id))


def table_sizes(store: Store, listed: Mapping[str, int] | None = None) -> Mapping[str, TableSize]:
    """Return the same of every run of an output, by as few listings as of one; of any other name that of nothing.

    Args:
        store: the output.
        listed: the objects below ``_runs`` with their sizes, if they have been listed.
    """
    files = defaultdict[str, dict[str, int]](dict)
    for prefix, split in (*((kind, split_data_name) for kind in KINDS), ("_runs", split_commit_name)):
        found = listed if prefix == "_runs" and listed is not None else store.find(prefix)
        for name, size in found.items():
            if split(name) is not None:
                files[name.split("/")[1]][name] = size
    return defaultdict(lambda: _size({}, {}), {run_id: _size(sizes, {}) for run_id, sizes in files.items()})


def _size(data: Mapping[str, int], commits: Mapping[str, int]) -> TableSize:
    sizes = {**data, **commits}
    names = "".join(f"{name}\0{size}\n" for name, size in sorted(sizes.items()))
    return TableSize(len(sizes), sum(sizes.values()), hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest())


def _some(names: list[str]) -> str:
    return ", ".join(map(named, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _ledger_problems(plan: Plan, commit: ShardCommit) -> Iterator[str]:
    """Yield what does not add up in a shard: each image is ok, empty or quarantined, and quarantine has a reason."""
    planned = plan.images_in(commit.shard_id)
    if planned is not None and planned != sum(commit.status_counts.values()):
        yield f"{commit.shard_id}: {counted(planned, 'image')} planned, but {_sum_of(commit.status_counts)}"
    if commit.images.rows != sum(commit.status_counts.values()):
        yield (
            f"{commit.shard_id}: {counted(commit.images.rows, 'row')} committed, but {_sum_of(commit.status_counts)}"
        )
    quarantined, reasons = commit.status_counts.get(Status.QUARANTINED, 0), sum(commit.reason_counts.values())
    if quarantined != reasons:
        yield (
            f"{commit.shard_id}: {counted(quarantined, 'image')} quarantined, but {counted(reasons, 'reason')} counted"
        )


def _sum_of(counts: Mapping[str, int]) -> str:
    shown = (name for name, count in Status.counted(counts).items() if count or name != Status.NOT_ASKED)
    parts = " + ".join(f"{counts.get(name, 0)} {name}" for name in shown)
    return f"{parts} = {sum(counts.values())}"


def _check_rows(
    store: Store,
    plan: Plan | None,
    commits: list[ShardCommit],
    report: VerifyReport,
    on_shard: Callable[[str], None] | None,
) -> None:
    by_shard = {commit.shard_id: commit for commit in commits}
    shards = _planned_ids(store, plan, by_shard, report)
    try:
        forgotten = read_forgotten(store)
    except DamagedError as error:  # of which erasure_problems tells
        report.notes.append(str(error))
        forgotten = Forgotten()
    with ThreadPoolExecutor(_READERS) as readers:
        # A few at a time: the image lists of a large plan do not fit into memory together.
        while group := list(islice(shards, 4 * _READERS)):
            found = readers.map(
                lambda shard: list(_shard_problems(store, by_shard[shard[0]], shard[1], forgotten)), group
            )
            for (shard_id, _), problems in zip(group, found, strict=True):
                report.problems += [f"{shard_id}: {problem}" for problem in problems]
                if on_shard:
                    on_shard(shard_id)


def _check_unlisted(store: Store, plan: Plan | None, report: VerifyReport) -> None:
    try:
        if plan is not None:
            plan.unlisted_ids(store)
    except DamagedError as error:
        report.problems.append(str(error))


def _planned_ids(
    store: Store, plan: Plan | None, committed: Collection[str], report: VerifyReport
) -> Iterator[tuple[str, list[str] | None]]:
    """Yield every committed shard with the ids of its planned images; None if the plan cannot be read."""
    if plan is None:
        yield from ((shard_id, None) for shard_id in committed)
        return
    if unplanned := sorted(set(committed) - set(plan.shard_ids())):
        report.problems.append(
            f"{counted(len(unplanned), 'shard is', 'shards are')} committed and not planned: {_some(unplanned)}"
        )
    for part, shard_ids in plan.shards_by_part():
        left = dict.fromkeys(shard_id for shard_id in shard_ids if shard_id in committed)
        try:
            for shard_id, image_ids in plan.image_ids(store, part):
                if shard_id in left:
                    del left[shard_id]
                    yield shard_id, image_ids
        except DamagedError as error:
            report.problems.append(str(error))
        # Shards of a damaged part: their files are checked all the same.
        yield from left.items()


def _shard_problems(
    store: Store, commit: ShardCommit, planned: list[str] | None, forgotten: Forgotten
) -> Iterator[str]:
    """Yield the discrepancies between a commit, its two files and the ids of the shard's planned images."""
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
    # In order, too: retries merge plans and rows as sorted streams. Until an erasure has ended, only one of the two may
    # have forgotten an image.
    if planned is not None and forgotten.aligned(images["image_id"].to_pylist()) != forgotten.aligned(planned):
        yield f"{commit.images.name} does not hold exactly one row for each planned image, in order"
    statuses = Counter(images["status"].to_pylist())
    if statuses != Counter(dict(commit.status_counts)):
        yield f"{commit.images.name} counts {dict(statuses)}, committed {dict(commit.status_counts)}"
    reasons = Counter(filter(None, images["reason"].to_pylist()))
    if reasons != Counter(dict(commit.reason_counts)):
        yield f"{commit.images.name} gives reasons {dict(reasons)}, committed {dict(commit.reason_counts)}"
    if commit.num_noted and (noted := len(images["pixel_notes"].drop_null())) != commit.num_noted:
        yield f"{commit.images.name} has {counted(noted, 'image')} with pixel_notes, committed {commit.num_noted}"
    masks = Counter(annotations["image_id"].to_pylist())
    claimed = dict(zip(images["image_id"].to_pylist(), images["num_annotations"].to_pylist(), strict=True))
    wrong = [image for image in claimed | masks if claimed.get(image) != masks[image]]
    if wrong:
        yield f"num_annotations differs from the rows of {commit.annotations.name} for {_some(wrong)}"
    if untrue := untrue_corrections(images, annotations):
        yield f"corrections differ from the rows of {commit.annotations.name} for {_some(untrue)}"


def _read_file(store: Store, kind: Kind, file: DataFile) -> tuple[str | None, pa.Table | None]:
    try:
        data = store.read(file.name)
    except FileNotFoundError:
        return None, None  # already reported from the listing
    if problem := hash_problem(data, file):
        return f"{problem}; {_MENDED_BY_CHECK}", None
    # Only after the hash: pyarrow is not given bytes other than those that were written.
    table = pq.read_table(io.BytesIO(data))
    problem = _table_problem(table, kind, file)
    return problem, None if problem else table


def _table_problem(table: pa.Table, kind: Kind, file: DataFile) -> str | None:
    version = int((table.schema.metadata or {}).get(VERSION_KEY, 0))
    if version > SCHEMA_VERSION:
        return f"{file.name} was written by a newer version (table schema {version}); upgrade to verify it"
    if table.schema != schema_of(SCHEMAS[kind], version):
        return f"{file.name} has another schema than version {version} of it"
    if table.num_rows != file.rows:
        return f"{file.name} has {counted(table.num_rows, 'row')}, committed {file.rows}"
    return None
