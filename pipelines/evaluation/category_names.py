"""Which category of a run is which of a ground truth: their names, however they are spelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pipelines.errors import SourceError, some_of

_SUFFIXES = ("-merged", "-other", "-stuff")


def clean_name(name: str) -> str:
    """Return a name as it is compared: "wall-other-merged" as "wall", "Cell-Phone" as "cell phone"."""
    for suffix in _SUFFIXES:
        name = name.replace(suffix, "")
    return " ".join(name.replace("-", " ").lower().split())


@dataclass(frozen=True, slots=True)
class CountedNames:
    """The categories that count, by `clean_name`, each as the truth spells it."""

    by_clean_name: Mapping[str, str]

    @classmethod
    def of(cls, task: str, true: Iterable[str], asked: Iterable[str], count_unasked: bool, notes: list[str]) -> Self:
        """Find the categories that truth and run have in common.

        Args:
            task: for messages.
            true: the truth's categories. Those that are the same once cleaned become one, named as the first.
            asked: names that were asked.
            count_unasked: let the truth's other categories count too.
            notes: what is left out is added here.

        Raises:
            SourceError: there is no category in common.
        """
        known: dict[str, str] = {}
        for name in true:
            known.setdefault(clean_name(name), name)
        wanted = {clean_name(name): name for name in asked}
        if not known.keys() & wanted.keys():
            raise SourceError(
                f"{task}: none of the {len(wanted):,} names asked ({some_of(wanted.values())}) is one of the "
                f"{len(known):,} categories of the truth ({some_of(known.values())})"
            )
        if strangers := [name for key, name in wanted.items() if key not in known]:
            notes.append(
                f"{task}: {len(strangers):,} names are no category of the truth, left out: {some_of(strangers)}"
            )
        if unasked := [name for key, name in known.items() if key not in wanted]:
            how = "not found" if count_unasked else "left out"
            notes.append(
                f"{task}: {len(unasked):,} categories of the truth were never asked, {how}: {some_of(unasked)}"
            )
        return cls({key: name for key, name in known.items() if count_unasked or key in wanted})

    def get(self, name: str) -> str | None:
        """Return the truth's spelling of a name; None if it does not count."""
        return self.by_clean_name.get(clean_name(name))
