"""Scores become the probability that a mask is right."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.audit.calibration import Rated, calibration_table, fit
from pipelines.errors import SourceError
from pipelines.evaluation.score_calibration import expected_calibration_error


def rated(seed: int, count: int, slope: float = 1.5, offset: float = -1.0) -> Rated:
    """Masks that are right as often as a known function of their score says."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.95, count)
    right = rng.random(count) < 1 / (1 + np.exp(-(slope * np.log(scores / (1 - scores)) + offset)))
    return Rated(scores, right, np.ones(count))


def test_a_fit_finds_the_function_by_which_masks_are_right() -> None:
    found = fit(rated(0, 20_000))
    assert found is not None
    assert (found.slope, found.offset) == (pytest.approx(1.5, abs=0.1), pytest.approx(-1.0, abs=0.1))


def test_a_fit_to_few_masks_makes_scores_of_others_truer() -> None:
    others = rated(99, 20_000)
    before = expected_calibration_error(others.scores, others.right)
    after = [
        expected_calibration_error(one(others.scores), others.right) for n in range(20) if (one := fit(rated(n, 80)))
    ]
    assert len(after) == 20
    assert np.mean(after) < 0.6 * before


def test_masks_that_stand_for_many_count_for_more() -> None:
    one = rated(1, 4000)
    weights = np.where(one.right, 3.0, 1.0)
    plain, weighted = fit(one), fit(Rated(one.scores, one.right, weights))
    assert plain is not None
    assert weighted is not None
    assert weighted.offset == pytest.approx(plain.offset + np.log(3), abs=0.15)
    scaled = fit(Rated(one.scores, one.right, 10 * weights))
    assert scaled is not None
    assert scaled.offset == pytest.approx(weighted.offset)


def test_a_better_score_is_never_less_likely_right() -> None:
    one = rated(2, 200, slope=-1.0, offset=0.0)
    found = fit(one)
    assert found is not None
    assert found.slope == 0
    assert found([0.2, 0.9]) == pytest.approx([one.right.mean()] * 2, abs=0.02)


def test_a_category_with_few_mistakes_takes_the_fit_of_all() -> None:
    few = Rated(np.full(20, 0.9), np.ones(20, np.bool_), np.ones(20))
    table = calibration_table({"cup": rated(3, 500), "hen": few}, 0.25).to_pylist()
    assert {row["category_name"]: row["fitted_to"] for row in table} == {
        "cup": "this category",
        "hen": "all categories",
    }
    of_cup = [row for row in table if row["category_name"] == "cup"]
    assert [round(row["score"], 2) for row in of_cup] == [n / 100 for n in range(25, 101)]
    assert [row["probability"] for row in of_cup] == sorted(row["probability"] for row in of_cup)
    with pytest.raises(SourceError, match="20 are right and 0 wrong"):
        calibration_table({"hen": few}, 0.25)
