"""`xsam-label export` and `import`: to another tool's format, and back what people have edited there."""

from __future__ import annotations

import time

from rich.console import Console

from flows.commands.console import duration, facts_table, literal, show_problems
from flows.run.summary import summarize, versions
from pipelines.errors import SourceError
from pipelines.export.write import Choice, Export, export_output
from pipelines.importing.imports import READERS, ImportChoice, Imported, import_file
from pipelines.layout import summary_name
from pipelines.redaction import counted, quoted, shown
from pipelines.storage.store import Store, open_store
from pipelines.table.leftovers import remove_losers
from pipelines.table.run_summary import summary_bytes
from pipelines.table.verify import verify
from pipelines.types import Change

_SHOWN_EVERY_S = 0.2
_SHOWN_IMAGES = 20


def run_export(
    output: str, target: str, format_name: str, choice: Choice, console: Console, *, overwrite: bool = False
) -> Export:
    """Export an output, and print what was written.

    Args:
        output: path or URI of the output.
        target: path or URI of a new file or folder.
        format_name: one of pipelines.export.write.FORMATS.
        choice: what is exported.
        console: where to print.
        overwrite: whether to replace a file, or an earlier export's folder.

    Raises:
        SourceError, StorageError: as for ``export_output``; nothing is written.
    """
    started = time.monotonic()
    with console.status("finding what is to be exported") as spinner:
        begun, shown = 0.0, 0.0

        def on_masks(done: int, total: int) -> None:
            nonlocal begun, shown
            now = time.monotonic()
            begun = begun or now
            if now - shown >= _SHOWN_EVERY_S:
                shown = now
                rate = done / max(now - begun, 1e-3)
                left = duration((total - done) / rate) if rate else "some time"
                spinner.update(f"writing: {done:,} of {total:,} masks, {rate:,.0f} masks/s, {left} left")

        export = export_output(open_store(output), target, format_name, choice, overwrite=overwrite, on_masks=on_masks)
    _show(export, format_name, time.monotonic() - started, console)
    return export


def _show(export: Export, format_name: str, seconds: float, console: Console) -> None:
    rows: list[tuple[str, object]] = []
    for split, images in export.num_images.items():
        rows.append((split or "exported", f"{counted(images, 'image')}, {counted(export.num_masks[split], 'mask')}"))
    rows.append(("categories", f"{export.num_categories:,}"))
    if export.num_quarantined:
        rows.append(("left out", f"{counted(export.num_quarantined, 'quarantined image')}"))
    if export.num_forgotten:
        rows.append(
            ("left out", f"{counted(export.num_forgotten, 'image that was', 'images that were')} forgotten on request")
        )
    if export.num_unasked:
        rows.append(("left out", f"{counted(export.num_unasked, 'image')} that nothing of this was asked of"))
    if export.num_partly_asked:
        rows.append(
            (
                "note",
                f"{counted(export.num_partly_asked, 'image was', 'images were')} never asked about some of these "
                "categories: docs/export.md",
            )
        )
    rows += [
        ("left out", f"{counted(masks, 'mask')} of {task}: name it with --task")
        for task, masks in export.left_out.items()
    ]
    rows += [("note", note) for note in export.notes]
    rows.append(("time", duration(seconds)))
    console.print(facts_table(f"{format_name} in {literal(export.path)}", rows))


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
        problems = [] if dry_run else _finish_import(store, imported, time.monotonic() - started)
    _show_import(imported, file, console, dry_run=dry_run)
    show_problems(console, problems)
    return not problems


def _finish_import(store: Store, imported: Imported, elapsed_s: float) -> list[str]:
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


def _show_import(imported: Imported, file: str, console: Console, *, dry_run: bool) -> None:
    changes = [(one.value, f"{imported.changes.get(one.value, 0):,}") for one in Change]
    rows: list[tuple[str, object]] = [("images", f"{imported.num_images:,}"), *changes]
    if imported.num_unreviewed:
        told = "without a change, not taken as looked at (--reviewed: they were)"
        rows.append(("left alone", f"{counted(imported.num_unreviewed, 'image')} {told}"))
    if imported.num_known:
        rows.append(("left alone", f"{counted(imported.num_known, 'image')} of which all is known already"))
    for one in imported.left_out[:_SHOWN_IMAGES]:
        rows.append(("left out", f"{shown(one['image'])}: {one['reason']}"))
    if (more := len(imported.left_out) - _SHOWN_IMAGES) > 0:
        rows.append(("left out", f"{counted(more, 'more image')}"))
    if imported.plan is None:
        end = f"would be run {imported.run_id}" if dry_run and imported.num_images else "nothing is new"
        rows.append(("written", f"nothing: {end}"))
    elif imported.committed_before == imported.plan.num_shards:
        rows.append(("written", f"nothing: this file was imported before, as run {imported.run_id}"))
    else:
        rows.append(("written", f"run {imported.run_id}"))
    console.print(facts_table(f"masks of {literal(shown(file))}", rows))
