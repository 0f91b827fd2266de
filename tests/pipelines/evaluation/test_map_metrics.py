"""Panoptic quality and semantic IoU against cases worked by hand and a plain reading of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.evaluation.map_metrics import Quality, Segment, panoptic_quality, semantic_iou
from pipelines.masks import rle

LETTERS = {"c": "cat", "d": "dog", "s": "sky"}


def segments(picture: str, crowds: str = "") -> list[Segment]:
    """A map drawn in characters: each character but "." is a segment, its category told by its lower-case letter."""
    rows = np.array([list(line) for line in picture.split()])
    return [
        Segment(LETTERS[name.lower()], rle.encode(rows == name), is_crowd=name in crowds)
        for name in sorted(set(rows.ravel().tolist()) - {"."})
    ]


def test_a_map_against_itself_is_perfect() -> None:
    truth = segments("ccss CCss ddss")
    result = panoptic_quality([(truth, truth)], stuff={"sky"})
    assert result.all == Quality(1.0, 1.0, 1.0, num_categories=3)
    assert result.things == Quality(1.0, 1.0, 1.0, num_categories=2)
    assert result.stuff == Quality(1.0, 1.0, 1.0, num_categories=1)
    assert semantic_iou([(truth, truth)]).miou == 1.0


def test_panoptic_quality_by_hand() -> None:
    """cat: a match of 3 / 4 and one found alone; sky: a match of 5 / 6; dog: true alone."""
    found = segments("ccc.ss ....ss CC...s")
    truth = segments("ccccss ....ss DD..ss")
    result = panoptic_quality([(found, truth)], stuff=["sky"])
    rows = {row.category: row for row in result.categories}
    counts = {name: (row.num_matched, row.num_found_only, row.num_true_only) for name, row in rows.items()}
    assert counts == {"cat": (1, 1, 0), "dog": (0, 0, 1), "sky": (1, 0, 0)}
    cat, dog = rows["cat"].quality, rows["dog"].quality
    assert (cat.pq, cat.sq, cat.rq) == pytest.approx((0.75 / 1.5, 0.75, 1 / 1.5))
    assert (dog.pq, dog.sq, dog.rq) == (0.0, 0.0, 0.0)
    assert result.stuff.pq == pytest.approx(5 / 6)
    assert result.things.pq == pytest.approx((0.5 + 0.0) / 2)
    assert result.all.pq == pytest.approx((0.5 + 0.0 + 5 / 6) / 3)
    assert (result.all.sq, result.all.rq) == pytest.approx(((0.75 + 5 / 6) / 3, (1 / 1.5 + 1) / 3))


def test_a_found_segment_in_the_void_is_ignored_and_half_of_it_is_not_enough() -> None:
    truth = segments("ccssss")
    assert panoptic_quality([(segments("cc.ddd"), truth[:1])], stuff=()).all.pq == 1.0
    kept = panoptic_quality([(segments("cdd"), segments("cs."))], stuff=())
    assert [(row.category, row.num_found_only) for row in kept.categories] == [("cat", 0), ("dog", 1), ("sky", 0)]


def test_void_pixels_do_not_count_in_the_union() -> None:
    """Found 4, true 2, shared 2; 2 found pixels are void: IoU 1, without that rule 0.5 and no match."""
    assert panoptic_quality([(segments("cccc"), segments("cc.."))], stuff=()).all.pq == 1.0


def test_an_iou_of_one_half_is_no_match() -> None:
    result = panoptic_quality([(segments("ccss"), segments("csss"))], stuff=())
    rows = {row.category: row for row in result.categories}
    assert (rows["cat"].num_matched, rows["cat"].num_found_only, rows["cat"].num_true_only) == (0, 1, 1)
    assert rows["cat"].quality == Quality(0.0, 0.0, 0.0)
    assert rows["sky"].quality.sq == pytest.approx(2 / 3)


def test_crowds_need_no_match_and_take_what_is_found_in_them() -> None:
    truth = segments("ccCCCCsss", crowds="C")
    found = segments("ccCC..sss")
    result = panoptic_quality([(found, truth)], stuff={"sky"})
    assert result.all == Quality(1.0, 1.0, 1.0, num_categories=2)
    other = panoptic_quality([(segments("ccdd..sss"), truth)], stuff={"sky"})  # another category finds no shelter
    assert {row.category: row.num_found_only for row in other.categories} == {"cat": 0, "dog": 1, "sky": 0}


def test_tallies_are_summed_over_images_before_the_means() -> None:
    image = (segments("cc"), segments("cc"))
    missed = ([], segments("cc"))
    assert panoptic_quality([image, image, missed], stuff=()).all.pq == pytest.approx(2 / 2.5)
    assert panoptic_quality([image], stuff=()).stuff is None


def test_semantic_iou_by_hand() -> None:
    """cat: 2 shared of 3 or 2 (found 2 + true 3 - 2); sky: 2 of 4; the pixel that truth leaves open counts nowhere."""
    result = semantic_iou([(segments("ccsss."), segments("ccCss."))])
    assert {row.category: row.iou for row in result.categories} == pytest.approx({"cat": 2 / 3, "sky": 2 / 3})
    result = semantic_iou([(segments("ccsdd."), segments("ccCs.s"))])
    rows = {row.category: row for row in result.categories}
    assert rows["cat"].iou == pytest.approx(2 / 3)
    assert rows["sky"].iou == 0.0  # found where cat is, dog where it is, nothing at the last pixel
    assert (rows["dog"].iou, rows["dog"].num_true_pixels) == (None, 0)
    assert result.miou == pytest.approx(1 / 3)


numbers = arrays(np.int64, (4, 5), elements=st.integers(0, 3))
maps = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3)


def of_map(numbers: np.ndarray) -> list[Segment]:
    return [Segment("_cds"[n], rle.encode(numbers == n)) for n in range(1, 4) if (numbers == n).any()]


@given(maps)
def test_semantic_iou_is_that_of_dense_maps(images: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found, truth = (np.stack([image[side] for image in images]) for side in (0, 1))
    labeled = truth > 0
    ious = [
        ((found == n) & (truth == n)).sum() / (((found == n) & labeled) | (truth == n)).sum()
        for n in range(1, 4)
        if (truth == n).any()
    ]
    pairs = [(of_map(f), of_map(t)) for f, t in images]
    if ious:
        assert semantic_iou(pairs).miou == pytest.approx(np.mean(ious))
    else:
        with pytest.raises(ValueError, match="at least one true pixel"):
            semantic_iou(pairs)


@given(maps)
def test_panoptic_quality_is_a_fraction_and_the_product_of_its_factors(images) -> None:
    pairs = [(of_map(f), of_map(t)) for f, t in images]
    if not any(truth for _, truth in pairs):
        return
    result = panoptic_quality(pairs, stuff={"s"})
    for row in result.categories:
        assert 0.0 <= row.quality.pq <= 1.0 + 1e-12
        assert row.quality.pq == pytest.approx(row.quality.sq * row.quality.rq)
    perfect = panoptic_quality([(truth, truth) for _, truth in pairs], stuff={"s"})
    assert perfect.all.pq == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [lambda images: panoptic_quality(images, stuff=()), semantic_iou])
def test_maps_that_are_none_are_refused(metric) -> None:
    cat = segments("cc.")
    with pytest.raises(ValueError, match="must not overlap, but one of 'cat' does"):
        metric([([*cat, *cat], cat)])
    with pytest.raises(ValueError, match="different sizes"):
        metric([(segments("cc"), cat)])
    with pytest.raises(ValueError, match="at least one"):
        metric([([], [])])
    empty = Segment("cat", rle.encode(np.zeros((1, 3), np.bool_)))
    metric([([*cat, empty], [*cat, empty])])
