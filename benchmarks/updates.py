"""What an update costs before it asks anything: a listing compared with what an earlier run has planned."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable

from benchmarks.planning import keys_in_no_order
from benchmarks.report import Figure, Report
from benchmarks.timing import peak_rss_mb, run_child, time_in_turn
from pipelines.planning.coverage import Coverage, CoveringRun
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import Plan, write_plan
from pipelines.sources.image_batches import LISTED, to_batches
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef, Prompt

NAME = "updates"
_ASKED, _NEW = (
    Prompt(prompt_id=f"ovseg:{name}", task="ovseg", text=name, category_id=number, category_name=name)
    for number, name in enumerate(("cat", "dog"))
)


def run(*, tiny: bool = False) -> Report:
    """Time a first plan and updates of it; read the memory."""
    count, many, rounds = (1500, 3000, 1) if tiny else (200_000, 2_000_000, 3)
    with tempfile.TemporaryDirectory() as temporary:
        store = open_store(temporary)
        plan = plan_first(store, count)
        timed = time_in_turn(
            {
                "plan": lambda: draft(keys_in_no_order(count), None),
                "nothing": lambda: draft(keys_in_no_order(count), coverage(store, plan, _ASKED)),
                "prompt": lambda: draft(keys_in_no_order(count), coverage(store, plan, _ASKED, _NEW)),
            },
            rounds=rounds,
            warm_up=False,
        )
    memory = run_child("benchmarks.updates", "update", str(many))["peak_rss_mb"]
    ratios = {name: tuple(1 / one for one in timed.speed_ratios(name, "plan")) for name in ("nothing", "prompt")}
    return Report(
        name=NAME,
        question="what does it cost to find out what is new?",
        method=(
            "A listing in no order, with sizes and tags, is sorted, compared with the plan of a finished run of "
            "the same images and cut into shards, on local disk; against the same without a run to compare with, which "
            "plans every image. Memory is that of a process of its own at its peak, in which a prompt more is asked."
        ),
        setup={
            "images": f"{count:,}, {rounds} rounds",
            "memory": f"{many:,} images",
            "other programs": timed.say_others(),
        },
        figures=(
            Figure(what="first plan", value=timed.best("plan"), unit="s", repeats=tuple(timed.seconds["plan"])),
            Figure(
                what="update with nothing left to ask : first plan",
                value=1 / timed.speed_ratio("nothing", "plan"),
                unit="of the time",
                repeats=ratios["nothing"],
            ),
            Figure(
                what="update with one prompt more : first plan",
                value=1 / timed.speed_ratio("prompt", "plan"),
                unit="of the time",
                repeats=ratios["prompt"],
            ),
            Figure(what="peak memory of an update", value=memory, unit="MB"),
        ),
    )


def plan_first(store: Store, count: int) -> Plan:
    """Plan a run of all images."""
    with draft_plan(to_batches(keys_in_no_order(count), LISTED), PlanConfig()) as first:
        return write_plan(store, "run-1", first, fingerprint={}, facts={}, driver_id="bench")


def coverage(store: Store, plan: Plan, *prompts: Prompt) -> Coverage:
    """Return what is left of these prompts after a run that asked the first of them."""
    return Coverage(store=store, prompts=prompts, runs=[CoveringRun(plan=plan, prompts=prompts[:1], same_model=True)])


def draft(refs: Iterable[ImageRef], compared: Coverage | None) -> int:
    """Draft a plan and return how many images it has."""
    with draft_plan(to_batches(refs), PlanConfig(), None if compared is None else compared.left) as drafted:
        return drafted.num_images


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        held = open_store(folder)
        first_plan = plan_first(held, int(sys.argv[2]))
        draft(keys_in_no_order(int(sys.argv[2])), coverage(held, first_plan, _ASKED, _NEW))
    print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
