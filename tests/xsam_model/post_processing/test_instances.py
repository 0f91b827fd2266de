"""Instances from logits: against the definition, in pieces, and at the edges of the threshold."""

import pytest
import torch
import torch.nn.functional as F

from xsam_model.post_processing.instances import instance_segmentation, iter_instances
from xsam_model.post_processing.mask_geometry import MaskGeometry

GEOMETRY = MaskGeometry(canvas_size=64, scaled_size=(48, 64), original_size=(90, 120))
FIELDS = ("scores", "mask_scores", "labels", "query_indices", "masks")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(12, 5, generator=generator)
    masks = F.interpolate(torch.randn(1, 12, 4, 4, generator=generator), (16, 16), mode="bilinear")[0] * 4
    masks[3] = -1.0
    return classes, masks


def by_definition(classes, masks, threshold, top_k):
    """Enlarge everything, score everything, keep the best pairs."""
    canvas = F.interpolate(masks[None], (64, 64), mode="bilinear", align_corners=False)[..., :48, :64]
    full = F.interpolate(canvas, (90, 120), mode="bilinear", align_corners=False)[0]
    probabilities = classes.softmax(-1)[:, :-1].flatten()
    found = []
    for index in probabilities.argsort(descending=True)[:top_k].tolist():
        query, label = divmod(index, classes.shape[1] - 1)
        mask = full[query] > 0
        mean = (full[query].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        score = (probabilities[index] * mean).item()
        if score >= threshold:
            found.append((round(score, 5), label, query, int(mask.sum())))
    return sorted(found, reverse=True)


def listed(found):
    areas = found.masks.sum((1, 2)).tolist()
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.query_indices.tolist(), areas, strict=True)
    return sorted(((round(score, 5), *rest) for score, *rest in rows), reverse=True)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("top_k", [None, 5, 1000])
def test_instances_equal_the_definition(logits, threshold, top_k):
    found = instance_segmentation(*logits, GEOMETRY, threshold=threshold, top_k=top_k)
    assert listed(found) == by_definition(*logits, threshold, 12 if top_k is None else top_k)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.masks.shape == (len(found), 90, 120)
    assert found.masks.dtype == torch.bool
    assert found.labels.dtype == found.query_indices.dtype == torch.int64


def test_one_by_one_every_query_comes_once_with_all_its_instances(logits):
    whole = instance_segmentation(*logits, GEOMETRY, top_k=30)
    parts = list(iter_instances(*logits, GEOMETRY, top_k=30))
    queries = [part.mask.query for part in parts]
    assert len(queries) == len(set(queries)) > 3
    assert max(len(part.labels) for part in parts) > 1
    rows = [
        (round(score, 5), label, part.mask.query, int(part.mask.inside.sum()))
        for part in parts
        for score, label in zip(part.scores.tolist(), part.labels.tolist(), strict=True)
    ]
    assert sorted(rows, reverse=True) == listed(whole)


def test_masks_are_enlarged_only_where_they_can_be():
    classes, masks = torch.full((1, 2), 5.0), torch.full((1, 16, 16), -3.0)
    masks[0, 4:6, 9:12] = 3.0
    (found,) = iter_instances(classes, masks, GEOMETRY)
    assert found.mask.inside.any()
    assert found.mask.inside.numel() < 0.1 * 90 * 120
    assert torch.equal(instance_segmentation(classes, masks, GEOMETRY).masks, GEOMETRY.enlarge(masks) > 0)


def test_empty_masks_have_score_zero_and_no_place_above_threshold_zero(logits):
    classes, masks = logits
    classes[3, 0] = 50.0
    everything = instance_segmentation(classes, masks, GEOMETRY)
    empty = ~everything.masks.any(dim=(1, 2)) if len(everything) else None
    assert (everything.scores[empty] == 0).all()
    assert 3 in everything.query_indices[empty]
    assert instance_segmentation(classes, masks, GEOMETRY, threshold=1e-6).masks.any(dim=(1, 2)).all()


def test_padding_columns_are_never_labels(logits):
    classes, masks = logits
    padded = torch.cat([classes[:, :4], torch.full((12, 3), -1e9), classes[:, 4:]], dim=1)
    alone = instance_segmentation(classes, masks, GEOMETRY)
    batched = instance_segmentation(padded, masks, GEOMETRY, num_conditions=4)
    for name in FIELDS:
        assert torch.equal(getattr(alone, name), getattr(batched, name)), name


def test_nothing_found_is_an_empty_result_of_the_right_shape(logits):
    classes, masks = logits
    found = instance_segmentation(classes, masks, GEOMETRY, threshold=1.0)
    assert len(found) == 0
    assert found.masks.shape == (0, 90, 120)
    assert list(iter_instances(classes, masks, GEOMETRY, threshold=1.0)) == []
    assert len(instance_segmentation(classes[:, -1:], masks, GEOMETRY)) == 0
    assert len(instance_segmentation(classes, masks, GEOMETRY, num_conditions=0)) == 0


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_raise_instead_of_hiding_instances(logits, which, value):
    logits[which][2, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        next(iter_instances(*logits, GEOMETRY, threshold=0.1))


def test_processor_returns_instances_of_every_image_at_its_own_size(tiny_model, tiny_processor, picture):
    images = [picture(90, 130), picture(150, 70), picture(64, 64)]
    inputs = tiny_processor(images, conditions=[["dog", "cat"], ["sky"], ["a", "b", "c"]])
    with torch.no_grad():
        outputs = tiny_model(**inputs.for_model())
    found = tiny_processor.post_process_instance_segmentation(
        outputs, inputs["scaled_sizes"], inputs["original_sizes"], threshold=0.05
    )
    for index, (image, instances, count) in enumerate(zip(images, found, (2, 1, 3), strict=True)):
        assert len(instances) > 0
        assert instances.masks.shape[1:] == image.shape[:2]
        assert instances.labels.max() < count
        assert ((instances.scores > 0.05) & (instances.scores <= 1)).all()
        sizes = inputs["scaled_sizes"][index], inputs["original_sizes"][index]
        decode = tiny_processor.decode_arguments(outputs, index, *sizes)
        parts = list(iter_instances(**decode, threshold=0.05))
        assert sum(len(part.labels) for part in parts) == len(instances)
