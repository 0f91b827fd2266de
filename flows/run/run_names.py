"""How runs are named, and names that are not for people: those of updates and retries.

A name is asked of the store, not looked for in a listing: a listing may be late, and would hide who has it.
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

# Whatever the case: on some disks two names that differ in it are one.
_UPDATE = re.compile(r"update-(\d+)", re.IGNORECASE)
_RETRY = re.compile(r"(.+)-retry-(\d+)", re.IGNORECASE)


def first_run(fingerprint: Mapping[str, Any]) -> str:
    """Return the name of an output's first run, unless it is given one."""
    return f"run-{fingerprint_digest(fingerprint)[:12]}"


def unlisted_updates(store: Store, held: Iterable[str]) -> tuple[list[Plan], str]:
    """Return the plans under the names of updates that are not among those held, and the first name that nobody has.

    A listing does not show those plans yet, or not those before later ones. An update that takes that name follows all
    plans that were seen, and no other: if another driver takes it first, it is that one's.
    """
    names = {name.lower() for name in held}
    number = _next_number(_UPDATE, names, least=2)
    between = (f"update-{one}" for one in range(2, number) if f"update-{one}" not in names)
    found = [plan for name in between if (plan := read_plan(store, name)) is not None]
    while (plan := read_plan(store, f"update-{number}")) is not None:
        found.append(plan)
        number += 1
    return found, f"update-{number}"


def next_retry(store: Store, run_id: str, held: Iterable[str]) -> tuple[str, list[str]]:
    """Return the name of the next retry of a run, and all its retries: those held, and any that come after them."""
    retries = list(held)
    number = _next_number(re.compile(rf"{re.escape(run_id)}-retry-(\d+)"), retries, least=1)
    while store.exists(plan_name(name := f"{run_id}-retry-{number}")):
        # A person's run of an earlier version may have the name: it is passed over.
        retries += [name] if _retry_of(store, name) == run_id else []
        number += 1
    return name, retries


def _retry_of(store: Store, name: str) -> str | None:
    try:
        plan = read_plan(store, name)
    except PlanError:
        return None  # planned by another version, whose runs are not gone on with
    return None if plan is None else plan.retry_of


def runs_before_retry(store: Store, run_id: str, retry_of: str) -> Iterator[Plan]:
    """Yield the plans that a retry comes after: the run's, and that of the retry before it, by their names."""
    match = _RETRY.fullmatch(run_id)
    before = [f"{retry_of}-retry-{int(match[2]) - 1}"] if match is not None else []
    return (plan for name in (retry_of, *before) if (plan := read_plan(store, name)) is not None)


def _next_number(pattern: re.Pattern[str], names: Iterable[str], *, least: int) -> int:
    found = (pattern.fullmatch(name) for name in names)
    return max([least, *(1 + int(match[match.lastindex or 0]) for match in found if match)])


def check_new_name(run_id: str, retry_of: str | None) -> None:
    """Refuse to plan a run under a name that an update or a retry takes for its own.

    Args:
        run_id: as the config gives it.
        retry_of: the run that it labels again; None for a run of its own.

    Raises:
        ConfigError: saying whose name it is.
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
