"""What a category is called in an output, and which prompt a mask of that name answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

from pipelines.export.formats.cvat import label_names
from pipelines.planning.category_ids import CategoryIds
from pipelines.types import CATEGORY_TASKS, MAP_TASKS, PANOPTIC_TASKS, SENTENCE_TASKS, Prompt, Task


@dataclass(slots=True)
class Names:
    """The names of an output.

    Attributes:
        ids: their numbers; new names get the next ones.
        labels: the name that a label stands for: in CVAT it may be a shorter one.
        tasks: the task in which a name is asked of every image.
        task: the task in which a name is asked that no run has asked.
        stuff: names that the last run which asked a panoptic task with them called stuff.
    """

    ids: CategoryIds
    labels: dict[str, str] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    task: Task = "ovseg"
    stuff: set[str] = field(default_factory=set)

    @classmethod
    def of_runs(cls, documents: Iterable[Mapping[str, Any]]) -> Self:
        """Read the names from the plans of an output's runs, in the order of planning."""
        plans = list(documents)
        ids, tasks, counts, stuff = CategoryIds.of_runs(plans), dict[str, Task](), Counter[Task](), set[str]()
        for facts in (plan.get("facts", {}) for plan in plans):
            asked = [one for one in facts.get("prompts", ()) if one["task"] in CATEGORY_TASKS]
            for prompt in asked:
                tasks[prompt["text"].strip()] = prompt["task"]
                counts[prompt["task"]] += prompt["task"] not in MAP_TASKS
            stuff -= {one["text"].strip() for one in asked if one["task"] in PANOPTIC_TASKS}
            stuff |= {name.strip() for name in facts.get("config", {}).get("stuff") or ()}
        likeliest = max(counts, key=counts.__getitem__, default="ovseg")
        found = cls(ids=ids, tasks=tasks, task=cast(Task, likeliest), stuff=stuff)
        found.know(ids.by_name)
        return found

    def know(self, names: Iterable[str]) -> None:
        """Take further names of the output, such as phrases of captions, which have no numbers."""
        self.labels |= {label: name for name, label in label_names(list(dict.fromkeys(names))).items()}

    def name_of(self, label: str) -> str:
        """Return the name that a tool's label stands for."""
        return self.labels.get(label, label.strip())

    def prompt_of(self, name: str, task: str | None = None) -> Prompt:
        """Return the prompt that a mask of a name answers.

        Args:
            name: of the category.
            task: the one that the file tells, if it tells one that asks for names.
        """
        known = cast(Task, task) if task in CATEGORY_TASKS else self.tasks.get(name, self.task)
        return self._prompt(known, name)

    def renamed(self, prompt: Prompt, name: str) -> Prompt:
        """Return the prompt that a mask answers which has another name now.

        The name of a category or sentence is what was asked; that of a region or a phrase of a caption is a label.
        """
        if prompt.task in (*CATEGORY_TASKS, *SENTENCE_TASKS) and prompt.prompt_id.startswith(f"{prompt.task}:"):
            return self._prompt(prompt.task, name)
        self.ids.add([name])
        return Prompt(
            prompt_id=prompt.prompt_id,
            task=prompt.task,
            text=prompt.text,
            category_id=self.ids.by_name[name] if prompt.task != "gcgseg" else prompt.category_id,
            category_name=name,
        )

    def _prompt(self, task: Task, name: str) -> Prompt:
        self.ids.add([name])
        return Prompt(
            prompt_id=f"{task}:{name}",
            task=task,
            text=name,
            category_id=self.ids.by_name[name],
            category_name=name,
            is_thing=name not in self.stuff if task in PANOPTIC_TASKS else None,
        )
