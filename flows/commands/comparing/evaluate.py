"""`xsam-label evaluate`: compare an output with ground truth, and print and save the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from flows.commands.console import literal, print_json, show_lines
from flows.run.existing_runs import existing_plans
from pipelines.bounded_json import plain_json
from pipelines.errors import SourceError
from pipelines.evaluation.evaluate import Evaluation, TaskFigures, evaluate_output
from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.evaluation.plots import figure_class, write_plots
from pipelines.redaction import counted, quoted
from pipelines.storage.targets import Target, open_target, write_target
from pipelines.types import Task

MAX_CATEGORIES = 40
_MAX_CONFUSED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationChoice:
    """What is compared, and how.

    Attributes:
        run_id: one run; by default the current rows of all runs.
        png_folder, is_strict: as for `read_ground_truth`.
        count_unasked, where, score: as for `evaluate_output`.
    """

    run_id: str | None = None
    png_folder: str | None = None
    is_strict: bool = False
    count_unasked: bool = False
    where: str = ""
    score: float | Literal["best"] | None = None


def read_score(text: str | None) -> float | Literal["best"] | None:
    """Read a score of the command line: a number from 0 to 1, or "best".

    Raises:
        SourceError: it is neither.
    """
    if text is None or text == "best":
        return "best" if text else None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise SourceError(f"--score is {quoted(text)}; give a number from 0 to 1, or best")
    return score


def run_evaluation(
    output: str,
    ground_truth: str,
    console: Console,
    choice: EvaluationChoice,
    *,
    to: str | None = None,
    plots: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> Evaluation:
    """Compare a run with a ground truth file and print the figures.

    Args:
        output: path or URI of the output.
        ground_truth: path or URI of the ground truth.
        console: where to print.
        choice: what is compared, and how.
        to: path or URI of a new JSON file to write all figures to.
        plots: path or URI of a new folder for plots.
        overwrite: whether the file, or an earlier folder of plots, may be replaced.
        as_json: whether to print all figures as one JSON document instead.

    Raises:
        PlanError: there is no such run.
        SourceError, StorageError: truth or run cannot be read, or they cannot be compared; the JSON file or the plots'
            folder exists or cannot be made; or matplotlib is not installed. In these cases nothing is written.
    """
    figures, pictures = _targets(output, to, plots, overwrite)
    store, plans = existing_plans(output, choice.run_id)
    if pictures is not None:
        figure_class()  # raises if matplotlib is missing: before the comparison, which may take long
    with console.status("reading the ground truth") as spinner:
        truth = read_ground_truth(ground_truth, png_folder=choice.png_folder, is_strict=choice.is_strict)

        def on_image(task: Task, number: int) -> None:
            if number % 50 == 0:
                spinner.update(f"comparing {task}: {number:,} images of at most {len(truth.images):,}")

        spinner.update("finding the images of the ground truth")
        evaluation = evaluate_output(
            store,
            plans,
            truth,
            count_unasked=choice.count_unasked,
            where=choice.where,
            score=choice.score,
            on_image=on_image,
        )
    compared = {"output": store.uri, "ground_truth": ground_truth, "where": choice.where, "score": choice.score}
    document = {**compared, **evaluation.to_dict()}
    if figures is not None:
        write_target(figures, (json.dumps(plain_json(document), indent=1) + "\n").encode())
    if as_json:
        print_json(console, document)
    else:
        show_evaluation(evaluation, console)
    if pictures is not None:
        _draw(evaluation, pictures, Console(quiet=True) if as_json else console)
    return evaluation


def _targets(output: str, to: str | None, plots: str | None, overwrite: bool) -> tuple[Target | None, Target | None]:
    """Return where the figures and the plots go, which are checked before the comparison."""
    place = partial(open_target, overwrite=overwrite, output=output)
    figures, pictures = "figures are written as .json", "plots are written as a folder"
    return (
        None if to is None else place(to, suffixes=(".json",), what=figures),
        None if plots is None else place(plots, replaces=["*.png"], what=pictures),
    )


def _draw(evaluation: Evaluation, target: Target, console: Console) -> None:
    with target.place() as place:
        whole = place / "whole"
        whole.mkdir()
        files = write_plots(evaluation, whole)
        if not files:
            console.print("[yellow]note:[/] none of these figures has a plot: --plots wrote nothing")
            return
        target.publish(whole)
    console.print(f"{counted(len(files), 'plot')} in {literal(target.uri)}")


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the figures of every task in percent, those of its categories, and what was left out."""
    tables: dict[tuple[str, ...], Table] = {}
    for result in evaluation.results:
        names = tuple(result.figures)
        if names not in tables:
            title = f"{', '.join(evaluation.runs)}, {counted(evaluation.num_images, 'image')}, in percent"
            tables[names] = figures_table(title, ("task", "of", *names))
        tables[names].add_row(result.task, result.group or "all", *map(_shown, result.figures.values()))
    for result in evaluation.results:
        if result.categories:
            console.print(_category_table(result))
            if (more := len(result.categories) - MAX_CATEGORIES) > 0:
                console.print(f"  and {more:,} more, which --json has")
    for result in evaluation.results:
        if result.confusion:
            console.print(_confusion_table(result))
    for table in tables.values():
        console.print(table)
    show_lines(console, "[yellow]note:[/]", evaluation.notes)


def _category_table(result: TaskFigures) -> Table:
    columns: Mapping[str, object] = next(iter(result.categories.values()))
    table = figures_table(f"{result.task} {result.group}".strip(), ("category", *columns))
    for name, figures in list(result.categories.items())[:MAX_CATEGORIES]:
        table.add_row(literal(name), *(_shown(value, of) for of, value in figures.items()))
    return table


def _confusion_table(result: TaskFigures) -> Table:
    """Return the most frequent mistakes; --json has all pairs."""
    mistakes = [pair for pair in result.confusion if pair["true"] != pair["found"]]
    title = (
        f"{result.task} {result.group}"
    ).strip() + f": the most frequent of {counted(len(mistakes), 'kind of mistake', 'kinds of mistakes')}"
    table = figures_table(title, ("there is", "found as", "masks"))
    for pair in mistakes[:_MAX_CONFUSED]:
        there, found = literal(pair["true"] or "(nothing)"), literal(pair["found"] or "(not found)")
        table.add_row(there, found, f"{pair['count']:,}")
    return table


def figures_table(title: str, columns: tuple[str, ...]) -> Table:
    """Return an empty table of figures, whose names stand at the left and whose numbers at the right."""
    table = Table(title=literal(title), title_justify="left")
    for name in columns:
        is_text = name in ("task", "of", "category", "there is", "found as")
        table.add_column(name, justify="left" if is_text else "right")
    return table


def _shown(value: Any, name: str = "") -> str:
    """Format fractions as percentages, counts and scores as they are; scores are cut, not rounded up."""
    if value is None:
        return "-"
    if name == "best score":
        return f"{math.floor(value * 10_000) / 10_000:.4f}"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"
