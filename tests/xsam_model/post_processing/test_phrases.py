"""The mask of each phrase and of one visual prompt, from logits: against plain definitions and at their edges."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xsam_model import XSamImageProcessor
from xsam_model.post_processing import mask_geometry
from xsam_model.post_processing.instances import box_ious, interactive_segmentation, mask_boxes, phrase_segmentation
from xsam_model.post_processing.mask_geometry import MaskGeometry, WindowedMask

GEOMETRY = MaskGeometry(canvas_size=64, scaled_size=(48, 64), original_size=(90, 120))
FIELDS = ("scores", "class_scores", "mask_scores", "query_indices", "masks")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(12, 5, generator=generator)
    masks = F.interpolate(torch.randn(1, 12, 4, 4, generator=generator), (16, 16), mode="bilinear")[0] * 4
    return classes, masks


@pytest.fixture
def enlarged(monkeypatch):
    """The queries whose masks were enlarged so far."""
    queries = []
    monkeypatch.setattr(
        mask_geometry, "WindowedMask", lambda query, *rest: queries.append(query) or WindowedMask(query, *rest)
    )
    return queries


def assert_equal(found, expected, tolerance=0.0):
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=tolerance, rtol=0)


def test_each_phrase_gets_the_mask_of_its_most_probable_query(logits):
    classes, masks = logits
    found = phrase_segmentation(classes, masks, GEOMETRY)
    assert len(found) == 4
    assert found.masks.dtype == torch.bool
    assert found.query_indices.dtype == torch.int64
    full = GEOMETRY.enlarge(masks).sigmoid()
    for condition in range(4):
        probabilities = classes.softmax(-1)[:, condition]
        query = int(probabilities.argmax())
        mask = full[query] > 0.5
        assert found.query_indices[condition] == query
        assert torch.equal(found.masks[condition], mask)
        assert found.class_scores[condition] == probabilities[query]
        assert found.mask_scores[condition].item() == pytest.approx(full[query][mask].mean().item(), abs=1e-6)
        assert found.scores[condition] == found.class_scores[condition] * found.mask_scores[condition]


def test_the_id_map_draws_later_phrases_over_earlier_ones(logits):
    found = phrase_segmentation(*logits, GEOMETRY)
    ids = found.id_map()
    assert ids.dtype == torch.int32
    assert torch.equal(ids == 4, found.masks[3])
    assert torch.equal(ids == 1, found.masks[0] & ~found.masks[1:].any(0))
    assert torch.equal(ids == 255, ~found.masks.any(0))


def test_one_query_may_answer_to_several_phrases_and_is_enlarged_once(logits, enlarged):
    classes, masks = logits
    classes[:, :4], classes[7, :4] = -20.0, 20.0
    found = phrase_segmentation(classes, masks, GEOMETRY)
    assert found.query_indices.tolist() == [7] * 4
    assert enlarged == [7]
    assert all(torch.equal(mask, found.masks[0]) for mask in found.masks)


def test_no_phrases_is_an_empty_result(logits):
    classes, masks = logits
    for found in (
        phrase_segmentation(classes[:, -1:], masks, GEOMETRY),
        phrase_segmentation(classes, masks, GEOMETRY, num_conditions=0),
    ):
        assert len(found) == 0
        assert found.masks.shape == (0, 90, 120)
        assert all(len(getattr(found, name)) == 0 for name in FIELDS)
        assert torch.equal(found.id_map(), torch.full((90, 120), 255, dtype=torch.int32))


def test_a_phrase_whose_best_mask_is_empty_has_score_zero(logits):
    classes, masks = logits
    classes[2, 1], masks[2] = 20.0, -5.0
    found = phrase_segmentation(classes, masks, GEOMETRY)
    assert found.query_indices[1] == 2
    assert not found.masks[1].any()
    assert found.class_scores[1] > 0.9
    assert found.scores[1] == found.mask_scores[1] == 0


def test_padding_columns_are_no_phrases(logits):
    classes, masks = logits
    padded = torch.cat([classes[:, :4], torch.full((12, 3), -1e9), classes[:, 4:]], dim=1)
    assert_equal(
        phrase_segmentation(classes, masks, GEOMETRY), phrase_segmentation(padded, masks, GEOMETRY, num_conditions=4)
    )


def rectangles(*boxes, scores):
    """Queries with rectangles (top, left, bottom, right) as masks, on a canvas that is the image."""
    masks = torch.full((len(boxes), 32, 32), -20.0)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 20.0
    score = torch.tensor(scores)
    classes = torch.stack([score.log(), (1 - score).log()], dim=1)
    return classes, masks, MaskGeometry(canvas_size=32, scaled_size=(32, 32), original_size=(32, 32))


def prompt_of(top, left, bottom, right):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


BOXES = [(0, 0, 10, 10), (20, 20, 30, 30), (18, 18, 32, 32)]


@pytest.mark.parametrize(
    ("scores", "threshold", "expected"),
    [
        ([0.9, 0.6, 0.8], 0.5, 1),  # the box that fits, not the best score
        ([0.9, 0.4, 0.8], 0.5, 2),  # it is not sure enough, so the next
        ([0.4, 0.2, 0.3], 0.5, 0),  # none is: the best score, whatever its box
        ([0.4, 0.2, 0.3], 0.0, 1),
        ([0.4, 0.4, 0.3], 0.5, 1),  # two best scores, so the box decides
    ],
)
def test_a_visual_prompt_gets_the_sure_mask_whose_box_fits_best(scores, threshold, expected):
    found = interactive_segmentation(*rectangles(*BOXES, scores=scores), prompt_of(20, 20, 30, 30), threshold=threshold)
    assert len(found) == 1
    assert found.query_indices.tolist() == [expected]
    assert found.class_scores.tolist() == pytest.approx([scores[expected]])
    assert found.scores.tolist() == pytest.approx([scores[expected]], abs=1e-4)
    assert torch.equal(found.masks[0], prompt_of(*BOXES[expected]))


def test_a_prompt_that_meets_no_box_gets_one_of_the_sure_masks():
    logits = rectangles(*BOXES, scores=[0.7, 0.4, 0.8])
    assert interactive_segmentation(*logits, prompt_of(0, 28, 4, 32)).query_indices.tolist() in ([0], [2])


def test_only_queries_that_can_win_are_enlarged(enlarged):
    scores = [0.9, 0.8, 0.6] + [0.1] * 9
    logits = rectangles(*BOXES, *[(0, 0, 32, 32)] * 9, scores=scores)
    found = interactive_segmentation(*logits, prompt_of(0, 0, 5, 5))
    assert enlarged == [0, 1, 2, *found.query_indices.tolist()]  # the three that pass, and the winner once more


def test_nothing_but_empty_masks_is_one_empty_mask_of_score_zero():
    classes, masks, geometry = rectangles(*BOXES, scores=[0.7, 0.9, 0.8])
    found = interactive_segmentation(classes, masks * 0 - 3, geometry, prompt_of(0, 0, 5, 5))
    assert len(found) == 1
    assert not found.masks.any()
    assert found.scores.tolist() == [0.0]


def test_a_visual_prompt_needs_one_condition_and_the_size_of_the_image():
    classes, masks, geometry = rectangles(*BOXES, scores=[0.7, 0.9, 0.8])
    prompt = prompt_of(0, 0, 5, 5)
    padded = torch.cat([classes[:, :1], torch.full((3, 2), -1e9), classes[:, 1:]], dim=1)
    with pytest.raises(ValueError, match="one visual prompt is asked for at a time, got 3 conditions"):
        interactive_segmentation(padded, masks, geometry, prompt)
    assert_equal(
        interactive_segmentation(padded, masks, geometry, prompt, num_conditions=1),
        interactive_segmentation(classes, masks, geometry, prompt),
    )
    with pytest.raises(ValueError, match=r"prompt mask of \(5, 5\), but the image has \(32, 32\)"):
        interactive_segmentation(classes, masks, geometry, prompt[:5, :5])


def test_half_precision_logits_are_computed_with_in_float32(logits):
    classes, masks = (value.bfloat16() for value in logits)
    exact = phrase_segmentation(classes.float(), masks.float(), GEOMETRY)
    assert_equal(phrase_segmentation(classes, masks, GEOMETRY), exact)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_raise(logits, which, value):
    logits[which][2, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        phrase_segmentation(*logits, GEOMETRY)
    with pytest.raises(FloatingPointError, match="not finite"):
        interactive_segmentation(logits[0][:, :2], logits[1], GEOMETRY, torch.ones(90, 120, dtype=torch.bool))


def test_boxes_are_tight_with_exclusive_ends():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 1:7] = True
    masks[1, 5, 0] = True
    assert mask_boxes(masks).tolist() == [[1, 2, 7, 4], [0, 5, 1, 6], [0, 0, 0, 0]]
    overlaps = box_ious(
        torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [0, 0, 0, 0]]), torch.tensor([[0.0, 0, 4, 4]])
    )
    assert overlaps.tolist() == pytest.approx([1, 4 / 28, 0, 0])


def test_a_mask_on_the_canvas_comes_back_to_the_image():
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[12:24, 32:48] = 1
    mask[50:, :] = 1  # padding
    restored = GEOMETRY.restore_mask(mask)
    assert restored.dtype == torch.bool
    assert mask_boxes(restored[None]).tolist() == [[60, 23, 90, 45]]


@pytest.mark.parametrize("size", [(90, 120), (40, 30), (64, 64), (61, 83), (300, 200)])
def test_a_visual_prompt_survives_the_canvas_but_for_a_pixel_of_it(size):
    """What the reference implementation compares boxes with, against the prompt itself."""
    prompt = np.zeros(size, dtype=bool)
    prompt[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] - 2] = True
    processor = XSamImageProcessor(vision_size=56, segmentor_size=64)
    sizes = processor([np.zeros((*size, 3), dtype=np.uint8)])
    geometry = MaskGeometry(canvas_size=64, scaled_size=tuple(sizes["scaled_sizes"][0]), original_size=size)
    restored = geometry.restore_mask(torch.from_numpy(processor.scale_mask(prompt)))
    boxes = mask_boxes(torch.stack([restored, torch.from_numpy(prompt)]))
    assert (boxes[0] - boxes[1]).abs().max() <= max(1, np.ceil(max(size) / 64))
