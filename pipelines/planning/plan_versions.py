"""The versions of a run's plan: as it was made, and one more for each time that images of it were forgotten.

``plan.json``, ``plan.erased-1``, ``plan.erased-2``, ...: each is created once. Once the next one is there, a version is
marked as superseded, which is the one change that a plan ever sees, and whoever makes it writes the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pipelines.errors import DamagedError
from pipelines.layout import plan_name, run_folder
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store

_SUPERSEDED = "is_superseded"


def newest_document(store: Store, run_id: str) -> tuple[str, Any]:
    """Return the name and the parsed JSON of the version of a plan that holds.

    Raises:
        FileNotFoundError: the run was never planned.
        DamagedError: a version is damaged, or the one that holds is missing.
    """
    for number in itertools.count():
        name = plan_name(run_id, number)
        try:
            document = store.read_json(name)
        except FileNotFoundError as error:
            if not number:
                raise
            raise DamagedError(
                f"{store.uri}/{name}: this version of the plan is missing; restore it from a copy"
            ) from error
        if not is_superseded(document):
            return name, document
    raise AssertionError("unreachable: counting has no end")


def is_superseded(document: Any) -> bool:
    """Return whether a version of a plan is marked as superseded."""
    return isinstance(document, dict) and document.get(_SUPERSEDED) is True


def versions(store: Store, run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every version of a plan, even one not in force yet since none before it is marked as superseded.

    Raises:
        DamagedError: a version is damaged.
    """
    for number in itertools.count():
        name = plan_name(run_id, number)
        try:
            yield name, store.read_json(name)
        except FileNotFoundError:
            return


def part_names(store: Store, run_id: str) -> set[str]:
    """Return the names of all files that any version of a plan names, relative to the output."""
    return {f"{run_folder(run_id)}/{name}" for _, one in versions(store, run_id) for name in names_in(one)}


def names_in(document: dict[str, Any]) -> Iterator[str]:
    """Yield the names of a version's files, relative to the run's folder."""
    yield from (part["name"] for part in document["parts"])
    for name in ("unlisted", "exemplars"):
        if document.get(name):
            yield document[name]["name"]


def supersede(store: Store, name: str, document: dict[str, Any]) -> None:
    """Mark a version as superseded, without what may tell of forgotten images: rejected prompts, labels, exemplars.

    The bytes follow from the version alone, so that it does not matter who writes them, how often, and how late.
    """
    facts = {**document["facts"], "rejected_prompts": [], "category_ids": {}}
    if "exemplars" in (config := facts.get("config", {})):
        facts["config"] = {**config, "exemplars": [], "exemplars_frozen": []}
    store.write(name, seal({**document, "facts": facts, "images_sha256": None, _SUPERSEDED: True, **BLANK}))
