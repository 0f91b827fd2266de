"""`xsam-label evaluate`: compare a run with ground truth, print the figures and save them. The output is only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.commands.console import literal
from flows.run.held_runs import held_plans
from pipelines.evaluation.evaluate import Evaluation, TaskFigures, evaluate_output
from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.evaluation.plots import figure_class, write_plots
from pipelines.export.target import check_target
from pipelines.storage.local_files import check_new, publish, temporary_beside, write_atomically
from pipelines.types import Task

_MAX_CATEGORIES = 40


def run_evaluation(
    output: str,
    ground_truth: str,
    console: Console,
    *,
    png_folder: str | None = None,
    run_id: str | None = None,
    count_unasked: bool = False,
    is_strict: bool = False,
    json_file: Path | None = None,
    plots: str | None = None,
) -> Evaluation:
    """Compare a run with a ground truth file and print the figures.

    Args:
        output: path or URI of the output.
        ground_truth, png_folder, is_strict: as for `read_ground_truth`.
        console: where to print.
        run_id: one run; by default the current rows of all runs.
        count_unasked: as for `evaluate_output`.
        json_file: new file to write all figures to.
        plots: new local folder for plots.

    Raises:
        PlanError: there is no such run.
        SourceError, StorageError: truth or run cannot be read, or they cannot be compared; the JSON file or the plots'
            folder exists or has no parent folder; or matplotlib is not installed. In these cases nothing is written.
    """
    if json_file is not None:
        check_new(json_file)
    store, plans = held_plans(output, run_id)
    pictures = None if plots is None else check_target(plots, store)
    if pictures is not None:
        figure_class()  # raises if matplotlib is missing: before the comparison, which may take long
    with console.status("reading the ground truth") as spinner:
        truth = read_ground_truth(ground_truth, png_folder=png_folder, is_strict=is_strict)

        def on_image(task: Task, number: int) -> None:
            if number % 50 == 0:
                spinner.update(f"comparing {task}: {number:,} images of at most {len(truth.images):,}")

        spinner.update("finding the images of the ground truth")
        evaluation = evaluate_output(store, plans, truth, count_unasked=count_unasked, on_image=on_image)
    if json_file is not None:
        document = {"output": store.uri, "ground_truth": ground_truth, **evaluation.to_dict()}
        write_atomically(json_file, (json.dumps(document, indent=1) + "\n").encode())
    show_evaluation(evaluation, console)
    if pictures is not None:
        _draw(evaluation, pictures, console)
    return evaluation


def _draw(evaluation: Evaluation, target: Path, console: Console) -> None:
    with temporary_beside(target) as place:
        whole = place / "whole"
        whole.mkdir()
        files = write_plots(evaluation, whole)
        if not files:
            console.print("[yellow]note:[/] none of these figures has a plot: --plots wrote nothing")
            return
        publish(whole, target)
    console.print(f"{len(files):,} plots in {literal(target)}")


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the figures of every task in percent, those of its categories, and what was left out."""
    tables: dict[tuple[str, ...], Table] = {}
    for result in evaluation.results:
        names = tuple(result.figures)
        if names not in tables:
            title = f"{', '.join(evaluation.runs)}, {evaluation.num_images:,} images, in percent"
            tables[names] = _table(title, ("task", "of", *names))
        tables[names].add_row(result.task, result.group or "all", *map(_shown, result.figures.values()))
    for result in evaluation.results:
        if result.categories:
            console.print(_category_table(result))
            if (more := len(result.categories) - _MAX_CATEGORIES) > 0:
                console.print(f"  and {more:,} more, which --json writes")
    for table in tables.values():
        console.print(table)
    for note in evaluation.notes:
        console.print(f"[yellow]note:[/] {literal(note)}", highlight=False)


def _category_table(result: TaskFigures) -> Table:
    columns: Mapping[str, object] = next(iter(result.categories.values()))
    table = _table(f"{result.task} {result.group}".strip(), ("category", *columns))
    for name, figures in list(result.categories.items())[:_MAX_CATEGORIES]:
        table.add_row(literal(name), *map(_shown, figures.values()))
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=literal(title), title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("task", "of", "category") else "right")
    return table


def _shown(value: float | int | None) -> str:
    """Format fractions as percentages, and counts as they are."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f}"
