"""`xsam-label diff`: compare two runs or two outputs, and print, save and show what has changed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.commands.console import literal, print_json, show_lines, size
from flows.run.existing_runs import no_run
from pipelines.diff.changes import Difference
from pipelines.diff.comparison import KEPT_IOU, Comparison, compare_sides
from pipelines.diff.page import build_page
from pipelines.diff.sides import Chosen
from pipelines.diff.tally import IOU_BINS, PromptTally
from pipelines.errors import PlanError
from pipelines.planning.plan import plan_documents
from pipelines.redaction import counted
from pipelines.storage.store import Store, open_store
from pipelines.storage.targets import Target, open_target, write_target

_MAX_PROMPTS = 40
_PICTURES = 12
_COLUMNS = (Difference.KEPT, Difference.MOVED, Difference.RELABELED, Difference.LOST, Difference.ADDED)
_STEPS = (0.95, 0.9, 0.75, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffChoice:
    """What is compared, and where the results go.

    Attributes:
        before, after: run ids; None for what is current.
        other: path or URI of the output that ``after`` is of; by default the same one.
        where: SQL condition on masks.
        kept_iou: least IoU of masks that count as kept.
        as_json: whether to print all figures as one JSON document.
        table, page: paths or URIs of new files for the rows and the pictures.
        with_kept: whether the table has rows for kept masks.
        overwrite: whether files may be replaced.
    """

    before: str | None = None
    after: str | None = None
    other: str | None = None
    where: str = ""
    kept_iou: float = KEPT_IOU
    as_json: bool = False
    table: str | None = None
    page: str | None = None
    with_kept: bool = False
    overwrite: bool = False


def run_diff(output: str, choice: DiffChoice, console: Console) -> Comparison:
    """Compare, and print the figures.

    Args:
        output: path or URI of the output.
        choice: what is compared.
        console: where to print.

    Raises:
        PlanError: there is no such run.
        SourceError: the condition is none, or there is nothing to compare.
        StorageError: an output cannot be read, or a file exists or cannot be written.
    """
    table, page = (
        _target(output, choice, *one)
        for one in (
            (choice.table, ".parquet", "changes are written as .parquet"),
            (choice.page, ".html", "a page is written as .html"),
        )
    )
    before, after = _sides(output, choice)
    with console.status("opening the tables") as spinner:

        def on_image(number: int) -> None:
            if number % 500 == 0:
                spinner.update(f"comparing: {number:,} images")

        with _place(table) as place:
            rows = None if table is None else place / "changes.parquet"
            found = compare_sides(
                before,
                after,
                place,
                kept_iou=choice.kept_iou,
                where=choice.where,
                table=rows,
                with_kept=choice.with_kept,
                num_largest=0 if page is None else _PICTURES,
                on_image=on_image,
            )
            if table is not None and rows is not None:
                table.publish(rows)
        if page is not None:
            text = build_page(found, after.store, made_at=datetime.now(UTC), on_step=spinner.update)
            write_target(page, text.encode())
    if choice.as_json:
        print_json(console, found.to_dict())
        return found
    show_comparison(found, console)
    if table is not None:
        console.print(f"{counted(found.num_rows, 'row')} written to {literal(str(choice.table))}")
    if page is not None:
        console.print(f"{literal(str(choice.page))}: {size(len(text.encode()))}, open it in a browser")
    return found


def _target(output: str, choice: DiffChoice, uri: str | None, suffix: str, what: str) -> Target | None:
    if uri is None:
        return None
    if choice.other is not None:  # which must not be written into either
        open_target(uri, overwrite=choice.overwrite, output=choice.other)
    return open_target(uri, overwrite=choice.overwrite, output=output, suffixes=(suffix,), what=what)


@contextmanager
def _place(table: Target | None) -> Iterator[Path]:
    """Make a folder for what does not fit into memory, and for the table before it has its name."""
    if table is not None:
        with table.place() as place:
            yield place
        return
    with tempfile.TemporaryDirectory(prefix="xsam-label-diff-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _sides(output: str, choice: DiffChoice) -> tuple[Chosen, Chosen]:
    """Return what is compared. Without a run or another output: what the last run has changed."""
    store = open_store(output)
    runs = _runs(store, choice.before)
    if choice.other is not None:
        second = open_store(choice.other)
        _runs(second, choice.after)
        return Chosen(store=store, run_id=choice.before), Chosen(store=second, run_id=choice.after)
    if choice.after is not None:
        _runs(store, choice.after)
    if choice.before is not None:
        return Chosen(store=store, run_id=choice.before), Chosen(store=store, run_id=choice.after)
    if len(runs) < 2:
        raise PlanError(
            f"{store.uri} holds one run, {runs[0]}, so there is nothing to compare it with: name another output with "
            "--other"
        )
    return Chosen(store=store, without_run=runs[-1]), Chosen(store=store, images_of=runs[-1])


def _runs(store: Store, run_id: str | None) -> list[str]:
    """Return the runs of an output in order, among which one must be."""
    runs = list(plan_documents(store))
    if not runs or (run_id is not None and run_id not in runs):
        raise no_run(store.uri, run_id, runs)
    return runs


def show_comparison(found: Comparison, console: Console) -> None:
    """Print the figures of images, and of masks by prompt."""
    images = found.images
    console.print(f"before: {literal(str(found.before))}")
    console.print(f"after:  {literal(str(found.after))}")
    table = Table(
        title=f"{counted(images.compared, 'image')} compared, {images.changed:,} changed", title_justify="left"
    )
    for name in ("prompt", "images", "before", *(one.value for one in _COLUMNS), "unanswered", "after", "mean IoU"):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    for name, tally in list(found.prompts.items())[:_MAX_PROMPTS]:
        table.add_row(literal(name), *_figures(tally))
    if len(found.prompts) > 1:
        table.add_section()
        table.add_row("all", "", *_figures(found.total)[1:])
    console.print(table)
    if (more := len(found.prompts) - _MAX_PROMPTS) > 0:
        console.print(f"  and {counted(more, 'more prompt')}, which --json has")
    if found.total.num_paired:
        console.print(_distribution(found.total))
    show_lines(console, "[yellow]note:[/]", found.notes)


def _figures(tally: PromptTally) -> list[str]:
    mean = "-" if tally.mean_iou is None else f"{tally.mean_iou:.3f}"
    counts = (tally.images, tally.masks_before, *(tally.counts[one] for one in _COLUMNS))
    return [*(f"{count:,}" for count in (*counts, tally.num_unanswered, tally.masks_after)), mean]


def _distribution(tally: PromptTally) -> str:
    """Tell how well masks agree that were found again under the same name."""
    edges, parts, high = [round(step * IOU_BINS) for step in (*_STEPS, 0)], [], IOU_BINS
    for low in edges:
        count = sum(tally.iou_counts[low:high])
        name = f"below {high / IOU_BINS:g}" if not low else f"from {low / IOU_BINS:g}"
        parts += [f"{name}: {count:,} ({100 * count / tally.num_paired:.1f} %)"] if count or low else []
        high = low
    return f"IoU of {counted(tally.num_paired, 'mask')} found again under the same name: {', '.join(parts)}"
