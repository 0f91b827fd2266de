"""Of how many runs in which nothing has changed an alarm is raised, and of how many that went wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipelines.rates.changes import RateLimits, beyond_limits, changed
from pipelines.rates.rates import Rates, rates_of

_TRIALS, _SHARDS, _IMAGES = 100, 32, 8
NAMES = tuple(f"ovseg:{name}" for name in ("car", "person", "dog", "cup", "tree", "sign", "bicycle", "tower"))


@dataclass(frozen=True, kw_only=True)
class World:
    """Images in a row, of which neighbors are alike, and what a model finds in them.

    Attributes:
        shares: how often each name is there, on the average.
        per_image: mean number of further masks where it is.
        score, scatter: mean best score, and how much images differ in it.
        drift: how much the shares differ from place to place.
        bad: share of quarantined images.
    """

    shares: tuple[float, ...] = (0.6, 0.5, 0.2, 0.1, 0.4, 0.05, 0.02, 0.01)
    per_image: float = 0.8
    score: float = 0.75
    scatter: float = 0.15
    drift: float = 0.5
    bad: float = 0.01

    def shard(self, rng: np.random.Generator, place: float, images: int, names: tuple[str, ...] = NAMES) -> pa.Table:
        """The rows of a few neighboring images at a place in [0, 1]."""
        rows = []
        waves = 1 + self.drift * np.sin(6.3 * (3 * place + np.arange(len(names)) / len(names)))
        shares = np.clip(np.array(self.shares[: len(names)]) * waves * rng.gamma(4, 1 / 4, len(names)), 0, 1)
        for _ in range(images):
            is_bad = rng.random() < self.bad
            counts = np.where(rng.random(len(names)) < shares, 1 + rng.poisson(self.per_image, len(names)), 0)
            scores = np.clip(rng.normal(self.score, self.scatter, len(names)), 0.05, 1)
            entries = [
                {
                    "prompt_id": name,
                    "n": None if is_bad else int(n),
                    "max_score": float(s) if n and not is_bad else None,
                }
                for name, n, s in zip(names, counts, scores, strict=True)
            ]
            status = "quarantined" if is_bad else "ok" if counts.any() else "empty"
            rows.append({"status": status, "per_prompt": entries})
        entry = pa.struct([("prompt_id", pa.string()), ("n", pa.int32()), ("max_score", pa.float32())])
        return pa.Table.from_pylist(rows, schema=pa.schema([("status", pa.string()), ("per_prompt", pa.list_(entry))]))

    def rates(self, seed: int, shards: int = _SHARDS, images: int = _IMAGES, names: tuple[str, ...] = NAMES) -> Rates:
        """Rates of shards spread over the world."""
        rng = np.random.default_rng(seed)
        tables = [self.shard(rng, (n + 0.5) / shards, images, names) for n in range(shards)]
        return rates_of(tables, names, shards)


GOOD = World()
# What a model with shuffled weights finds has nothing to do with what is there; its scores are those of a guess.
SHUFFLED = World(shares=(0.15,) * 8, per_image=0.1, score=0.2, scatter=0.1, drift=0.1)
OTHER_SOURCE = replace(GOOD, shares=GOOD.shares[::-1], score=0.6)
NEVER_THERE = replace(GOOD, shares=(0.03,) * 8, per_image=0.1, score=0.25)
WRONG_NAMES = tuple(f"ovseg:{name}" for name in ("forklift", "pallet", "crate", "crane"))


@pytest.fixture(scope="module")
def last() -> Rates:
    """The rates of the last run: 64 of its shards."""
    return GOOD.rates(0, shards=64, images=120)


def alarms(rates: list[Rates], last: Rates) -> int:
    return sum(bool(changed(one, last, "run-1", 0.1)) for one in rates)


def test_at_most_2_of_100_good_runs_raise_an_alarm(last: Rates) -> None:
    good = [GOOD.rates(seed) for seed in range(1, 1 + _TRIALS)]
    assert alarms(good, last) <= 2
    # Without regard to the size of a change, too.
    assert sum(bool(changed(one, last, "run-1", 0.0)) for one in good) <= 2
    assert sum(bool(changed(GOOD.rates(seed, shards=64, images=50), last, "run-1", 0.1)) for seed in range(1, 11)) == 0


@pytest.mark.parametrize(
    ("world", "names"),
    [(NEVER_THERE, WRONG_NAMES), (SHUFFLED, NAMES), (OTHER_SOURCE, NAMES)],
    ids=["a wrong list of prompts", "a model with shuffled weights", "a wrong source"],
)
def test_a_run_that_went_wrong_is_stopped_in_98_of_100_trials(
    world: World, names: tuple[str, ...], last: Rates
) -> None:
    assert alarms([world.rates(seed, names=names) for seed in range(1, 1 + _TRIALS)], last) >= 98


def test_an_alarm_says_what_it_was_and_is_and_that_other_names_are_asked(last: Rates) -> None:
    told = changed(NEVER_THERE.rates(1, names=WRONG_NAMES), last, "run-1", 0.1)
    assert any("images in which nothing was found: " in one and "in run run-1" in one for one in told)
    assert told[-1].startswith("the prompts differ; asked now: ovseg:forklift")


def test_limits_are_exceeded_only_if_that_is_sure() -> None:
    rates = GOOD.rates(3)
    assert beyond_limits(rates, RateLimits(), 0.2) == []
    empty = rates.prompts["ovseg:car"]["empty"].mean
    assert not any("car" in one for one in beyond_limits(rates, RateLimits(max_empty_share=empty - 0.01), 0.2))
    told = beyond_limits(rates, RateLimits(max_empty_share=0.9, min_score=0.9), 0.2)
    assert any(one.startswith("ovseg:tower: images in which nothing was found: ") for one in told)
    assert any(one.startswith("ovseg:car: mean best score of an image: 0.7") and "at least 0.90" in one for one in told)
    bad = replace(GOOD, bad=0.6).rates(1)
    assert beyond_limits(bad, RateLimits(), 0.2)[0].startswith("images that could not be labeled: ")


@pytest.mark.parametrize("values", [{"max_empty_share": 2.0}, {"min_masks_per_image": -1.0}, {"min_change": 1.5}])
def test_limits_that_cannot_be_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="canary: "):
        RateLimits(**values)
