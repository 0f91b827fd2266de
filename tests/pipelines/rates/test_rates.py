"""The rates of a run, read from its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.rates.rates import Rates, read_rates, spread
from pipelines.table.commits import read_commits
from pipelines.types import Caption
from tests.support.labeled import RUN, box, mask, named, write_output

CUP, DOG = named("ovseg", "cup", "dog")
(ASK,) = named("chat", "what is it?")


def rates(folder: Path, prompts: list[str]) -> Rates:
    one = box(0, 0, 4, 4)
    found = {
        "a": [mask(CUP, one, 0.9), mask(CUP, one, 0.5), mask(DOG, one, 0.4)],
        "b": [mask(CUP, one, 0.7)],
        "c": [],
        "d": None,
    }
    said = {"c": [Caption(prompt=ASK, text="a wall")]}
    store, _ = write_output(folder, found, common=[CUP, DOG, ASK], said=said)
    return read_rates(store, list(read_commits(store, RUN)), prompts)


def test_rates_are_means_over_the_images_that_were_answered(tmp_path: Path) -> None:
    found = rates(tmp_path / "out", ["ovseg:cup", "ovseg:dog"])
    assert found.images == 4
    assert {name: (rate.mean, rate.images) for name, rate in found.whole.items()} == {
        "quarantined": (0.25, 4),
        "empty": (pytest.approx(1 / 3), 3),
        "masks": (pytest.approx(4 / 3), 3),
        "score": (pytest.approx(0.8, abs=1e-6), 2),
    }
    told = {
        prompt: {name: (round(rate.mean, 4), rate.images) for name, rate in held.items()}
        for prompt, held in found.prompts.items()
    }
    assert told == {
        "ovseg:cup": {"empty": (0.3333, 3), "masks": (1.0, 3), "score": (0.8, 2)},
        "ovseg:dog": {"empty": (0.6667, 3), "masks": (0.3333, 3), "score": (0.4, 1)},
    }


def test_rates_come_back_from_a_summary_as_they_were(tmp_path: Path) -> None:
    found = rates(tmp_path / "out", ["ovseg:cup", "chat:what is it?", "ovseg:no such"])
    assert found.prompts.keys() == {"ovseg:cup"}
    assert Rates.from_dict(found.to_dict()) == found


def test_a_spread_takes_items_at_even_distances() -> None:
    assert spread(range(10), 3) == [1, 5, 8]
    assert spread("abc", 5) == ["a", "b", "c"]
