"""The names of all objects in an output, and the versions of its three formats. Nothing is read or written here.

annotations/RUN/shard-00000-ATTEMPT.parquet    one row per mask
images/RUN/shard-00000-ATTEMPT.parquet         one row per image
_runs/RUN/plan.json, plan-*.parquet            the plan: what the run labels; a run is planned once plan.json exists
_runs/RUN/plan.erased-1                        the plan without images that were forgotten; supersedes the one before
_runs/RUN/commits/shard-00000.json             the commit: makes a shard's two files part of the table
_runs/RUN/commits/shard-00000.repair-1         a repair: supersedes a commit whose files are gone or damaged
_runs/RUN/summary.json, report.html            how the run ended; for people, the table does not depend on them
_runs/RUN/canary.json, approved.json           what a run's first images were like; that it may go on all the same
_runs/.run-000001                              the id of a run, found by number where a listing lags
_runs/.erasure-000001, .erasure-000001-done    that images were to be forgotten, and that they are
_runs/.history-000001, .history-000001-*       what finished runs have planned, gathered; made from their plans
_runs/.compacted-000001                        names the files of a compaction, and what they hold
compacted/000001-ID/annotations/part-*.parquet a compaction: all committed rows once more, in few files; and images/
annotations/_delta_log/000..000.json           a version of the table's Delta log, if it was published; and images/
annotations/_current/RUN/shard-00000-ID        what is current of a shard of which other rows are replaced, for that log
README.md                                      tells Hugging Face datasets where the two tables are; for people, too

Dataset readers (pyarrow, Spark, DuckDB) skip names that begin with an underscore, so that they see data files only.
"""

from __future__ import annotations

import re
from typing import Literal

PLAN_FORMAT = 2
COMMIT_FORMAT = 1
SCHEMA_VERSION = 5
"""Version of the table's columns; CHANGELOG.md says what changed with each."""

Kind = Literal["annotations", "images"]
KINDS: tuple[Kind, Kind] = ("annotations", "images")
PROBE_PREFIX = "_runs/.probe-"
COMPACTED = "compacted"
"""The folder of all compactions."""
CARD_NAME = "README.md"
EXPORT_MARK = ".xsam-label-export"
"""A file in every exported folder: its pictures are no new images of a source around it. It sorts first there."""
# Matched in full: people and other programs put files of their own into these folders (.DS_Store, _SUCCESS).
# Repairs do not end in .json, so that versions that know nothing of them leave them alone.
_COMMIT_NAME = re.compile(r"_runs/[^/]+/commits/(?P<shard_id>shard-\d{5,})(\.json|\.repair-(?P<repair>[1-9]\d*))")
_DATA_NAME = re.compile(
    r"(annotations|images)/[^/]+/(?P<shard_id>shard-\d{5,})-(repair-(?P<repair>[1-9]\d*)-)?(?P<attempt>[^/]+)\.parquet"
)
_NUMBERED = re.compile(r"_runs/\.(run-\d{6,}|erasure-\d{6,}(-done)?)")
_HISTORY = re.compile(r"_runs/\.history-(\d{6,})(-[^/]+\.parquet)?")
_COMPACTED = re.compile(r"_runs/\.compacted-(\d{6,})")
_COMPACTED_FILE = re.compile(r"(compacted/(\d{6,})-[^/]+)/(annotations|images)/part-\d{5,}\.parquet")
_DELTA_LOG = re.compile(r"(annotations|images)/_delta_log/(\d{20})\.json")
_CURRENT_FILE = re.compile(r"(annotations|images)/_current/[^/]+/shard-\d{5,}-[^/.]+")
_OF_RUN = re.compile(
    r"_runs/[^/]+/(plan\.json|plan\.erased-[1-9]\d*|plan-[^/]+\.parquet|(summary|canary|approved)\.json|report\.html)"
)


def run_folder(run_id: str) -> str:
    """Return the folder of a run's plan, commits and summary, relative to the output."""
    return f"_runs/{run_id}"


def plan_name(run_id: str, erased: int = 0) -> str:
    """Return the name of a run's plan, relative to the output. The run is planned once this object exists.

    Args:
        run_id: the run.
        erased: 0 for the plan as it was made, K for the one that superseded it when images were forgotten again.
    """
    return f"{run_folder(run_id)}/{f'plan.erased-{erased}' if erased else 'plan.json'}"


def registered_name(number: int) -> str:
    """Return the object that holds the id of the output's run of this number, counted from 1."""
    return f"_runs/.run-{number:06d}"


def erasure_name(number: int, *, done: bool = False) -> str:
    """Return the object that tells which images the output's erasure of this number, counted from 1, is about.

    Args:
        number: of the erasure.
        done: the object that tells of its end instead.
    """
    return f"_runs/.erasure-{number:06d}{'-done' if done else ''}"


def history_name(number: int, part: str = "") -> str:
    """Return the object that gathers the plans of finished runs, the output's one of this number, counted from 1.

    Args:
        number: of the history.
        part: what tells one of its files from all others; empty for the object that names them.
    """
    return f"_runs/.history-{number:06d}{f'-{part}.parquet' if part else ''}"


