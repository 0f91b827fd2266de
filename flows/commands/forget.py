"""`xsam-label forget`: show what an output holds of some images, ask, and erase it."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.console import Console

from flows.commands.console import erasure_line, facts_table, literal, show_lines, show_problems, show_warnings
from pipelines.errors import SourceError, UserError, some_of, some_texts
from pipelines.forgetting import Erased, Found, choose, forget
from pipelines.planning.erasures import read_forgotten
from pipelines.redaction import counted, quoted
from pipelines.storage.store import Store, open_store

_SHOWN_IDS = 5


def run_forget(
    output: str, console: Console, *, images_where: str, ids_file: Path | None, is_sure: bool, dry_run: bool
) -> bool:
    """Erase images from an output, or complete an erasure that was begun.

    Args:
        output: path or URI of the output.
        console: where to print.
        images_where: SQL condition on images.
        ids_file: text file of further ids, one a line.
        is_sure: whether to erase without asking.
        dry_run: whether to show only what would be erased.

    Returns:
        Whether nothing is left of them.

    Raises:
        PlanError: there is no run, or one that is not finished.
        SourceError: the condition or the file cannot be used.
        StorageError: the output cannot be read or written.
    """
    store = open_store(output)
    begun = read_forgotten(store).unfinished
    if not (images_where or ids_file or begun):
        raise SourceError("say which images: --images-where \"image_id = 'a.jpg'\", or --image-ids FILE")
    ids = [] if ids_file is None else _read_ids(ids_file)
    for erasure in begun:
        what = "not ended, the same without --dry-run completes it" if dry_run else "completed now"
        console.print(f"begun and {what}: {literal(erasure_line(erasure))}", highlight=False)
    # It was confirmed when it began. Afterwards its images fit no condition any more.
    if begun and not dry_run and not _erase(store, Found(), console):
        return False
    if not (images_where or ids):
        return True
    with console.status("finding the images"):
        found = choose(store, images_where=images_where, image_ids=ids)
    _show_found(found, store, console)
    if dry_run or not found.image_ids:
        console.print("nothing was changed" if dry_run else "nothing is to be forgotten")
        return True
    if not is_sure and not _confirmed():
        console.print("nothing was changed")
        return False
    return _erase(store, found, console)


def _erase(store: Store, found: Found, console: Console) -> bool:
    with console.status("forgetting") as spinner:
        erased = forget(store, found, on_step=lambda step: spinner.update(literal(step)))
    return _show_erased(erased, store, console)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("nobody is here to be asked whether to erase this: say --yes; nothing was changed")
    return typer.confirm("Erase this? It cannot be undone")


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: ids may hold rarer line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as text with an id a line ({error})") from error
    if not (ids := [text for line in lines if (text := line.removesuffix("\r"))]):
        raise SourceError(f"{path}: holds no id; write one a line")
    return ids


def _show_found(found: Found, store: Store, console: Console) -> None:
    shards = ", ".join(f"{number:,} of {run_id}" for run_id, number in found.shards.items())
    rows: list[tuple[str, object]] = [("images", f"{len(found.image_ids):,}")]
    if found.image_ids:
        examples = [quoted(image_id) for image_id in found.image_ids[:_SHOWN_IDS]]
        more = len(found.image_ids) - len(examples)
        rows.append(("", ", ".join(examples) + (f" and {more:,} more" if more else "")))
        rows += [("masks", f"{found.masks:,} in all runs"), ("shards", f"{shards}: rewritten without them")]
        rows.append(("recorded", f"in the ledger: {found.condition} (values are never kept)"))
    if found.known:
        rows.append(("forgotten before", f"{found.known:,} of the ids"))
    if found.unknown:
        unknown = some_texts(map(quoted, found.unknown))
        rows.append(("not in the output", f"{len(found.unknown):,} of the ids: {unknown}"))
    console.print(facts_table(f"to be forgotten in {literal(store.uri)}", rows))


def _show_erased(erased: Erased, store: Store, console: Console) -> bool:
    rows: list[tuple[str, object]] = [
        ("images", f"{erased.images:,}, of which nothing is kept but salted hashes of their names"),
        ("written", f"{erased.written:,} data files without them"),
        ("removed", f"{counted(len(erased.removed), 'file')}"),
    ]
    if reports := sum(name.endswith("/report.html") for name in erased.removed):
        rows.append(("reports", f"{reports:,} of the files: xsam-label report makes a new one"))
    console.print(facts_table(f"forgotten in {literal(store.uri)}", rows))
    show_lines(console, "[red]left:[/]", (f"{what}; forget again once that is over" for what in erased.left))
    show_problems(console, erased.problems)
    if erased.others:
        others = (
            f"{counted(len(erased.others), 'file there was', 'files there were')} not looked into, "
            "since they are not the output's own"
        )
        show_warnings(console, [f"{others}: {some_of(erased.others)}"])
    where = "exports, reports and copies elsewhere, logs, and backups"
    versions = "" if store.is_local else ", and earlier versions of objects, if the bucket keeps them"
    console.print(f"not reached: the images themselves, {where}{versions}")
    return not erased.left and not erased.problems
