"""Turn a config's category names and sentences into the prompts asked of every image."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipelines.redaction import quoted, quoted_names
from pipelines.types import PANOPTIC_TASKS, Prompt, Task

CAPTION_ID = "gcgseg:caption"


def check_names(what: str, names: Sequence[str]) -> None:
    """Check that names are not blank and occur only once, since prompt ids are made from them.

    Raises:
        ValueError: a name is blank, or given twice.
    """
    stripped = [name.strip() for name in names]
    if not all(stripped):
        raise ValueError(f"{what} holds an empty name: {quoted(list(names))}")
    if doubled := sorted({name for name in stripped if stripped.count(name) > 1}):
        raise ValueError(f"{what} are named twice: {quoted_names(doubled)}")


def check_stuff(task: Task, categories: Collection[str], stuff: Sequence[str]) -> None:
    """Check that stuff names are categories, and that the task distinguishes stuff from things.

    Raises:
        ValueError: they are not, or it does not; the message says what is allowed.
    """
    check_names("stuff", stuff)
    if stuff and task not in PANOPTIC_TASKS:
        raise ValueError(f"stuff goes with the tasks {', '.join(PANOPTIC_TASKS)}, not {task}")
    if unknown := [name for name in stuff if name.strip() not in {category.strip() for category in categories}]:
        raise ValueError(f"stuff names what is no category: {quoted_names(unknown)}")


def named_prompts(
    task: Task,
    names: Sequence[str],
    *,
    stuff: Collection[str] = (),
    explain: bool = False,
    keep_spaces: bool = False,
) -> list[Prompt]:
    """Return a prompt for each name or sentence of a task, in the order given, with the ids ``<task>:<text>``.

    With ``keep_spaces``, outer white space is a part of what is asked, but not of ids and names.
    """
    not_things = {name.strip() for name in stuff}
    return [
        Prompt(
            prompt_id=f"{task}:{name.strip()}",
            task=task,
            text=name if keep_spaces else name.strip(),
            category_id=number,
            category_name=name.strip(),
            is_thing=name.strip() not in not_things if task in PANOPTIC_TASKS else None,
            explain=explain,
        )
        for number, name in enumerate(names)
    ]


def caption_prompt() -> Prompt:
    """Return the prompt for a grounded caption."""
    return Prompt(prompt_id=CAPTION_ID, task="gcgseg", text="caption", category_id=0, category_name="caption")
