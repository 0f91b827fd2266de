"""The names of runs: of first runs and relabels by their fingerprint, of incremental runs and retries by numbers.

Names of incremental runs (update-N) and retries (NAME-retry-N) are reserved.

Whether a name is taken is asked of the store by that name: a listing may lag, and not show the run that has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flows.config import ConfigError
from pipelines.errors import PlanError
from pipelines.layout import plan_name
from pipelines.planning.fingerprint import fingerprint_digest
from pipelines.planning.plan import Plan, read_plan
from pipelines.storage.store import Store

# Case is ignored, because on some file systems names that differ only in case are the same.
_UPDATE = re.compile(r"update-(\d+)", re.IGNORECASE)
_RETRY = re.compile(r"(.+)-retry-(\d+)", re.IGNORECASE)


def first_run(fingerprint: Mapping[str, Any]) -> str:
    """Return the default name of an output's first run: it follows from the fingerprint, so it can be looked up."""
    return f"run-{fingerprint_digest(fingerprint)[:12]}"


def unlisted_updates(store: Store, held: Iterable[str]) -> tuple[list[Plan], str]:
    """Return the plans of incremental runs that a listing does not show yet, and the first free name of such a run.

    The run that gets this name follows exactly the plans seen here: if another driver creates a plan under it first,
    this driver's is refused.

    Args:
        store: the output.
        held: ids of the runs that the listing shows.
    """
    names = {name.lower() for name in held}
    # The first run of an output has no number, so numbers begin at 2. A listing may lack one and show a later one.
    number = _next_number(_UPDATE, names, least=2)
    between = (f"update-{one}" for one in range(2, number) if f"update-{one}" not in names)
    found = [plan for name in between if (plan := read_plan(store, name)) is not None]
    while (plan := read_plan(store, f"update-{number}")) is not None:
        found.append(plan)
        number += 1
    return found, f"update-{number}"


def next_retry(store: Store, run_id: str, held: Iterable[str]) -> tuple[str, list[str]]:
    """Return the name of a run's next retry, and all its retries: those in ``held``, and later ones found by name."""
    retries = list(held)
    number = _next_number(re.compile(rf"{re.escape(run_id)}-retry-(\d+)"), retries, least=1)
    while store.exists(plan_name(name := f"{run_id}-retry-{number}")):
        # In an earlier version users could give a run such a name; it is skipped.
        retries += [name] if _retry_of(store, name) == run_id else []
        number += 1
    return name, retries


def relabels(store: Store, fingerprint: Mapping[str, Any]) -> tuple[str, Plan | None]:
    """Return the name of the next relabel of a fingerprint, and the plan of the last one; None if there is none."""
    first = f"relabel-{fingerprint_digest(fingerprint)[:12]}"
    last, name, number = None, first, 1
    while (plan := read_plan(store, name)) is not None:
        last, number = plan, number + 1
        name = f"{first}-{number}"
    return name, last


def _retry_of(store: Store, name: str) -> str | None:
    try:
        plan = read_plan(store, name)
    except PlanError:
        return None  # planned by another version, whose runs this one does not resume
    return None if plan is None else plan.retry_of


def runs_before_retry(store: Store, run_id: str, retry_of: str) -> Iterator[Plan]:
    """Yield the plans that a retry follows, looked up by name: that of the run, and that of the retry before it."""
    match = _RETRY.fullmatch(run_id)
    before = [f"{retry_of}-retry-{int(match[2]) - 1}"] if match is not None else []
    return (plan for name in (retry_of, *before) if (plan := read_plan(store, name)) is not None)


def _next_number(pattern: re.Pattern[str], names: Iterable[str], *, least: int) -> int:
    found = (pattern.fullmatch(name) for name in names)
    return max([least, *(1 + int(match[match.lastindex or 0]) for match in found if match)])


def check_new_name(run_id: str, retry_of: str | None) -> None:
    """Refuse to plan a run under a name reserved for incremental runs or retries.

    Args:
        run_id: the configured run id.
        retry_of: the run that it labels again; None if it is not a retry.

    Raises:
        ConfigError: the name is reserved; the message says for what.
    """
    if _UPDATE.fullmatch(run_id):
        raise ConfigError(
            f"run id {run_id!r}: update-2, update-3, ... are names of incremental runs, which take the next one "
            "themselves; give another, or leave it out"
        )
    retry = _RETRY.fullmatch(run_id)
    if retry is not None and retry[1] != retry_of:
        raise ConfigError(
            f"run id {run_id!r}: names that end in -retry-1, -retry-2, ... are those of `xsam-label retry`, which "
            "takes the next one itself; give another, or leave it out"
        )
