"""Metrics against pycocotools' own route through files, against dense masks, and against cases worked by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.mask_metrics import (
    grounded_caption_quality,
    mask_average_precision,
    referring_iou,
)
from pipelines.masks import rle
from pipelines.types import Rle

SIZE = (24, 32)


def box(y: int, x: int, height: int, width: int, size_hw: tuple[int, int] = SIZE) -> Rle:
    mask = np.zeros(size_hw, np.bool_)
    mask[y : y + height, x : x + width] = True
    return rle.encode(mask)


EMPTY = box(0, 0, 0, 0)

boxes = st.builds(box, *(st.integers(0, 20) for _ in range(2)), *(st.integers(1, 12) for _ in range(2)))
true_masks = st.builds(
    TrueMask, st.integers(1, 3), st.sampled_from(["cat", "dog"]), boxes, st.sampled_from([False] * 4 + [True])
)
scores = st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])
found_masks = st.builds(FoundMask, st.integers(1, 3), st.sampled_from(["cat", "dog", "cow"]), boxes, scores)


def coco_says(truth: list[TrueMask], found: list[FoundMask]) -> list[float]:
    """AP, AP50, AP75 by the tool's documented way: a ground-truth dictionary, loadRes, summarize."""
    ids = {"cat": 1, "cow": 2, "dog": 3}
    annotations = [
        {
            "id": number,
            "image_id": mask.image_id,
            "category_id": ids[mask.category],
            "segmentation": mask.segmentation.to_coco(),
            "area": rle.area(mask.segmentation),
            "bbox": list(rle.bbox_xywh(mask.segmentation)),
            "iscrowd": int(mask.is_crowd),
        }
        for number, mask in enumerate(truth, start=1)
    ]
    results = [
        {
            "image_id": mask.image_id,
            "category_id": ids[mask.category],
            "segmentation": mask.segmentation.to_coco(),
            "score": mask.score,
        }
        for mask in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in (1, 2, 3)],
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(true_masks, min_size=1, max_size=8), st.lists(found_masks, min_size=1, max_size=12))
def test_average_precision_is_that_of_pycocotools(truth: list[TrueMask], found: list[FoundMask]) -> None:
    if all(mask.is_crowd for mask in truth):
        truth = [*truth, TrueMask(1, "cat", box(0, 0, 4, 4))]
    ours = mask_average_precision(truth, found)
    np.testing.assert_allclose([ours.ap, ours.ap50, ours.ap75], coco_says(truth, found), atol=1e-12)
    held = [row for row in ours.categories if row.num_truth]
    assert ours.ap == pytest.approx(sum(row.ap for row in held) / len(held))
    assert all(row.ap is None for row in ours.categories if not row.num_truth)


def test_a_set_against_itself_is_perfect_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    truth = [TrueMask("b", "dog", box(0, 0, 5, 5)), TrueMask("a", "cat", box(3, 3, 9, 4))]
    found = [FoundMask(mask.image_id, mask.category, mask.segmentation, 0.5) for mask in truth]
    result = mask_average_precision(truth, found)
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((1.0, 1.0, 1.0))
    assert [(row.category, row.num_truth, row.num_found) for row in result.categories] == [("cat", 1, 1), ("dog", 1, 1)]
    assert [row.ap for row in result.categories] == pytest.approx([1.0, 1.0])
    assert capfd.readouterr().out == ""


def test_a_shifted_copy_counts_at_the_thresholds_below_its_iou() -> None:
    """10 x 10 moved by 2: IoU 80 / 120 = 0.667, so 4 of COCO's 10 thresholds (0.50 to 0.65)."""
    truth = [TrueMask(1, "cat", box(0, 0, 10, 10))]
    result = mask_average_precision(truth, [FoundMask(1, "cat", box(0, 2, 10, 10), 0.9)])
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((0.4, 1.0, 0.0))


def test_average_precision_by_hand() -> None:
    """Found, best first: right, wrong, right, of 2: precision 1 up to recall 0.5 (51 of 101), then 2/3 (50)."""
    truth = [TrueMask(1, "cat", box(0, 0, 5, 5)), TrueMask(1, "cat", box(10, 10, 5, 5))]
    found = [
        FoundMask(1, "cat", box(0, 0, 5, 5), 0.9),
        FoundMask(2, "cat", box(0, 0, 5, 5), 0.8),
        FoundMask(1, "cat", box(10, 10, 5, 5), 0.7),
    ]
    assert mask_average_precision(truth, found).ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_what_is_found_in_a_crowd_counts_neither_way() -> None:
    truth = [TrueMask(1, "cat", box(0, 0, 5, 5)), TrueMask(1, "cat", box(0, 10, 20, 20), is_crowd=True)]
    found = [FoundMask(1, "cat", box(2, 12 + 3 * n, 3, 3), 0.9) for n in range(4)]
    right = FoundMask(1, "cat", box(0, 0, 5, 5), 0.5)
    result = mask_average_precision(truth, [*found, right])
    assert result.ap == pytest.approx(1.0)
    assert result.categories[0].num_truth == 1
    without = [mask for mask in truth if not mask.is_crowd]
    assert mask_average_precision(without, [*found, right]).ap == pytest.approx(0.2)


def test_only_so_many_of_a_category_count_in_an_image() -> None:
    truth = [TrueMask(1, "cat", box(0, 0, 5, 5))]
    wrong = [FoundMask(1, "cat", box(10, 10, 5, 5), 0.9)] * 3
    right = FoundMask(1, "cat", box(0, 0, 5, 5), 0.5)
    assert mask_average_precision(truth, [*wrong, right], max_found_per_image=4).ap == pytest.approx(0.25)
    assert mask_average_precision(truth, [*wrong, right], max_found_per_image=3).ap == 0.0


