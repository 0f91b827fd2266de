"""`plan`, `verify`, `vacuum`, `compact` and the option `--check`: inspect or tidy an output; no label is changed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from rich.console import Console

from flows.commands.console import (
    IN_JSON,
    MAX_LINES,
    ListingProgress,
    facts_table,
    literal,
    print_json,
    show_erasures,
    show_lines,
    show_problems,
    show_rejected,
    show_report,
    show_warnings,
    size,
)
from flows.config import RunConfig
from flows.run import planning
from flows.run.existing_runs import existing_plans, no_run
from flows.run.summary import rejected_row
from flows.run.updates import is_labeled, unfinished_runs
from pipelines.compaction import compact
from pipelines.compaction.compacted import verify_compacted
from pipelines.compaction.removal import vacuum_compacted
from pipelines.errors import DamagedError, some_of
from pipelines.lakehouse.removal import vacuum_published
from pipelines.layout import KINDS
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.draft import PlanDraft
from pipelines.planning.erasures import Forgotten, read_forgotten
from pipelines.planning.exemplars.config import by_label
from pipelines.planning.plan import Plan, check_no_plan_lost, plan_documents, planned_runs
from pipelines.planning.registered_runs import registered_problems
from pipelines.redaction import counted, quoted_names, shown
from pipelines.storage.store import Store, open_store
from pipelines.table.file_checks import check_hashes
from pipelines.table.leftovers import vacuum
from pipelines.table.repairs import Due
from pipelines.table.stray_files import stray_files
from pipelines.table.verify import VerifyReport, verify

_MAX_BROKEN = 10


def show_plan(config: RunConfig, console: Console, *, as_json: bool = False) -> None:
    """Print what a run with this config would do; nothing is written.

    Args:
        config: the run.
        console: where to print.
        as_json: whether to print one JSON document instead.

    Raises:
        PlanError: the output has a run with another fingerprint.
        ConfigError, SourceError, PromptTableError, StorageError: the run could not start.
    """
    told = _show_outlook(config, Console(quiet=True) if as_json else console)
    if as_json:
        print_json(console, told)


def _show_outlook(config: RunConfig, console: Console) -> dict[str, Any]:
    """Print what a run would do, and return it as JSON values."""
    store = planning.open_output(config)
    unfinished = _unfinished(config, store)
    told: dict[str, Any] = {"output": store.uri, "resumed": [_held_facts(held, due) for held, due in unfinished]}
    for held, due in unfinished:
        _show_held(held, due, store, console)
    # What is new depends on how these end, unless only broken shards are left to repair.
    if not all(is_labeled(store, held) for held, _ in unfinished):
        console.print("new images can be counted once these runs are finished")
        return told
    try:
        with (
            console.status("listing") as spinner,
            planning.draft_run(config, ListingProgress(console, spinner)) as draft,
        ):
            pass  # only the counts are shown, so the draft's files may go
    except DamagedError:
        if not unfinished:
            raise
        console.print("new images can be counted once these runs are finished")
        return told
    told |= {"warnings": list(draft.notes), "beside_the_images": list(draft.left_out.say())}
    show_warnings(console, draft.notes)
    show_lines(console, "[yellow]beside the images:[/]", draft.left_out.say())
    if draft.update is not None:
        told["update"] = dataclasses.asdict(draft.update)
        console.print(facts_table(f"update of {literal(store.uri)}", _update_rows(draft.update)))
        if draft.held is not None:
            if unfinished:
                console.print("nothing else is left to ask")
            else:
                console.print("nothing is left to ask: a run would make no model call and write nothing")
            return told
    if draft.held is not None and draft.nothing_new:
        console.print(f"{draft.nothing_new}: nothing would be labeled")
        return told
    if draft.held is not None:
        due = planning.left_to_label(store, draft.held, check=config.output.check)
        told["resumed"].append(_held_facts(draft.held, due))
        _show_held(draft.held, due, store, console)
        return told
    return told | {"planned": _show_new(config, draft, store, console)}


def _show_new(config: RunConfig, draft: planning.RunDraft, store: Store, console: Console) -> dict[str, Any]:
    plan = draft.plan
    assert plan is not None, "a draft holds a plan, written or not"
    told = {
        **{"run_id": draft.run_id, "images": plan.num_images, "num_bytes": plan.num_bytes or None},
        **{"shards": plan.num_shards, "own_prompts": plan.num_own_prompts, "rejected_prompts": len(draft.rejected)},
    }
    if not plan.num_images:
        console.print("nothing is left to ask: a run would only note what is asked now and which images are not listed")
        return told
    rows: list[tuple[str, object]] = [
        ("images", f"{plan.num_images:,}, {_size(plan)}"),
        ("shards", f"{plan.num_shards:,} of up to {counted(plan.images_per_shard, 'image')}"),
        ("prompts", _count_prompts(draft.config, plan.num_own_prompts)),
        ("replicas", f"{config.pool.replicas} ({config.pool.chosen_runner})"),
        ("first", shown(plan.first_uri or "")),
        ("last", shown(plan.last_uri or "")),
    ]
    console.print(facts_table(f"run [bold]{draft.run_id}[/] would be planned in {literal(store.uri)}", rows))
    show_rejected(console, [rejected_row(r) for r in draft.rejected], len(draft.rejected), config.prompts)
    return told


def _size(plan: Plan | PlanDraft) -> str:
    """Describe the size of the images; a list, for example, tells none."""
    return f"{size(plan.num_bytes)} as listed" if plan.num_bytes else "size unknown"


def _unfinished(config: RunConfig, store: Store) -> list[tuple[Plan, Due]]:
    """Return the runs that an incremental run would finish first, each with its due shards."""
    if not config.incremental or config.output.run_id is not None:
        return []
    runs = unfinished_runs(store, check=config.output.check)
    found = ((plan, planning.left_to_label(store, plan, check=config.output.check)) for plan in runs)
    return [(plan, due) for plan, due in found if due.commits]


def _update_rows(update: UpdateCounts) -> list[tuple[str, object]]:
    added = quoted_names(update.added_prompts)
    return [
        ("new images", f"{update.new:,}: asked everything"),
        ("changed", f"{update.changed:,}: asked everything again"),
        ("known", f"{update.extended:,}: asked what is new" + (f": {added}" if added else "")),
        ("covered", f"{update.covered:,}: nothing left to ask"),
        ("gone", f"{update.gone:,} of earlier runs are not listed any more; their rows stay"),
    ]


def _held_facts(plan: Plan, due: Due) -> dict[str, Any]:
    left = len(due.commits)
    return {
        **{"run_id": plan.run_id, "images": plan.num_images, "shards": plan.num_shards, "left": left},
        "broken": [{"shard_id": one.shard_id, "problem": one.problem} for one in due.broken],
    }


def _show_held(plan: Plan, due: Due, store: Store, console: Console) -> None:
    left = len(due.commits)
    rows: list[tuple[str, object]] = [
        ("images", f"{plan.num_images:,}, {_size(plan)} when it was planned"),
        ("shards", f"{plan.num_shards:,}, {plan.num_shards - left:,} committed, {left:,} to label"),
    ]
    console.print(facts_table(f"run [bold]{plan.run_id}[/] would be resumed in {literal(store.uri)}", rows))
    broken = [f"{one.shard_id}: {one.problem}; it would be labeled again" for one in due.broken[:_MAX_BROKEN]]
    if (more := len(due.broken) - _MAX_BROKEN) > 0:
        broken.append(f"{counted(more, 'more committed shard')} would be labeled again")
    show_warnings(console, broken)


def _count_prompts(config: RunConfig, num_own: int) -> str:
    """Describe how many prompts are asked of every image, and of single images."""
    counts = [
        (len(config.categories), "category", "categories"),
        (len(config.phrases), "phrase", "phrases"),
        (len(config.questions) + len(config.chat), "question", "questions"),
        (int(config.caption), "caption", "captions"),
        (len(by_label(config.exemplars_frozen)), "label shown by exemplars", "labels shown by exemplars"),
    ]
    common = [f"{number:,} {one if number == 1 else several}" for number, one, several in counts if number]
    # A table of which no row can be asked is told as well.
    own = [f"{num_own:,} of single images"] if num_own or config.prompts or not common else []
    return ", ".join([*common, *own])


def show_verify(output: str, run_id: str | None, console: Console, *, deep: bool, as_json: bool = False) -> bool:
    """Verify one run or all runs, print the reports or one JSON document, and return whether the table is whole.

    Raises:
        PlanError: there is no such run.
        StorageError: the output cannot be read.
    """
    told = _show_verified(output, run_id, Console(quiet=True) if as_json else console, deep=deep)
    if as_json:
        print_json(console, told)
    return bool(told["is_whole"])


def _show_verified(output: str, run_id: str | None, console: Console, *, deep: bool) -> dict[str, Any]:
    """Verify runs, print what was found, and return it as JSON values."""
    store = open_store(output)
    held = _runs_in_order(store)
    problems, forgotten = list(registered_problems(store)), Forgotten()
    try:
        check_no_plan_lost(store)
    except DamagedError as error:
        problems.append(str(error))
    try:
        forgotten = read_forgotten(store)
    except DamagedError as error:
        problems.append(str(error))
    show_problems(console, problems, rest=IN_JSON)
    told: dict[str, Any] = {"output": store.uri, "is_whole": False, "problems": problems}
    if problems and not held and run_id is None:
        console.print("[red]not whole[/]")
        return told
    if not held or (run_id is not None and run_id not in held):
        raise no_run(output, run_id, held)
    reports = [_verify_run(store, one, console, deep=deep) for one in (held if run_id is None else [run_id])]
    wrong, notes = verify_compacted(store, deep=deep)
    show_problems(console, wrong, rest=IN_JSON)
    show_warnings(console, notes)
    show_erasures(console, forgotten.erasures)
    if strays := stray_files(store):
        console.print(
            f"{counted(len(strays), 'file that is not ours', 'files that are not ours')}, and left alone: "
            f"{literal(some_of(strays))}"
        )
    return {
        **told,
        "is_whole": not problems and not wrong and all(report.ok for report in reports),
        "problems": [*problems, *wrong],
        "warnings": notes,
        "erasures": [erasure.to_dict() for erasure in forgotten.erasures],
        "files_not_ours": strays,
        "runs": [_report_facts(report) for report in reports],
    }


def _report_facts(report: VerifyReport) -> dict[str, Any]:
    return {
        **{"run_id": report.run_id, "is_whole": report.ok, "ledger": report.ledger(), "reasons": report.reason_counts},
        **{"masks": report.num_annotations, "shards": report.shards, "committed": report.committed},
        **{"problems": report.problems, "notes": report.notes, "leftovers": report.leftovers},
    }


def _runs_in_order(store: Store) -> list[str]:
    """Return the planned runs in the order of planning, or sorted by name if a damaged plan hides that order."""
    try:
        return list(plan_documents(store))
    except DamagedError:
        return planned_runs(store)


def _verify_run(store: Store, run_id: str, console: Console, *, deep: bool) -> VerifyReport:
    with console.status("verifying") as spinner:
        done = Counter[str]()

        def on_shard(shard_id: str) -> None:
            done["shards"] += 1
            spinner.update(f"verifying {literal(run_id)}: {shard_id}, {done['shards']:,} done")

        report = verify(store, run_id, deep=deep, on_shard=on_shard)
    show_report(console, report)
    return report


def check_output(output: str, console: Console) -> None:
    """Compare every committed file of an output with the hash in its commit.

    Raises:
        PlanError: the output has no run.
        DamagedError: files do not match their commits; the message names them.
    """
    store = open_store(output)
    plans = plan_documents(store)
    if not plans:
        raise no_run(output)
    with console.status("comparing files with their hashes") as spinner:
        names = (name for run_id in plans for name in check_hashes(store, run_id))
        for number, name in enumerate(names, start=1):
            spinner.update(f"comparing files with their hashes: {number:,}, {literal(name)}")


def show_vacuum(
    output: str, run_id: str | None, console: Console, *, older_than_s: float, dry_run: bool, as_json: bool = False
) -> bool:
    """Remove files that nothing refers to, and print them; return whether everything could be removed.

    Args:
        output: path or URI of the output.
        run_id: the run whose files are looked at; by default those of all.
        console: where to print.
        older_than_s: how long ago they must have been written, if their shard is not committed, seconds.
        dry_run: whether nothing is removed.
        as_json: whether to print one JSON document instead.

    Raises:
        PlanError: there is no such run.
        DamagedError: the plan of a run with commits is missing.
    """
    store, plans = existing_plans(output, run_id)
    check_no_plan_lost(store)
    removals = [vacuum(store, plan.run_id, older_than_s=older_than_s, dry_run=dry_run) for plan in plans]
    if run_id is None:
        removals.append(vacuum_compacted(store, older_than_s=older_than_s, dry_run=dry_run))
        removals.append(vacuum_published(store, older_than_s=older_than_s, dry_run=dry_run))
    # Temporary files and probes belong to no run, and are found again with each one.
    removed = sorted({name for removal in removals for name in removal.removed})
    kept = {name for removal in removals for name in removal.kept}
    alone = "its shard's files are left alone, and the next run labels it again"
    removed_since = "was committed just now with files that were removed; run it again to label it anew"
    warnings = [f"{damage}; {alone}" for removal in removals for damage in removal.damaged]
    warnings += [f"could not be removed: {error}" for removal in removals for error in removal.failed]
    warnings += [f"{shard_id} {removed_since}" for removal in removals for shard_id in removal.broken]
    is_done = not any(removal.failed or removal.broken for removal in removals)
    if as_json:
        found = {"output": store.uri, "dry_run": dry_run, "removed": removed, "kept": sorted(kept)}
        print_json(console, {**found, "warnings": warnings})
        return is_done
    for name in removed[:MAX_LINES]:
        console.print(f"  {literal(name)}")
    if (more := len(removed) - MAX_LINES) > 0:
        console.print(f"  and {more:,} more{IN_JSON}")
    console.print(f"{counted(len(removed), 'leftover')} {'found' if dry_run else 'removed'}")
    if kept:
        hours = f"{older_than_s / 3600:g} h"
        console.print(
            f"{len(kept):,} younger than {hours} left: whoever wrote them may be about to commit them, or somebody "
            "reads them (--older-than)"
        )
    show_warnings(console, warnings)
    return is_done


def show_compact(output: str, console: Console, *, as_json: bool = False) -> None:
    """Write an output's committed rows to few large files once more, and print where they are, or one JSON document.

    Raises:
        PlanError: nothing is committed, or something came between; the message says what to do.
        StorageError: the output cannot be read or written.
    """
    store, plans = existing_plans(output, None)
    with console.status("reading commits") as spinner:
        compacted, is_new = compact(store, on_file=lambda name: spinner.update(f"wrote {literal(name)}"))
    if as_json:
        print_json(console, {"output": store.uri, "is_new": is_new, **compacted.to_dict()})
        return
    files = compacted.all_files
    rows: list[tuple[str, object]] = [
        ("shards", f"{compacted.num_shards:,} of {counted(len(plans), 'run')}, in {2 * compacted.num_shards:,} files"),
        ("compacted", f"{counted(len(files), 'file')}, {size(sum(file.num_bytes for file in files))}"),
        *((kind, literal(f"{store.uri}/{compacted.folder}/{kind}/*.parquet")) for kind in KINDS),
    ]
    console.print(facts_table("written" if is_new else "there already: nothing was committed since", rows))
