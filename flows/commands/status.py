"""`xsam-label status` and `approve`: show how far an output's runs are, and let one go on that waits for a person."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from flows.commands.console import (
    duration,
    facts_table,
    ledger_rows,
    literal,
    noted_row,
    print_json,
    show_erasures,
    show_lines,
    show_problems,
)
from flows.run.canary import approve
from flows.run.existing_runs import no_run
from flows.run.progress import RunLine, RunProgress, chosen_run, read_lines, read_progress
from pipelines.compaction import newest_compacted
from pipelines.errors import some_texts
from pipelines.planning.erasures import read_forgotten
from pipelines.planning.plan import plan_documents
from pipelines.redaction import counted, shown
from pipelines.storage.store import open_store


def show_status(
    output: str, run_id: str | None, console: Console, *, gpu_price: float | None = None, as_json: bool = False
) -> None:
    """Print the progress of an output's runs.

    Args:
        output: path or URI of the output.
        run_id: the run to show. By default all runs are shown in brief, if there are several, and in detail the last
            unfinished one, or else the last.
        console: where to print.
        gpu_price: price of a GPU hour; by default that of the run's config.
        as_json: whether to print one JSON document instead.

    Raises:
        PlanError: there is no such run.
        StorageError: the output cannot be read.
    """
    store = open_store(output)
    with console.status("reading commits"):
        plans = plan_documents(store)
        if not plans or (run_id is not None and run_id not in plans):
            raise no_run(output, run_id, plans)
        only = run_id or (next(iter(plans)) if len(plans) == 1 else None)
        lines = [] if only else read_lines(store, plans)
        progress = read_progress(store, plans[only or chosen_run(lines)], gpu_price=gpu_price)
        erasures, compacted = read_forgotten(store).erasures, newest_compacted(store)
    lines = lines or [progress.line]
    if as_json:
        document = {"output": store.uri, "runs": [line.to_dict() for line in lines], "run": progress.to_dict()}
        document |= {"erasures": [erasure.to_dict() for erasure in erasures]} if erasures else {}
        document |= {"compaction": compacted.to_dict()} if compacted else {}
        print_json(console, document)
        return
    if len(lines) > 1:
        console.print(_runs_table(lines))
        console.print()
    console.print(facts_table(f"run [bold]{progress.line.run_id}[/] in {literal(store.uri)}", _rows(progress)))
    others = [line for line in lines if line.run_id != progress.line.run_id]
    if bad := [f"{line.run_id} {_state(line)}" for line in others if line.state != "finished" or line.num_problems]:
        told = literal(some_texts(bad))
        console.print(f"[yellow]other runs:[/] {told}; --run-id shows one of them", highlight=False)
    show_erasures(console, erasures)
    if compacted is not None:
        console.print(
            f"[dim]compacted:[/] {counted(compacted.num_shards, 'shard')} in "
            f"{counted(len(compacted.all_files), 'file')}, {compacted.made_at}: {literal(compacted.folder)}",
            highlight=False,
        )
    show_problems(console, progress.problems)


def approve_run(output: str, run_id: str | None, console: Console) -> None:
    """Let a run go on whose first images were not as expected, and print which.

    Args:
        output: path or URI of the output.
        run_id: the run; by default the last that was stopped, or waits.
        console: where to print.

    Raises:
        PlanError: there is no such run, or it needs no approval.
    """
    name, found = approve(open_store(output), run_id)
    show_lines(console, "[dim]approved all the same:[/]", found.alarms)
    console.print(f"run {literal(name)} may go on: the command that began it goes on with it, one that waits at once")


def _state(line: RunLine) -> str:
    told = {"unfinished": "is unfinished", "not begun": "has not begun", "finished": "is finished"}[line.state]
    return f"{told} with {counted(line.num_problems, 'problem')}" if line.num_problems else told


def _runs_table(lines: list[RunLine]) -> Table:
    table = Table(title="runs in the order of planning", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("run", "planned at", "state", "images", "done", "masks"):
        table.add_column(name, justify="right" if name in ("images", "done", "masks") else "left", no_wrap=True)
    for line in lines:
        what = line.retry_of or (f"where {shown(line.relabeled)}" if line.relabeled else "")
        again = f" (again: {what})" if what else ""
        done = f"{_percent(line)} %"
        planned = (line.planned_at or "").removesuffix("+00:00").replace("T", " ")
        state = (
            f"{line.state}, {'stopped' if line.seems_stopped else 'running'}"
            if line.state == "unfinished"
            else line.state
        )
        table.add_row(literal(line.run_id + again), planned, state, f"{line.images:,}", done, f"{line.masks:,}")
    images, done_images, masks = (sum(getattr(line, name) for line in lines) for name in ("images", "done", "masks"))
    share = f"{_share(done_images, images)} %"
    table.add_row("[dim]total[/]", "", "", f"{images:,}", share, f"{masks:,}")
    return table


def _rows(progress: RunProgress) -> list[tuple[str, object]]:
    line = progress.line
    rows = ledger_rows({"listed": line.images, **progress.counts}, progress.reasons)
    rows += [
        ("masks", f"{line.masks:,}"),
        *noted_row(progress.num_noted),
        ("shards", f"{progress.committed:,} of {progress.shards:,} committed"),
    ]
    if progress.canary is not None:
        rows.append(("canary", progress.canary))
    if progress.waves is not None:
        rows.append(("waves", f"{progress.waves_done:,} of {progress.waves:,} done, as planned"))
    rows.append(("done", f"{_percent(line)} %"))
    if progress.rate is not None:
        rows.append(
            ("rate", f"{progress.recent_rate:.1f} images/s in the last hour of work, {progress.rate:.1f} overall")
        )
    if progress.left_s is not None:
        rows.append(("left", f"{duration(progress.left_s)} left at that rate"))
    if progress.last_commit_at is not None and line.state != "finished":
        stopped = ": it seems to have stopped, and the command that began it resumes it" if line.seems_stopped else ""
        ago = duration(max(0.0, time.time() - progress.last_commit_at))
        rows.append(("last commit", f"{ago} ago{stopped}"))
    if progress.gpu_hours:
        cost = "" if progress.cost is None else f", which cost {progress.cost:,.2f}"
        rows.append(("GPU hours", f"at least {progress.gpu_hours:,.2f} for what is committed{cost}"))
    return rows


def _percent(line: RunLine) -> str:
    return _share(line.done, line.images)


def _share(done: int, images: int) -> str:
    return f"{100 * done / images:.1f}" if images else "100.0"