def test_nothing_found_is_zero() -> None:
    assert mask_average_precision([TrueMask(1, "cat", box(0, 0, 5, 5))], []).ap == 0.0


def test_masks_with_empty_runs_inside_are_seen_whole() -> None:
    """pycocotools takes an empty run inside an RLE for its end: 4 pixels would be found 2."""
    odd = rle.from_runs((4, 4), [0, 2, 0, 2, 12])
    plain = rle.from_runs((4, 4), [0, 4, 12])
    assert mask_average_precision([TrueMask(1, "cat", plain)], [FoundMask(1, "cat", odd, 1.0)]).ap == pytest.approx(1.0)
    assert referring_iou([(odd, plain)]).ciou == 1.0


def test_average_precision_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="at least one true mask"):
        mask_average_precision([], [FoundMask(1, "cat", box(0, 0, 5, 5), 1.0)])
    with pytest.raises(ValueError, match="at least one true mask"):
        mask_average_precision([TrueMask(1, "cat", box(0, 0, 5, 5), is_crowd=True)], [])
    with pytest.raises(ValueError, match=r"image 1 has masks of different sizes: \(24, 32\) and \(8, 8\)"):
        mask_average_precision(
            [TrueMask(1, "cat", box(0, 0, 5, 5))], [FoundMask(1, "cat", box(0, 0, 5, 5, (8, 8)), 1.0)]
        )


def test_referring_iou_by_hand() -> None:
    """IoUs 50/150, 1 (both empty), 0 (nothing found of 30), 0 (10 found of nothing)."""
    pairs = [
        (box(0, 0, 10, 10), box(0, 5, 10, 10)),
        (None, EMPTY),
        (None, box(0, 0, 5, 6)),
        (box(0, 0, 2, 5), EMPTY),
    ]
    result = referring_iou(pairs)
    assert result.giou == pytest.approx((1 / 3 + 1 + 0 + 0) / 4)
    assert result.ciou == pytest.approx(50 / (150 + 0 + 30 + 10))


def test_ignored_pixels_are_left_out_of_both_masks() -> None:
    found, truth = box(0, 0, 10, 10), box(0, 5, 10, 10)
    assert referring_iou([(found, truth)], ignored=[box(0, 0, 10, 5)]).ciou == pytest.approx(50 / 100)
    everything = box(0, 0, *SIZE)
    assert referring_iou([(found, truth), (None, truth)], ignored=[everything, everything]).giou == 1.0
    assert referring_iou([(found, truth)], ignored=[None]).ciou == pytest.approx(50 / 150)


dense = arrays(np.bool_, (5, 7))


@given(st.lists(st.tuples(dense, dense, dense), min_size=1, max_size=5))
def test_referring_iou_is_that_of_dense_masks(samples: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    intersections = [int((f & t & ~i).sum()) for f, t, i in samples]
    unions = [int(((f | t) & ~i).sum()) for f, t, i in samples]
    result = referring_iou(
        [(rle.encode(f), rle.encode(t)) for f, t, _ in samples], ignored=[rle.encode(i) for *_, i in samples]
    )
    assert result.ciou == pytest.approx(sum(intersections) / sum(unions) if sum(unions) else 1.0)
    ious = [i / u if u else 1.0 for i, u in zip(intersections, unions, strict=True)]
    assert result.giou == pytest.approx(np.mean(ious))


def test_referring_iou_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        referring_iou([])
    with pytest.raises(ValueError, match="different sizes"):
        referring_iou([(box(0, 0, 5, 5), box(0, 0, 5, 5, (8, 8)))])


def test_captions_pair_their_masks_one_to_one_best_first() -> None:
    """One true mask overlaps both found ones: only the better pair counts, the other is left over."""
    wanted = [box(0, 0, 10, 10), box(20, 20, 2, 2)]
    found = [box(0, 0, 10, 5), box(0, 0, 10, 8)]
    result = grounded_caption_quality([(found, wanted), ([], wanted[:1])])
    assert result.miou == pytest.approx((0.8 + 0.0) / 2)
    perfect = grounded_caption_quality([(wanted[::-1], wanted)])
    assert (perfect.miou, perfect.ap50) == pytest.approx((1.0, 1.0))


def test_the_ap50_of_captions_takes_all_scores_for_equal() -> None:
    """Equal scores keep their order: right, wrong, right of 2."""
    found = [box(0, 0, 5, 5), box(0, 20, 5, 5), box(10, 10, 5, 5)]
    result = grounded_caption_quality([(found, [found[0], found[2]])])
    assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.miou == 1.0


@given(st.lists(boxes, max_size=3), st.lists(boxes, min_size=1, max_size=3), st.randoms())
def test_captions_do_not_depend_on_the_order_of_phrases_where_overlaps_differ(found, wanted, random) -> None:
    ious = rle.iou(found, wanted)
    result = grounded_caption_quality([(found, wanted)])
    assert 0.0 <= result.miou <= ious.max(initial=0.0) + 1e-12
    overlaps = ious[ious > 0]
    if len(set(overlaps.tolist())) == overlaps.size:
        shuffled = random.sample(found, len(found)), random.sample(wanted, len(wanted))
        assert grounded_caption_quality([shuffled]).miou == pytest.approx(result.miou)
