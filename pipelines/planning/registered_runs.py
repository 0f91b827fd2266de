"""Register the ids of an output's runs under numbers, so that planning finds runs that a listing does not show yet.

A run whose name cannot be guessed is registered before its plan is created: ``_runs/.run-000001``,
``_runs/.run-000002``, each create-only and never removed. Incremental runs and retries are not, since their names are
numbered already; nor were runs of earlier versions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pipelines.errors import DamagedError
from pipelines.layout import registered_name
from pipelines.storage.checksummed_json import BLANK, misfit, seal
from pipelines.storage.store import Store


def registered_runs(store: Store) -> Iterator[str]:
    """Yield the ids of registered runs, planned or not, without listing anything.

    Raises:
        DamagedError: a registration is damaged.
    """
    # Numbers are given without gaps and never freed, so the first that is missing ends the search.
    numbers = itertools.count(1)
    yield from iter(lambda: _read(store, next(numbers)), None)


def registered_problems(store: Store) -> Iterator[str]:
    """Yield a description of every damaged registration."""
    for number in itertools.count(1):
        try:
            if _read(store, number) is None:
                return
        except DamagedError as error:
            yield str(error)


def register_run(store: Store, run_id: str) -> None:
    """Register a run, so that all who plan after it find it; does nothing if it is registered already.

    Raises:
        StorageError: the output cannot be written, or an earlier registration cannot be read.
    """
    held = list(registered_runs(store))
    if run_id in held:
        return
    number = len(held) + 1
    # The bytes are the same for two drivers of one run, so create tells both that theirs are there.
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
