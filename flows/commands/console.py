"""Terminal output: live progress, and tables for plan, status and summary. Rendering only."""

from __future__ import annotations

import json
import shlex
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.status import Status as RichStatus
from rich.table import Table

from actors.pool.runner import PoolEvent, ShardFailure
from flows.commands.terminal import heard
from flows.run.observer import LOUD
from flows.run.summary import RunSummary
from flows.run.updates import update_text
from pipelines.bounded_json import plain_json
from pipelines.image_formats import LeftOut
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.erasures import Erasure
from pipelines.planning.plan import Plan
from pipelines.planning.prompt_table import row_name
from pipelines.redaction import counted, shown
from pipelines.table.verify import VerifyReport
from pipelines.types import Reason, ShardReceipt, Status

MAX_LINES = 20
"""How many lines a command prints for one cause."""
IN_JSON = ": --json has them"
_LINE_INTERVAL_S = 5.0
_QUARANTINED = "\"SELECT image_id, error FROM images WHERE status = 'quarantined'\""


class ConsoleObserver:
    """Shows a run's progress: a live bar on a terminal, a line every few seconds elsewhere. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts: Counter[str] = Counter()
        self._masks = 0
        self._images = 0
        self._left = 0
        self._started = self._shown = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("labeling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[counts]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("label", total=None, rate="starting replicas", counts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Print the plan, and set the length of the bar."""
        done = plan.images_in_first(committed)
        self._left = plan.num_images - done
        self._started = self._shown = time.monotonic()
        self._progress.update(self._task, total=plan.num_images, completed=done)
        resumed = f", {committed:,} committed before" if committed else ""
        self._console.print(
            f"run [bold]{plan.run_id}[/]: {counted(plan.num_images, 'image')} in "
            f"{counted(plan.num_shards, 'shard')}{resumed}"
        )
        show_lines(self._console, "  beside them:", LeftOut.from_dict(plan.facts.get("left_out") or {}).say())

    def on_update(self, update: UpdateCounts) -> None:
        """Print what an incremental run found."""
        self._console.print(f"update: {update_text(update)}")

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Count a committed shard."""
        images = sum(receipt.status_counts.values())
        self._images += images
        self._counts.update(receipt.status_counts)
        self._masks += receipt.num_annotations
        self._progress.update(self._task, advance=images, rate=self._rate(), counts=self._count_text())
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._shown >= _LINE_INTERVAL_S or self._images >= self._left):
            self._shown = now
            self._console.print(f"  {self._images:,}/{self._left:,} images  {self._rate()}  {self._count_text()}")

    def on_failure(self, failure: ShardFailure) -> None:
        """Print a shard that was given up."""
        first = failure.error.splitlines()[0] if failure.error else failure.kind
        heard(self._console).print(
            f"[red]{failure.shard_id} failed[/] after {counted(failure.attempts, 'attempt')}: {literal(first)}"
        )

    def on_event(self, event: PoolEvent) -> None:
        """Print what happens to replicas; the rate is measured from when the first one is ready."""
        if event.kind == "replica_started" and not self._images:
            self._started = time.monotonic()
        message = literal(event.message.splitlines()[0])
        style = "yellow" if event.kind in LOUD else "dim"
        shown = heard(self._console) if event.kind in LOUD else self._console
        shown.print(f"[{style}]{event.kind.replace('_', ' ')}:[/] [dim]{message}[/]", highlight=False)

    def _rate(self) -> str:
        rate = self._images / max(1e-9, time.monotonic() - self._started)
        return f"{rate:.1f} images/s, {duration(max(0, self._left - self._images) / rate)} left"

    def _count_text(self) -> str:
        counts = Status.counted(self._counts)
        shown = [f"{count:,} {name}" for name, count in counts.items() if count or name != Status.NOT_ASKED]
        return ", ".join(shown) + f", {counted(self._masks, 'mask')}"


class ListingProgress:
    """Shows how many images have been listed: beside the spinner on a terminal, else a line every few seconds."""

    def __init__(self, console: Console, spinner: RichStatus) -> None:
        self._console, self._spinner = console, spinner
        self._started = self._shown = time.monotonic()

    def __call__(self, count: int) -> None:
        """Show the number of images listed so far."""
        now = time.monotonic()
        text = f"{counted(count, 'image')} listed, {count / max(now - self._started, 1e-9):,.0f}/s"
        if self._console.is_terminal:
            self._spinner.update(text)
        elif now - self._shown > _LINE_INTERVAL_S:
            self._console.print(text, highlight=False)
            self._shown = now


def literal(text: object) -> str:
    """Escape a text for display: no markup, and no control characters that a terminal would obey.

    Keys of images may contain either.
    """
    return escape("".join(_visible(char) for char in str(text)))


def _visible(char: str) -> str:
    # Line breaks come from our own messages. Cc: control characters; Cf: e.g. those that change the writing direction.
    return char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf") else f"\\x{ord(char):02x}"


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 20 s, 5 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Format a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def facts_table(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Return a two-column table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", literal(value))
    return table


def ledger_rows(ledger: Mapping[str, int], reasons: Mapping[str, int]) -> list[tuple[str, object]]:
    """Return rows with the counts of listed images and of each status; below quarantined its reasons."""
    order = {reason.value: number for number, reason in enumerate(Reason)}
    below = [(f"  {name}", f"{reasons[name]:,}") for name in sorted(reasons, key=lambda n: order.get(n, 99))]
    rows: list[tuple[str, object]] = []
    for name, number in ledger.items():
        rows += [(name, f"{number:,}"), *(below if name == Status.QUARANTINED else ())]
    return rows


def noted_row(num_noted: int) -> list[tuple[str, object]]:
    """Return a row that counts the images with pixel_notes; none if there are none."""
    if not num_noted:
        return []
    return [("notes", f"{counted(num_noted, 'image')} not seen as stored: pixel_notes of `images`, docs/pictures.md")]


def print_json(console: Console, document: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    is_quiet, console.quiet = console.quiet, False  # it is what was asked for
    try:
        console.out(json.dumps(plain_json(document), indent=1), highlight=False)
    finally:
        console.quiet = is_quiet


def show_lines(console: Console, label: str, lines: Iterable[object], *, rest: str = "") -> None:
    """Print texts, a line each, after a label with markup: the first MAX_LINES, and where the others are (``rest``)."""
    every = list(lines)
    for line in every[:MAX_LINES]:
        console.print(f"{label} {literal(line)}", highlight=False)
    if (more := len(every) - MAX_LINES) > 0:
        console.print(f"{label} and {more:,} more{rest}", highlight=False)


def show_warnings(console: Console, warnings: Iterable[object]) -> None:
    """Print warnings, a line each."""
    show_lines(heard(console), "[yellow]warning:[/]", warnings)


def show_problems(console: Console, problems: Iterable[str], *, rest: str = "") -> None:
    """Print problems, a line each; ``rest`` as for `show_lines`."""
    show_lines(heard(console), "[red]problem:[/]", problems, rest=rest)


def erasure_line(erasure: Erasure) -> str:
    """Return what the ledger tells of an erasure: how many images, when, and by which condition."""
    return f"{counted(erasure.num_images, 'image')}, asked for at {erasure.asked_at} by: {erasure.condition}"


def show_erasures(console: Console, erasures: Iterable[Erasure]) -> None:
    """Print which erasures an output has seen."""
    for erasure in erasures:
        end = "" if erasure.done else "; [yellow]it has not ended: xsam-label forget completes it[/]"
        console.print(f"[dim]forgotten:[/] {literal(erasure_line(erasure))}{end}", highlight=False)


def show_summary(console: Console, summary: RunSummary, prompts: str | None = None) -> None:
    """Print how a run ended; ``prompts`` is its prompt table."""
    rows = ledger_rows(summary.ledger, summary.reason_counts)
    rows.append(("masks", f"{summary.num_annotations:,}"))
    rows += noted_row(summary.facts.get("images_with_pixel_notes", 0))
    rows.append(("shards", f"{summary.committed:,} of {summary.shards:,}, {summary.labelled_now:,} labeled now"))
    rows.append(("time", duration(summary.elapsed_s)))
    rows.append(("model time", f"{duration(summary.model_s)}, added up over all shards"))
    console.print(facts_table(f"[bold]{summary.run_id}[/] in {literal(summary.output)}", rows))
    show_rejected(console, summary.rejected_prompts, summary.num_rejected_prompts, prompts)
    show_warnings(console, summary.warnings)
    show_problems(console, summary.failures)
    output = shlex.quote(summary.output)
    if summary.ledger["quarantined"]:
        show_lines(console, "[dim]which and why:[/]", [f"xsam-label query {output} {_QUARANTINED}"])
    if summary.has_succeeded:
        show_lines(console, "[dim]see them:[/]", [f"xsam-label report {output}"])


def show_rejected(console: Console, rejected: list[dict[str, Any]], total: int, prompts: str | None) -> None:
    """Print the rejected prompts of the table ``prompts``, by line."""
    if not total:
        return
    console = heard(console)
    console.print(f"[yellow]{counted(total, 'prompt')} could not be asked:[/]")
    for row in rejected[:MAX_LINES]:
        text = f"{row_name(prompts, row['row'])}: {shown(row['image'])} {shown(row['prompt_id'])}: {row['reason']}"
        console.print(f"  {literal(text)}", highlight=False)
    if total > MAX_LINES:
        console.print(f"  and {total - MAX_LINES:,} more, in summary.json")


def show_report(console: Console, report: VerifyReport) -> None:
    """Print what verify found."""
    rows = ledger_rows(report.ledger(), report.reason_counts)
    rows.append(("masks", f"{report.num_annotations:,}"))
    rows.append(("shards", f"{report.committed:,} of {report.shards:,} committed"))
    rows.append(("leftovers", f"{counted(len(report.leftovers), 'file')} that no commit names"))
    console.print(facts_table(f"[bold]{report.run_id}[/]", rows))
    show_lines(console, "[yellow]note:[/]", report.notes, rest=IN_JSON)
    show_problems(console, report.problems, rest=IN_JSON)
    console.print("[green]whole[/]" if report.ok else "[red]not whole[/]")
