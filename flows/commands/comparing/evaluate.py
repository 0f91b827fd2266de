"""`xsam-label evaluate` and `audit`: measure labels by ground truth, or by a sample that a person checks.

Figures are printed and saved; the output is only read.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from flows.commands.console import facts_table, literal, print_json, show_lines
from flows.run.existing_runs import existing_plans
from pipelines.audit.calibration import calibration_table
from pipelines.audit.estimates import Share
from pipelines.audit.record import read_record
from pipelines.audit.result import AuditResult, CategoryResult, read_result
from pipelines.audit.sample import AuditChoice, Sample, write_sample
from pipelines.bounded_json import plain_json
from pipelines.errors import SourceError
from pipelines.evaluation.evaluate import Evaluation, TaskFigures, evaluate_output
from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.evaluation.plots import figure_class, write_plots
from pipelines.redaction import counted, quoted
from pipelines.storage.store import open_store
from pipelines.storage.targets import Target, open_target, write_target
from pipelines.types import Task

_MAX_CATEGORIES = 40
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
            tables[names] = _table(title, ("task", "of", *names))
        tables[names].add_row(result.task, result.group or "all", *map(_shown, result.figures.values()))
    for result in evaluation.results:
        if result.categories:
            console.print(_category_table(result))
            if (more := len(result.categories) - _MAX_CATEGORIES) > 0:
                console.print(f"  and {more:,} more, which --json has")
    for result in evaluation.results:
        if result.confusion:
            console.print(_confusion_table(result))
    for table in tables.values():
        console.print(table)
    show_lines(console, "[yellow]note:[/]", evaluation.notes)


def _category_table(result: TaskFigures) -> Table:
    columns: Mapping[str, object] = next(iter(result.categories.values()))
    table = _table(f"{result.task} {result.group}".strip(), ("category", *columns))
    for name, figures in list(result.categories.items())[:_MAX_CATEGORIES]:
        table.add_row(literal(name), *(_shown(value, of) for of, value in figures.items()))
    return table


def _confusion_table(result: TaskFigures) -> Table:
    """Return the most frequent mistakes; --json has all pairs."""
    mistakes = [pair for pair in result.confusion if pair["true"] != pair["found"]]
    title = (
        f"{result.task} {result.group}"
    ).strip() + f": the most frequent of {counted(len(mistakes), 'kind of mistake', 'kinds of mistakes')}"
    table = _table(title, ("there is", "found as", "masks"))
    for pair in mistakes[:_MAX_CONFUSED]:
        there, found = literal(pair["true"] or "(nothing)"), literal(pair["found"] or "(not found)")
        table.add_row(there, found, f"{pair['count']:,}")
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
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


def run_audit_sample(
    output: str, target: str, format_name: str, choice: AuditChoice, console: Console, *, overwrite: bool = False
) -> Sample:
    """Draw the sample of an audit, and print what is in it.

    Args:
        output: path or URI of the output.
        target: path or URI of a new folder.
        format_name: one of pipelines.importing.imports.READERS.
        choice: what is audited.
        console: where to print.
        overwrite: whether to replace an earlier sample.

    Raises:
        SourceError, StorageError: as for ``write_sample``; nothing is written.
    """
    with console.status("drawing images"):
        sample = write_sample(open_store(output), target, format_name, choice, overwrite=overwrite)
    facts, record = sample.record.facts, sample.record
    bands = ["none", *(f"from {edge:g}" for edge in facts.edges)]
    table = _table(f"{facts.task}: images drawn, of those whose best mask is in the band", ("category", *bands))
    for name, strata in list(facts.strata.items())[:_MAX_CATEGORIES]:
        table.add_row(literal(name), *(f"{one.drawn:,} of {one.images:,}" for one in strata))
    console.print(table)
    if (more := len(facts.strata) - _MAX_CATEGORIES) > 0:
        console.print(f"  and {more:,} more categories, in audit.json")
    rows: list[tuple[str, object]] = [
        ("to be checked", f"{counted(record.images.num_rows, 'image')}, {counted(record.masks.num_rows, 'mask')}"),
        *(("note", note) for note in sample.export.notes),
        ("then", f"xsam-label audit result {target} EDITED-FILE"),
    ]
    console.print(facts_table(f"{format_name} in {literal(target)}", rows))
    return sample


def run_audit_result(
    sample: str,
    file: str,
    console: Console,
    *,
    iou: float = 0.5,
    format_name: str = "",
    as_json: bool = False,
    calibration: str | None = None,
    overwrite: bool = False,
) -> AuditResult:
    """Print what a checked sample says of its output, and save it.

    Args:
        sample: the folder of the sample.
        file: path or URI of the file that came back.
        console: where to print.
        iou, format_name: as for `read_result`.
        as_json: whether to print all figures as one JSON document instead.
        calibration: path or URI of a new file for the probabilities of scores.
        overwrite: whether these files may be replaced.

    Raises:
        SourceError, StorageError: sample or file cannot be read or do not fit each other, or a file cannot be written;
            in these cases nothing is written.
    """
    place = partial(open_target, overwrite=overwrite)
    suffixes = tuple(_TABLES)
    fitted = None if calibration is None else place(
        calibration, suffixes=suffixes, what=f"a calibration is written as {' or '.join(suffixes)}"
    )  # fmt: skip
    if fitted is not None and fitted.suffix not in _TABLES:
        raise SourceError(f"{fitted.uri}: name a file {' or '.join(suffixes)}")
    record = read_record(sample)
    with console.status("comparing what came back"):
        result = read_result(record, file, iou=iou, format_name=format_name)
        table = None if fitted is None else calibration_table(result.rated, record.facts.score)
    if fitted is not None and table is not None:
        write_target(fitted, _TABLES[fitted.suffix](table))
    if as_json:
        print_json(console, {"sample": sample, "file": file, "iou": iou, **result.to_dict()})
    else:
        _show_audit(result, console)
    return result


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _csv_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pa_csv.write_csv(table, buffer)
    return buffer.getvalue()


_TABLES = {".csv": _csv_bytes, ".parquet": _parquet_bytes}


def _show_audit(result: AuditResult, console: Console) -> None:
    facts = result.record.facts
    columns = ("category", "masks", "checked", "right", "missed", "precision", "95 % of", "recall", "95 % of ")
    title = f"{facts.task} from score {facts.score:g} on, {counted(result.num_images, 'checked image')}, in percent"
    table = _table(title, columns)
    rows: Sequence[CategoryResult] = (*result.categories[:_MAX_CATEGORIES], result.whole)
    for one in rows:
        counts = (f"{number:,}" for number in (one.masks, one.checked, one.right, one.missed))
        shares = (cell for share in (one.precision, one.recall) for cell in _share_cells(share))
        table.add_row(literal(one.category_name) or "all", *counts, *shares)
    console.print(table)
    if (more := len(result.categories) - _MAX_CATEGORIES) > 0:
        console.print(f"  and {more:,} more, which --json writes")
    show_lines(console, "[yellow]note:[/]", result.notes)


def _share_cells(share: Share) -> tuple[str, str]:
    if share.estimate is None:
        return "-", "-"
    return f"{100 * share.estimate:.1f}", f"{100 * share.low:.1f} to {100 * share.high:.1f}"
