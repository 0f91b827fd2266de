"""Many lives, each from its seed: whatever happens, what is readable is true, and the same command ends complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.small_run import CHAOS, LONG
from tests.simulation.life import Broken, live, simulation
from tests.simulation.scenario import Kind, draw_scenario

LIVES, PARTS = (20_000 * CHAOS, 100) if LONG else (1_800, 8)
MAX_LIVES = 400
"""Within which each hole of the last released version has to be found."""


@pytest.fixture(scope="module", autouse=True)
def _simulation() -> Iterator[None]:
    with simulation():
        yield


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_lives_end_complete_whatever_happens_in_them(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    each = LIVES // PARTS
    since, drivers, requests, broken = time.process_time(), 0, 0, list[str]()
    for seed in range(part * each, (part + 1) * each):
        try:
            life = live(seed)
        except Broken as error:
            broken.append(str(error))
        else:
            drivers, requests = drivers + life.drivers, requests + life.network.num_requests
    with capsys.disabled():
        print(f"\n{each} lives, {drivers} drivers, {requests} requests, {time.process_time() - since:.1f} s of CPU")
    assert not broken, f"{len(broken)} of {each} lives are broken, of which the first:\n{broken[0]}"


HOLES: dict[str, tuple[Kind, dict[str, float], str]] = {
    "files of attempts that may still commit are removed": ("run", {"slow": 0.4}, "which is gone"),
    "the second plan of a run removes the parts of the first": ("run", {"stale": 0.5}, "plan-"),
    "a run that has an update's name takes the update's place": (
        "names",
        {},
        "no run has planned it|has changed since",
    ),
}


@pytest.mark.parametrize("hole", HOLES)
def test_the_holes_of_the_last_released_version_are_found(hole: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What can fail, fails: these are the tests of the tests."""
    kind, rates, told = HOLES[hole]
    for number in range(MAX_LIVES):
        try:
            live(number, draw_scenario(number, kind, rates).as_released())
        except Broken as error:
            if re.search(told, str(error).partition("\nseed")[0]):
                with capsys.disabled():
                    print(f"\n{hole}: found in life {number + 1}")
                return
    pytest.fail(f"not found in {MAX_LIVES} lives")


def test_a_seed_tells_the_same_life_again_in_any_process() -> None:
    seeds = range(0, 40, 5)
    told = [_told(seed) for seed in seeds]
    assert [_told(seed) for seed in seeds] == told
    assert len(set(told)) == len(told)
    script = (
        "from tests.simulation.test_simulation import _told, simulation\n"
        f"with simulation():\n    print(*[_told(seed) for seed in {list(seeds)}])"
    )
    for hash_seed in ("1", "2"):
        elsewhere = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert elsewhere.stdout.split() == told


def _told(seed: int) -> str:
    """Return the digest of a life's events."""
    try:
        return live(seed).world.digest()
    except Broken as error:
        return str(error)


def test_the_simulated_collection_is_labeled_by_the_product_itself() -> None:
    """A life without faults: its rows, its commits and its summary are there, and its replicas wrote them."""
    life = live(0, draw_scenario(0, "run", {}))
    names = set(life.network.objects.held)
    for folder in ("annotations/", "images/", "/commits/shard-00000.json", "/plan.json", "/summary.json"):
        assert any(folder in name for name in names), folder
    assert life.labeled
