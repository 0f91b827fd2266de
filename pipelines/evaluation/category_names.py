"""Match the categories of a run with those of a ground truth: by name, or by its spelling where that is unambiguous."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pipelines.errors import SourceError, some_of, some_texts
from pipelines.redaction import counted, named, shown

# COCO panoptic appends these to the names of merged and stuff categories.
_SUFFIXES = ("-merged", "-other", "-stuff")


def clean_name(name: str) -> str:
    """Normalize a name for comparison: "wall-other-merged" to "wall", "Cell-Phone" to "cell phone"."""
    short = name.strip().lower()
    while suffix := next((one for one in _SUFFIXES if short.endswith(one) and short != one), None):
        short = short.removesuffix(suffix)
    return _spelled(short)


def _spelled(name: str) -> str:
    """Return a name in small letters, without the differences that hyphens, underscores and encodings make."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return " ".join(plain.replace("-", " ").replace("_", " ").split())


@dataclass(frozen=True, slots=True)
class CountedNames:
    """The categories that are evaluated.

    Attributes:
        by_asked: the truth's name of each name that the run asked.
        counted: the truth's names that are evaluated.
    """

    by_asked: Mapping[str, str]
    counted: frozenset[str]

    @classmethod
    def of(cls, task: str, true: Iterable[str], asked: Iterable[str], count_unasked: bool, notes: list[str]) -> Self:
        """Find the categories that truth and run have in common.

        Names that are equal belong together. Of the others those that differ in spelling alone do, and then those that
        do without COCO's suffixes, if each could be no other's.

        Args:
            task: the task, for messages.
            true: the truth's categories.
            asked: the names that the run asked.
            count_unasked: whether to include categories of the truth that were never asked.
            notes: messages about what is left out, or compared under another name, are appended here.

        Raises:
            SourceError: there is no category in common.
        """
        known, wanted = list(dict.fromkeys(true)), list(dict.fromkeys(asked))
        by_asked = {name: name for name in wanted if name in set(known)}
        unclear: dict[str, str] = {}
        for cleaned in (_spelled, clean_name):
            _match(cleaned, known, wanted, by_asked, unclear)
        if not by_asked:
            raise SourceError(
                f"{task}: none of the {counted(len(wanted), 'name')} asked ({some_of(wanted)}) is "
                "one of the "
                f"{counted(len(known), 'category', 'categories')} of the truth ({some_of(known)})"
                + "".join(f"; {name} {why}" for name, why in list(unclear.items())[:1])
            )
        notes.extend(f"{task}: {note}" for note in _notes(known, wanted, by_asked, unclear, count_unasked))
        return cls(by_asked, frozenset(known if count_unasked else by_asked.values()))

    def of_found(self, name: str) -> str | None:
        """Return the truth's name of a category of the run; None if it is not evaluated."""
        return self.by_asked.get(name)

    def is_counted(self, name: str) -> bool:
        """Return whether a category of the truth is evaluated."""
        return name in self.counted


def _match(
    cleaned: Callable[[str], str],
    known: Collection[str],
    wanted: Collection[str],
    by_asked: dict[str, str],
    unclear: dict[str, str],
) -> None:
    """Add the pairs that are alike when cleaned and could be no other's, and note what could be several."""
    taken = set(by_asked.values())
    true, asked = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for name in known:
        if name not in taken:
            true[cleaned(name)].append(name)
    for name in wanted:
        if name not in by_asked and name not in unclear:
            asked[cleaned(name)].append(name)
    for key, names in asked.items():
        if len(names) == len(true[key]) == 1:
            by_asked[names[0]] = true[key][0]
        elif true[key]:
            unclear.update(dict.fromkeys(names, f"could be {' or '.join(map(named, true[key][:3]))}"))


def _notes(
    known: Collection[str],
    wanted: Collection[str],
    by_asked: Mapping[str, str],
    unclear: Mapping[str, str],
    count_unasked: bool,
) -> Iterable[str]:
    if respelled := [f"{named(name)} with {named(other)}" for name, other in by_asked.items() if name != other]:
        yield (
            f"{counted(len(respelled), 'name is spelled', 'names are spelled')} otherwise in the truth, and compared: "
            f"{', '.join(map(shown, respelled))}"
        )
    if unclear:
        which = some_texts(f"{named(name)} {why}" for name, why in unclear.items())
        yield (
            f"{counted(len(unclear), 'name fits categories', 'names fit categories')} of the truth "
            f"in several ways, left out: {which}"
        )
    if strangers := [name for name in wanted if name not in by_asked and name not in unclear]:
        yield (
            f"{counted(len(strangers), 'name is no category', 'names are no category')} of the "
            f"truth, left out: {some_of(strangers)}"
        )
    taken = set(by_asked.values())
    if unasked := [name for name in known if name not in taken]:
        how = "not found" if count_unasked else "left out"
        yield (
            f"{counted(len(unasked), 'category of the truth was', 'categories of the truth were')} "
            f"never asked, {how}: {some_of(unasked)}"
        )
