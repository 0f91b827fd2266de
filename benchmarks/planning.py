"""What planning a large collection costs, against bare listings of it, and what running it again costs."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from benchmarks.listing_server import served
from benchmarks.report import Figure, Report
from benchmarks.timing import Timed, peak_rss_mb, run_child, time_in_turn
from flows.config import RunConfig, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent
from pipelines.layout import run_folder
from pipelines.planning.cut import MOST
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import Plan, read_plan, write_plan
from pipelines.sources.image_batches import LISTED, to_batches
from pipelines.sources.listing import list_batches
from pipelines.storage.filesystems import open_filesystem
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import commit_shard
from pipelines.types import ImagePrediction, ImageRef, Status

NAME = "planning"
_PER_FOLDER = 1000
_BUCKET = "s3://photos/2026"
_RUN = "bench"


def run(*, tiny: bool = False) -> Report:
    """Time listing and planning, of local files and of a bucket, and a second run; read the memory."""
    files, keys, finished, many, rounds = (
        (1500, 1500, 1500, 3000, 1) if tiny else (200_000, 60_000, 1_000_000, 10_000_000, 3)
    )
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "nobody")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "nothing")
    with tempfile.TemporaryDirectory() as temporary, served(keys) as endpoint:
        source, output, options = Path(temporary, "images"), Path(temporary, "output"), {"endpoint_url": endpoint}
        make_files(source, files)
        local = time_in_turn(
            {
                "bare": lambda: bare_walk(source),
                "list": lambda: sum(len(batch) for batch in list_batches(str(source))),
                "plan": lambda: plan_source(str(source), output),
            },
            rounds=rounds,
            warm_up=not tiny,
        )
        bucket = time_in_turn(
            {"bare": lambda: bare_pages(options), "plan": lambda: plan_source(_BUCKET, output, options)},
            rounds=rounds,
            warm_up=False,
        )
        again = time_second_run(output, finished, rounds)
        memory = {what: run_child("benchmarks.planning", what, str(many))["peak_rss_mb"] for what in ("idle", "plan")}
    return Report(
        name=NAME,
        question="what does planning a large collection cost, and running it again?",
        method=(
            "Planning lists, sorts by id, cuts into shards and writes the plan to local disk. Local files: against a "
            "walk that only stats each file, as any lister must. A bucket: against a loop over its pages that keeps "
            "nothing, both through the same client; a stand-in for S3 answers at once, where S3 takes some 100 ms a "
            "page. A second run of a finished one, all of it with an in-process runner (it hashes the model, reads the "
            "plan, lists commits and tables, asks no model and writes nothing), against one listing of the commits. "
            "Memory is that of a process of its own at its peak, which plans keys in no order."
        ),
        setup={
            "local": f"{files:,} files in folders of {_PER_FOLDER:,}, {rounds} rounds",
            "bucket": f"{keys:,} keys in order",
            "second run": f"{finished:,} images in shards of {MOST}, best of {rounds}",
            "memory": f"{many:,} keys",
            "other programs": f"{local.say_others()} (local), {bucket.say_others()} (bucket)",
        },
        figures=(
            *measure_local(local, files),
            *measure_bucket(bucket, keys),
            Figure(what="listing the commits of a finished run", value=1000 * min(again["list"]), unit="ms"),
            Figure(what="running a finished run again", value=1000 * min(again["run"]), unit="ms"),
            Figure(
                what="running again : listing its commits",
                value=min(again["run"]) / min(again["list"]),
                unit="of the time",
            ),
            Figure(what="peak memory of planning", value=memory["plan"], unit="MB"),
            Figure(what="of that, Python and imports", value=memory["idle"], unit="MB"),
        ),
    )


def measure_local(timed: Timed, count: int) -> Iterator[Figure]:
    """Yield times and ratios to the bare walk."""
    label = {"bare": "local: bare os.walk and stat", "list": "local: list_batches", "plan": "local: plan"}
    for name, what in label.items():
        yield Figure(what=what, value=timed.best(name), unit="s", repeats=tuple(timed.seconds[name]))
    for name, base in (("list", "bare"), ("plan", "list"), ("plan", "bare")):
        repeats = tuple(1 / ratio for ratio in timed.speed_ratios(name, base))
        value = 1 / timed.speed_ratio(name, base)
        yield Figure(what=f"{label[name]} : {label[base][7:]}", value=value, unit="of the time", repeats=repeats)
    yield Figure(what="local: planning", value=count / timed.best("plan"), unit="images/s")


def measure_bucket(timed: Timed, count: int) -> Iterator[Figure]:
    """Yield times and the ratio to the bare listing."""
    label = {"bare": "bucket: bare listing", "plan": "bucket: plan"}
    for name, what in label.items():
        yield Figure(what=what, value=timed.best(name), unit="s", repeats=tuple(timed.seconds[name]))
    repeats = tuple(1 / ratio for ratio in timed.speed_ratios("plan", "bare"))
    value = 1 / timed.speed_ratio("plan", "bare")
    yield Figure(what="bucket: plan : bare listing", value=value, unit="of the time", repeats=repeats)
    yield Figure(what="bucket: planning", value=count / timed.best("plan"), unit="images/s")


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


def bare_pages(options: dict[str, str]) -> int:
    """List a bucket and keep nothing."""
    fs, _ = open_filesystem(_BUCKET, options)
    request, total = {"Bucket": "photos", "Prefix": "2026/"}, 0
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        total += sum(item["Size"] for item in page["Contents"])
        if not page["IsTruncated"]:
            return total
        request["ContinuationToken"] = page["NextContinuationToken"]


def plan_source(source: str, output: Path, options: dict[str, str] | None = None) -> int:
    """Plan a new run over a source and return the number of shards."""
    run_id = secrets.token_hex(4)
    with draft_plan(list_batches(source, storage_options=options), PlanConfig()) as draft:
        plan = write_plan(open_store(str(output)), run_id, draft, fingerprint={}, facts={}, driver_id=run_id)
    return plan.num_shards


def time_second_run(output: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of listing the commits of a finished run, and of running it again."""
    config = parse_config(
        {
            "source": str(output),
            "output": {"uri": str(output / "finished"), "run_id": _RUN},
            "categories": ["cat"],
            "pool": {"runner": "in_process"},
        }
    )
    store = planning.open_output(config)
    finish(config, store, count)
    engine.run_directly(config, Silent())  # the first of them verifies, and tells
    seconds: dict[str, list[float]] = {"list": [], "run": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        commits = store.find(f"{run_folder(_RUN)}/commits")
        seconds["list"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with patch.object(Store, "write", refuse), patch.object(Store, "create", refuse):
            summary = engine.run_directly(config, Silent())
        seconds["run"].append(time.perf_counter() - begun)
        if not summary.ok or summary.labelled_now or summary.committed != len(commits):
            raise RuntimeError(f"the run should have been complete: {summary}")
    return seconds


def refuse(_store: Store, name: str, _data: bytes) -> bool:
    """Raise: nothing is to be written."""
    raise RuntimeError(f"{name} was written by a run that had nothing to do")


def finish(config: RunConfig, store: Store, count: int) -> None:
    """Write the plan and the whole table of a run in which nothing was found."""
    refs = (ImageRef(image_id=f"{number:09d}.jpg", uri=f"/photos/{number:09d}.jpg") for number in range(count))
    with draft_plan(to_batches(refs), config.plan) as draft:
        fingerprint = planning.run_fingerprint(config, None)
        write_plan(store, _RUN, draft, fingerprint=fingerprint, facts={}, driver_id=_RUN)
    plan: Plan | None = read_plan(store, _RUN)
    assert plan is not None
    for shard in plan.shards(store):
        empty = [ImagePrediction(ref=ref, status=Status.EMPTY, size_hw=(480, 640)) for ref in shard.images]
        commit_shard(
            store,
            _RUN,
            shard,
            empty,
            attempt="b-0",
            started=time.monotonic(),
            model_s=0.0,
            predictor={"device": "none"},
        )


def keys_in_no_order(count: int) -> Iterator[ImageRef]:
    """Yield as many keys, each once, in an order far from sorted."""
    step = next(step for step in (7_368_787, 15_485_863) if count % step)  # primes
    for number in range(count):
        key = f"2026/{number * step % count:09d}.jpg"
        etag = f"{number:032x}"
        yield ImageRef(image_id=key, uri=f"s3://photos/{key}", num_bytes=100_000 + number % 1000, etag=etag)


if __name__ == "__main__":
    if sys.argv[1] == "plan":
        with (
            tempfile.TemporaryDirectory() as temporary,
            draft_plan(to_batches(keys_in_no_order(int(sys.argv[2])), LISTED), PlanConfig()) as d,
        ):
            write_plan(open_store(temporary), _RUN, d, fingerprint={}, facts={}, driver_id=_RUN)
    print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
