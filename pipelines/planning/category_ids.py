"""The numbers of category names: one name has one number in all runs of an output, and no two names share one.

Each plan keeps the numbers of its own names; a new run reads those of all earlier ones, and numbers new names after
them. Runs of earlier versions numbered each list from 0; of two of their names with one number the first keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pipelines.types import WORD_TASKS, Prompt

_MAX_KEPT = 10_000
"""Most names whose numbers a plan keeps: a prompt table may give each of its rows a label of its own."""


@dataclass(slots=True)
class CategoryIds:
    """The numbers of names.

    Attributes:
        by_name: numbers by name.
        end: the next free number.
        clashes: names of earlier versions' runs whose number an earlier name has, by number.
    """

    by_name: dict[str, int] = field(default_factory=dict)
    end: int = 0
    clashes: dict[int, list[str]] = field(default_factory=dict)
    _own: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_runs(cls, documents: Iterable[Mapping[str, Any]]) -> Self:
        """Return the numbers that runs have given, from their plans in the order of planning."""
        ids, names = cls(), dict[int, str]()
        for document in documents:
            facts = document.get("facts", {})
            for name, number in _numbers_of(facts):
                if names.setdefault(number, name) == name:
                    ids.by_name.setdefault(name, number)
                elif ids.by_name.get(name) != number:
                    ids.clashes.setdefault(number, [names[number]]).append(name)
                ids.end = max(ids.end, number + 1)
            ids.end = max(ids.end, facts.get("next_category_id", 0))
        return ids

    @classmethod
    def of_plan(cls, facts: Mapping[str, Any]) -> Self:
        """Return the numbers of one run; none of a run of an earlier version, whose names go by their positions."""
        return cls(by_name=dict(facts.get("category_ids", {})))

    def add(self, names: Iterable[str]) -> None:
        """Give those of a new run's names that have no number the next ones, in this order."""
        for name in names:
            if name not in self.by_name:
                self.by_name[name] = self.end
                self.end += 1
            self._own[name] = self.by_name[name]

    def numbered(self, prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
        """Return prompts with their numbers; those without a name of their own are left as they are."""
        return tuple(
            replace(prompt, category_id=self.by_name[prompt.category_name])
            if has_name(prompt) and prompt.category_name in self.by_name
            else prompt
            for prompt in prompts
        )

    def to_facts(self) -> dict[str, Any]:
        """Return what the plan keeps: the numbers of its own names, and the next free number."""
        return {"category_ids": dict(list(self._own.items())[:_MAX_KEPT]), "next_category_id": self.end}


def has_name(prompt: Prompt) -> bool:
    """Return whether a prompt's masks have its name: those of a caption have their phrases, an answer in words none."""
    return prompt.task not in WORD_TASKS


def _numbers_of(facts: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    if "category_ids" in facts:
        return dict(facts["category_ids"]).items()
    counts, found = Counter[str](), list[tuple[str, int]]()
    for prompt in facts.get("prompts", ()):
        if prompt["task"] not in WORD_TASKS:
            found.append((prompt["text"], counts[prompt["task"]]))
            counts[prompt["task"]] += 1
    return found
