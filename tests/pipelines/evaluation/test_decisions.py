"""What a score decides: by hand, and by matching again what is left above it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.decisions import decide
from pipelines.masks import rle
from tests.support import labeled


def box(*place: int) -> rle.Rle:
    return rle.encode(labeled.box(*place))


CAT, DOG, FOX = box(0, 0, 4, 4), box(5, 0, 4, 4), box(0, 5, 4, 4)
TRUE = [TrueMask(1, "cat", CAT), TrueMask(1, "dog", DOG), TrueMask(1, "cat", FOX)]
FOUND = [
    FoundMask(1, "cat", CAT, 0.9),
    FoundMask(1, "cat", DOG, 0.8),  # a dog taken for a cat
    FoundMask(1, "cat", FOX, 0.7),
    FoundMask(1, "dog", DOG, 0.4),
    FoundMask(1, "dog", box(5, 5, 2, 2), 0.3),  # nothing is there
]


def test_decisions_by_hand() -> None:
    at = decide(TRUE, FOUND, 0.75)
    cat, dog = at.categories["cat"], at.categories["dog"]
    assert (cat.precision, cat.recall, cat.f1) == (0.5, 0.5, 0.5)
    assert (dog.precision, dog.recall, dog.f1) == (None, 0, 0)
    assert (at.whole.precision, at.whole.recall, at.whole.f1) == (1 / 2, 1 / 3, 2 / 5)
    assert {(pair.true, pair.found, pair.count) for pair in at.confusion} == {
        ("cat", "cat", 1),
        ("dog", "cat", 1),
        ("cat", None, 1),
    }
    assert (at.best["cat"].score, at.best["cat"].f1) == (0.7, 2 * 2 / (3 + 2))
    assert (at.best["dog"].score, at.best["dog"].f1) == (0.4, 1)
    low = decide(TRUE, FOUND, 0)
    assert {(pair.true, pair.found, pair.count) for pair in low.confusion} == {
        ("cat", "cat", 2),
        ("dog", "dog", 1),
        (None, "cat", 1),
        (None, "dog", 1),
    }
    assert [(step.score, step.num_found, step.num_correct) for step in low.curve] == [
        (0.9, 1, 1), (0.8, 2, 1), (0.7, 3, 2), (0.4, 4, 3), (0.3, 5, 3)
    ]  # fmt: skip


def test_each_category_may_have_the_score_that_is_best_for_it() -> None:
    best = decide(TRUE, FOUND, None)
    assert {name: one.score for name, one in best.categories.items()} == {"cat": 0.7, "dog": 0.4}
    assert (best.whole.num_found, best.whole.num_correct, best.whole.score) == (4, 3, None)
    assert ("dog", "dog", 1) in {(pair.true, pair.found, pair.count) for pair in best.confusion}


def test_a_score_that_is_the_threshold_is_kept_though_tables_hold_float32() -> None:
    found = [FoundMask(1, "cat", CAT, float(np.float32(0.9)))]
    assert decide(TRUE, found, 0.9).categories["cat"].num_found == 1
    assert decide(TRUE, found, None).categories["cat"].score == 0.9


def test_of_very_many_scores_some_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.decisions._MAX_CURVE", 2)
    assert [step.score for step in decide(TRUE, FOUND, 0).curve] == [0.9, 0.7, 0.3]


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong() -> None:
    true = [TrueMask(1, "cat", CAT), TrueMask(1, "cat", box(4, 4, 6, 6), is_crowd=True)]
    at = decide(true, [FoundMask(1, "cat", box(5, 5, 2, 2), 0.9)], 0.5)
    assert (at.whole.num_found, at.whole.num_true) == (0, 1)
    assert [(pair.true, pair.found) for pair in at.confusion] == [("cat", None)]


def test_of_what_is_never_right_nothing_is_best() -> None:
    at = decide(TRUE, [FoundMask(1, "dog", box(5, 5, 2, 2), 0.9)], None)
    assert at.best == {}
    assert at.categories["dog"].num_found == 0


places = st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 5), st.integers(1, 5))
names, images = st.sampled_from(["cat", "dog"]), st.integers(1, 2)
true_masks = st.builds(lambda i, n, p, c: TrueMask(i, n, box(*p), c), images, names, places, st.booleans())
found_masks = st.builds(
    lambda i, n, p, s: FoundMask(i, n, box(*p), float(np.float32(s))), images, names, places, st.floats(0, 1, width=32)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(true_masks, max_size=5), st.lists(found_masks, max_size=8), st.floats(0, 1))
def test_a_threshold_is_the_same_as_not_having_found_what_lies_below(
    truth: list[TrueMask], found: list[FoundMask], score: float
) -> None:
    truth = [*truth, TrueMask(1, "cat", CAT)]
    whole = decide(truth, found, score)
    kept = decide(truth, [one for one in found if np.float32(one.score) >= np.float32(score)], 0)
    assert whole.whole.num_correct == kept.whole.num_correct
    assert whole.whole.num_found == kept.whole.num_found
    assert whole.confusion == kept.confusion
    counts: Counter[str | None] = Counter()
    for pair in whole.confusion:
        counts[pair.true] += pair.count
    assert {name: counts[name] for name in ("cat", "dog")} == {
        name: sum(mask.category == name and not mask.is_crowd for mask in truth) for name in ("cat", "dog")
    }
    for name, best in whole.best.items():
        at = decide(truth, found, best.score).categories[name]
        assert at.f1 == pytest.approx(best.f1)
        assert (at.f1 or 0) >= (whole.categories[name].f1 or 0)
