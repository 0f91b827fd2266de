"""`xsam-label import`: take what people have corrected, and print what it came to."""

from __future__ import annotations

import time

from rich.console import Console

from flows.commands.console import facts_table, literal, show_problems
from flows.run.summary import summarize, versions
from pipelines.errors import SourceError
from pipelines.importing.imports import READERS, ImportChoice, Imported, import_file
from pipelines.layout import summary_name
from pipelines.redaction import counted, quoted, shown
from pipelines.storage.store import Store, open_store
from pipelines.table.leftovers import remove_losers
from pipelines.table.run_summary import summary_bytes
from pipelines.table.verify import verify
from pipelines.types import Change

_SHOWN = 20


def run_import(output: str, file: str, choice: ImportChoice, console: Console, *, dry_run: bool = False) -> bool:
    """Import a file into an output, and print what it came to.

    Args:
        output: path or URI of the output.
        file: path or URI of the file.
        choice: how it is read.
        console: where to print.
        dry_run: whether to show only what would be imported.

    Returns:
        Whether the run that holds the corrections is whole, if there is one.

    Raises:
        SourceError, PlanError, StorageError: as for ``import_file``.
    """
    if choice.format_name not in READERS:
        raise SourceError(f"format {quoted(choice.format_name)} is none of {', '.join(READERS)}")
    store, started = open_store(output), time.monotonic()
    with console.status("comparing the file with the output"):
        facts = {"versions": dict(versions())}
        imported = import_file(store, file, choice, dry_run=dry_run, facts=facts)
        problems = [] if dry_run else _finish(store, imported, time.monotonic() - started)
    _show(imported, file, console, dry_run=dry_run)
    show_problems(console, problems)
    return not problems


def _finish(store: Store, imported: Imported, elapsed_s: float) -> list[str]:
    """Verify a run of corrections that was committed now, leave its summary, and return what is wrong with it."""
    plan = imported.plan
    if plan is None or (imported.committed_before == plan.num_shards and store.exists(summary_name(plan.run_id))):
        return []
    remove_losers(store, plan.run_id)
    report = verify(store, plan.run_id, deep=False)
    summary = summarize(
        store,
        plan,
        report,
        failures=[],
        stopped="",
        committed_before=imported.committed_before,
        elapsed_s=elapsed_s,
    )
    store.write(summary_name(plan.run_id), summary_bytes(summary.to_dict()))
    return report.problems


def _show(imported: Imported, file: str, console: Console, *, dry_run: bool) -> None:
    changes = [(one.value, f"{imported.changes.get(one.value, 0):,}") for one in Change]
    rows: list[tuple[str, object]] = [("images", f"{imported.num_images:,}"), *changes]
    if imported.num_unreviewed:
        told = "without a change, not taken as looked at (--reviewed: they were)"
        rows.append(("left alone", f"{counted(imported.num_unreviewed, 'image')} {told}"))
    if imported.num_known:
        rows.append(("left alone", f"{counted(imported.num_known, 'image')} of which all is known already"))
    for one in imported.left_out[:_SHOWN]:
        rows.append(("left out", f"{shown(one['image'])}: {one['reason']}"))
    if (more := len(imported.left_out) - _SHOWN) > 0:
        rows.append(("left out", f"{counted(more, 'more image')}"))
    if imported.plan is None:
        end = f"would be run {imported.run_id}" if dry_run and imported.num_images else "nothing is new"
        rows.append(("written", f"nothing: {end}"))
    elif imported.committed_before == imported.plan.num_shards:
        rows.append(("written", f"nothing: this file was imported before, as run {imported.run_id}"))
    else:
        rows.append(("written", f"run {imported.run_id}"))
    console.print(facts_table(f"masks of {literal(shown(file))}", rows))