def history_number(name: str) -> int | None:
    """Return the number of the history that an object belongs to; None if it belongs to none."""
    found = _HISTORY.fullmatch(name)
    return int(found[1]) if found else None


def compacted_name(number: int) -> str:
    """Return the object that names the files of the output's compaction of this number, counted from 1."""
    return f"_runs/.compacted-{number:06d}"


def compacted_number(name: str) -> int | None:
    """Return the number of the compaction that an object tells of; None if it tells of none."""
    found = _COMPACTED.fullmatch(name)
    return int(found[1]) if found else None


def compacted_folder(number: int, unique: str) -> str:
    """Return the folder of the files of a compaction: unique to its writer, as the files of an attempt are."""
    return f"{COMPACTED}/{number:06d}-{unique}"


def compacted_file(folder: str, kind: Kind, number: int) -> str:
    """Return the name of a file of a compaction, relative to the output."""
    return f"{folder}/{kind}/part-{number:05d}.parquet"


def split_compacted_file(name: str) -> tuple[str, int] | None:
    """Split the name of a file of a compaction into (folder, number of the compaction); None if it is not one."""
    found = _COMPACTED_FILE.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def delta_log_folder(kind: Kind) -> str:
    """Return the folder of a table's Delta log, where readers of such tables look for it."""
    return f"{kind}/_delta_log"


def delta_log_name(kind: Kind, version: int) -> str:
    """Return the name of a version of a table's Delta log, counted from 0."""
    return f"{delta_log_folder(kind)}/{version:020d}.json"


def delta_log_version(name: str) -> int | None:
    """Return the version that an object of a Delta log tells of; None if it tells of none."""
    found = _DELTA_LOG.fullmatch(name)
    return int(found[2]) if found else None


def current_folder(kind: Kind) -> str:
    """Return the folder of the files that hold what is current of shards of which other rows are replaced."""
    return f"{kind}/_current"


def current_name(kind: Kind, run_id: str, shard_id: str, unique: str) -> str:
    """Return the name of such a file: without .parquet, so that no pattern for the committed files matches it."""
    return f"{current_folder(kind)}/{run_id}/{shard_id}-{unique}"


def is_current_file(name: str) -> bool:
    """Return whether an object is such a file."""
    return _CURRENT_FILE.fullmatch(name) is not None


def summary_name(run_id: str) -> str:
    """Return the name of a run's summary, relative to the output."""
    return f"{run_folder(run_id)}/summary.json"


def report_name(run_id: str) -> str:
    """Return the name of the report that a run leaves beside its summary, relative to the output."""
    return f"{run_folder(run_id)}/report.html"


def canary_name(run_id: str) -> str:
    """Return the name of what was found of a run's first images, relative to the output."""
    return f"{run_folder(run_id)}/canary.json"


def approval_name(run_id: str) -> str:
    """Return the name of the object that lets a run go on whatever its first images are like."""
    return f"{run_folder(run_id)}/approved.json"


def shard_name(number: int) -> str:
    """Return the id of the shard at a position in the plan."""
    return f"shard-{number:05d}"


def shard_number(shard_id: str) -> int:
    """Return a shard's position in the plan."""
    return int(shard_id.rpartition("-")[2])


def data_name(kind: Kind, run_id: str, shard_id: str, attempt: str, repair: int = 0) -> str:
    """Return the name of a shard's data file, relative to the output: unique to the attempt, with the repair's number.

    The number keeps the files of a repair from being taken for losers before it commits, though the commit that it is
    to supersede may look whole.
    """
    return f"{kind}/{run_id}/{shard_id}-{f'repair-{repair}-' if repair else ''}{attempt}.parquet"


def due_commit_of(name: str) -> int:
    """Return the repair number in a data file's name: 0 for the first commit, K for the K-th repair."""
    found = _DATA_NAME.fullmatch(name)
    return int((found and found["repair"]) or 0)


def split_data_name(name: str) -> tuple[str, str] | None:
    """Split a data file's name into (shard_id, attempt); None if it is not the name of a data file."""
    found = _DATA_NAME.fullmatch(name)
    return (found["shard_id"], found["attempt"]) if found else None


def commit_name(run_id: str, shard_id: str, repair: int = 0) -> str:
    """Return the name of a shard's first commit, or of one of its repairs, relative to the output."""
    return f"{run_folder(run_id)}/commits/{shard_id}.{f'repair-{repair}' if repair else 'json'}"


def split_commit_name(name: str) -> tuple[str, int] | None:
    """Split a commit's name into (shard_id, repair); None if it is not the name of a commit."""
    found = _COMMIT_NAME.fullmatch(name)
    return (found["shard_id"], int(found["repair"] or 0)) if found else None


def is_ours(name: str) -> bool:
    """Return whether a name follows the output's naming scheme; files of other names are left alone."""
    if name == CARD_NAME or name.startswith(PROBE_PREFIX) or _OF_RUN.fullmatch(name) or _NUMBERED.fullmatch(name):
        return True
    if history_number(name) is not None or compacted_number(name) is not None or split_compacted_file(name) is not None:
        return True
    if delta_log_version(name) is not None or is_current_file(name):
        return True
    return split_data_name(name) is not None or split_commit_name(name) is not None
