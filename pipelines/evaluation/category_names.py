"""Match the categories of a run with those of a ground truth by name, tolerating differences in spelling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pipelines.errors import SourceError, some_of

# COCO panoptic appends these to the names of merged and stuff categories.
_SUFFIXES = ("-merged", "-other", "-stuff")


def clean_name(name: str) -> str:
    """Normalise a name for comparison: "wall-other-merged" to "wall", "Cell-Phone" to "cell phone"."""
    for suffix in _SUFFIXES:
        name = name.replace(suffix, "")
    return " ".join(name.replace("-", " ").lower().split())


@dataclass(frozen=True, slots=True)
class CountedNames:
    """The categories that are evaluated, by `clean_name`, with the truth's spelling."""

    by_clean_name: Mapping[str, str]

    @classmethod
    def of(cls, task: str, true: Iterable[str], asked: Iterable[str], count_unasked: bool, notes: list[str]) -> Self:
        """Find the categories that truth and run have in common.

        Args:
            task: the task, for messages.
            true: the truth's categories. Those with the same clean name are merged under the first spelling.
            asked: the names that the run asked.
            count_unasked: whether to include categories of the truth that were never asked.
            notes: messages about what is left out are appended here.

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
        """Return the truth's spelling of a name; None if the category is not evaluated."""
        return self.by_clean_name.get(clean_name(name))
