"""What planning a large collection costs, against a bare walk of its folders, and what running it again costs."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Figure, Report
from benchmarks.timing import Timed, peak_rss_mb, run_child, time_in_turn
from pipelines.manifest import PlanConfig, plan_shards, read_plan, write_plan
from pipelines.sources import list_images
from pipelines.storage import open_store
from pipelines.table import commit_name, committed_shards

NAME = "planning"
_PER_FOLDER = 1000


def run(*, tiny: bool = False) -> Report:
    """Time listing, planning and a second run over many local files."""
    count, rounds = (1500, 1) if tiny else (200_000, 3)
    with tempfile.TemporaryDirectory() as temporary:
        source, output = Path(temporary, "images"), Path(temporary, "output")
        make_files(source, count)
        num_shards = make_plan(source, output, "again")
        commit_all(output, "again", num_shards)
        loops = {
            "walk": lambda: bare_walk(source),
            "list": lambda: sum(1 for _ in list_images(str(source))),
            "plan": lambda: make_plan(source, output, secrets.token_hex(4)),
            "again": lambda: nothing_left_to_do(output, "again"),
        }
        timed = time_in_turn(loops, rounds=rounds, warm_up=not tiny)
        idle, planned = (
            run_child("benchmarks.planning", what, str(source), str(output))["peak_rss_mb"] for what in ("idle", "plan")
        )
    return Report(
        name=NAME,
        question="what does planning a large collection cost?",
        method=(
            "Local files, listed, sorted by id, cut into shards and written as a plan, against a walk that only stats "
            "each file, as any lister must. A second run reads plan.json and lists the commits; here all shards are "
            "committed, so that it finds nothing to do. Memory is a process of its own, at its peak."
        ),
        setup={
            "images": f"{count:,} files in folders of {_PER_FOLDER:,}",
            "shards": f"{num_shards:,} of {PlanConfig().images_per_shard} images",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=measure(timed, count, planned, idle),
    )


def measure(timed: Timed, count: int, planned_mb: float, idle_mb: float) -> tuple[Figure, ...]:
    """Return times, ratios to the bare walk, and memory."""
    ms_again = tuple(1000 * seconds for seconds in timed.seconds["again"])
    seconds = {name: tuple(timed.seconds[name]) for name in ("walk", "list", "plan")}
    label = {"walk": "bare os.walk and stat", "list": "list_images", "plan": "list, sort, cut and write the plan"}
    figures = [Figure(what=label[n], value=timed.best(n), unit="s", repeats=seconds[n]) for n in seconds]
    figures += [
        Figure(
            what=f"{label[n]} : bare walk",
            value=timed.speed_ratio(n, "walk"),
            unit="x",
            repeats=tuple(timed.speed_ratios(n, "walk")),
        )
        for n in ("list", "plan")
    ]
    figures += [
        Figure(what="planning", value=count / timed.best("plan"), unit="images/s"),
        Figure(what="a second run finds nothing to do", value=min(ms_again), unit="ms", repeats=ms_again),
        Figure(what="peak memory of planning", value=planned_mb, unit="MB"),
        Figure(what="of that, Python and imports", value=idle_mb, unit="MB"),
        Figure(what="memory for each image planned", value=(planned_mb - idle_mb) * 1e6 / count, unit="bytes"),
    ]
    return tuple(figures)


def make_files(folder: Path, count: int) -> None:
    """Create empty files with names as cameras give them."""
    for first in range(0, count, _PER_FOLDER):
        inner = folder / f"{first // _PER_FOLDER:04d}"
        inner.mkdir(parents=True)
        for index in range(first, min(count, first + _PER_FOLDER)):
            os.close(os.open(inner / f"IMG_{index:07d}.jpg", os.O_CREAT | os.O_WRONLY))


def bare_walk(folder: Path) -> int:
    """Stat every file below a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            total += os.stat(os.path.join(path, name)).st_size
    return total


def make_plan(source: Path, output: Path, run_id: str) -> int:
    """Plan the folder and return the number of shards."""
    shards = plan_shards(list_images(str(source)), PlanConfig())
    plan = write_plan(open_store(str(output)), run_id, shards, fingerprint={}, facts={}, driver_id=run_id)
    return plan.num_shards


def commit_all(output: Path, run_id: str, num_shards: int) -> None:
    """Put a stand-in for every shard's commit; listing them is all that a second run does."""
    store = open_store(str(output))
    for number in range(num_shards):
        path = Path(store.path(commit_name(run_id, f"shard-{number:05d}")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")


def nothing_left_to_do(output: Path, run_id: str) -> None:
    """Read the plan and the list of commits, as a run does first."""
    store = open_store(str(output))
    plan = read_plan(store, run_id)
    if plan is None or set(plan.shard_ids()) - committed_shards(store, run_id):
        raise RuntimeError("the run should have been complete")


if __name__ == "__main__":
    if sys.argv[1] == "plan":
        make_plan(Path(sys.argv[2]), Path(sys.argv[3]), secrets.token_hex(4))
    print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
