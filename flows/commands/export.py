"""`xsam-label export`: write an output in another tool's format, with progress, and print what was left out."""

from __future__ import annotations

import time

from rich.console import Console

from flows.commands.console import duration, facts_table, literal
from pipelines.export.write import Choice, Export, export_output
from pipelines.redaction import counted
from pipelines.storage.store import open_store

_SHOWN_EVERY_S = 0.2


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
