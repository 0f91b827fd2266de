"""The names of an output's runs, found by number: a listing that is behind does not hide them from whoever plans.

A run whose name nobody can know registers it before its plan is created: ``_runs/.run-000001``, ``_runs/.run-000002``,
each create-only and never removed. Updates and retries do not, since their names hold numbers already; nor did runs of
earlier versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipelines.errors import DamagedError
from pipelines.layout import registered_name
from pipelines.storage.sealed import BLANK, misfit, seal
from pipelines.storage.store import Store


def registered_runs(store: Store) -> Iterator[str]:
    """Yield the ids of registered runs, whether or not they were planned then, without listing anything.

    Raises:
        DamagedError: one of them cannot be read.
    """
    for number in itertools.count(1):
        if (run_id := _read(store, number)) is None:
            return
        yield run_id


def registered_problems(store: Store) -> Iterator[str]:
    """Say what is wrong with each of them that cannot be read."""
    for number in itertools.count(1):
        try:
            if _read(store, number) is None:
                return
        except DamagedError as error:
            yield str(error)


def register_run(store: Store, run_id: str) -> None:
    """Let a run be found by whoever plans after it; does nothing if it is registered.

    Raises:
        StorageError: the output cannot be written, or a name that was registered before cannot be read.
    """
    held = list(registered_runs(store))
    if run_id in held:
        return
    number = len(held) + 1
    # Two drivers of one run write the same bytes, and have both registered it.
    while not store.create(registered_name(number), seal({"run_id": run_id, **BLANK})):
        number += 1


def _read(store: Store, number: int) -> str | None:
    name = registered_name(number)
    try:
        document = store.read_json(name)
        run_id: str = document["run_id"]
        if not isinstance(run_id, str) or not run_id.strip(".") or "/" in run_id:
            raise ValueError(f"run_id is {run_id!r}")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise DamagedError(f"{error}; {_ADVICE}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{store.uri}/{name}: no name of a run ({misfit(document, error)}); {_ADVICE}") from error
    return run_id


_ADVICE = (
    'restore it from a copy, or write {"run_id": "..."} to it, with the id of a run of this output: it is only needed '
    "where a listing does not show that run yet"
)
