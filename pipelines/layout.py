"""Where everything lies in an output, and the numbers of its three formats: names only, nothing is read or written.

annotations/RUN/shard-00000-ATTEMPT.parquet    masks; images/RUN/... likewise, one row an image
_runs/RUN/plan.json, plan-*.parquet            what the run labels; plan.json makes it so
_runs/RUN/commits/shard-00000.json             what makes a shard's two files visible
_runs/RUN/commits/shard-00000.repair-1         what took its place once they were gone or damaged
_runs/RUN/summary.json, report.html            how the run ended; nothing needs them
_runs/.run-000001                              the name of a run, found by number where a listing is behind
"""

from __future__ import annotations

import re
from typing import Literal

PLAN_FORMAT = 2
COMMIT_FORMAT = 1
SCHEMA_VERSION = 3
"""Of the columns; it changes with any of them, and CHANGELOG.md says what changed."""

Kind = Literal["annotations", "images"]
KINDS: tuple[Kind, Kind] = ("annotations", "images")
PROBE_PREFIX = "_runs/.probe-"
# What people and other programs put into an output's folders (.DS_Store, _SUCCESS, part-0.parquet) has other names.
# Repairs do not end in .json, so that versions that know nothing of them leave them alone.
_COMMIT_NAME = re.compile(r"_runs/[^/]+/commits/(?P<shard_id>shard-\d{5,})(\.json|\.repair-(?P<repair>[1-9]\d*))")
_DATA_NAME = re.compile(
    r"(annotations|images)/[^/]+/(?P<shard_id>shard-\d{5,})-(repair-(?P<repair>[1-9]\d*)-)?(?P<attempt>[^/]+)\.parquet"
)
_REGISTERED = re.compile(r"_runs/\.run-\d{6,}")
_OF_RUN = re.compile(r"_runs/[^/]+/(plan\.json|plan-[^/]+\.parquet|summary\.json|report\.html)")


def run_folder(run_id: str) -> str:
    """Return the folder of a run's plan, commits and summary, relative to the output."""
    return f"_runs/{run_id}"


def plan_name(run_id: str) -> str:
    """Return the object whose existence means that the run is planned."""
    return f"{run_folder(run_id)}/plan.json"


def registered_name(number: int) -> str:
    """Return the object that holds the id of the output's run of this number, counted from 1."""
    return f"_runs/.run-{number:06d}"


def summary_name(run_id: str) -> str:
    """Return the object that holds a run's summary, relative to the output."""
    return f"{run_folder(run_id)}/summary.json"


def shard_name(number: int) -> str:
    """Return the id of the shard with this position in the plan."""
    return f"shard-{number:05d}"


def shard_number(shard_id: str) -> int:
    """Return the position in the plan of the shard with this id."""
    return int(shard_id.rpartition("-")[2])


def data_name(kind: Kind, run_id: str, shard_id: str, attempt: str, repair: int = 0) -> str:
    """Return the attempt-unique name of a shard's data file, relative to the output; that of a repair says which."""
    return f"{kind}/{run_id}/{shard_id}-{f'repair-{repair}-' if repair else ''}{attempt}.parquet"


def due_commit_of(name: str) -> int:
    """Return which commit a data file was written for: 0 for the first, K for the K-th repair."""
    found = _DATA_NAME.fullmatch(name)
    return int((found and found["repair"]) or 0)


def split_data_name(name: str) -> tuple[str, str] | None:
    """Return (shard_id, attempt) of a data file's name; None for a name that no data file has."""
    found = _DATA_NAME.fullmatch(name)
    return (found["shard_id"], found["attempt"]) if found else None


def commit_name(run_id: str, shard_id: str, repair: int = 0) -> str:
    """Return the name of a shard's first commit object, or of one of its repairs, relative to the output."""
    return f"{run_folder(run_id)}/commits/{shard_id}.{f'repair-{repair}' if repair else 'json'}"


def split_commit_name(name: str) -> tuple[str, int] | None:
    """Return (shard_id, repair) of a commit object's name; None for a name that no commit has."""
    found = _COMMIT_NAME.fullmatch(name)
    return (found["shard_id"], int(found["repair"] or 0)) if found else None


def is_ours(name: str) -> bool:
    """Say whether a file of an output's folders has a name that this system gives."""
    if name.startswith(PROBE_PREFIX) or _OF_RUN.fullmatch(name) or _REGISTERED.fullmatch(name):
        return True
    return split_data_name(name) is not None or split_commit_name(name) is not None
