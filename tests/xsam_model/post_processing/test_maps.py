"""Panoptic and semantic maps from logits: against plain definitions, in pieces, and where nothing is found."""

import pytest
import torch
import torch.nn.functional as F

from xsam_model.post_processing.maps import panoptic_segmentation, semantic_segmentation
from xsam_model.post_processing.mask_geometry import MaskGeometry

GEOMETRY = MaskGeometry(canvas_size=64, scaled_size=(48, 64), original_size=(90, 120))
SEGMENTATIONS = [panoptic_segmentation, semantic_segmentation]


@pytest.fixture
def logits():
    """Twelve queries, four conditions and the background."""
    generator = torch.Generator().manual_seed(3)
    classes = 3 * torch.randn(12, 5, generator=generator)
    masks = F.interpolate(torch.randn(1, 12, 4, 4, generator=generator), (16, 16), mode="bilinear")[0] * 8
    masks[3] = -9.0
    return classes, masks


def squares(*boxes, labels, side=16):
    """Sure queries with rectangles as masks, on a canvas without padding: box is (top, left, bottom, right)."""
    classes, masks = torch.full((len(boxes), max(labels) + 2), -9.0), torch.full((len(boxes), side, side), -9.0)
    for query, ((top, left, bottom, right), label) in enumerate(zip(boxes, labels, strict=True)):
        classes[query, label], masks[query, top:bottom, left:right] = 9.0, 9.0
    return classes, masks, MaskGeometry(canvas_size=side, scaled_size=(side, side), original_size=(side, side))


def panoptic_by_definition(classes, masks, stuff, threshold, mask_threshold=0.5, overlap_threshold=0.8):
    """Everything at once, then query by query: ids, labels and areas of what was found, in the order of queries."""
    probabilities = GEOMETRY.enlarge(masks).sigmoid()
    scores, labels = classes.softmax(-1)[:, :-1].max(1)
    kept = [query for query in range(len(classes)) if scores[query] > threshold]
    products = probabilities[kept] * scores[kept][:, None, None]
    owners = products.argmax(0)
    segmentation, found, of_stuff = torch.zeros(owners.shape, dtype=torch.int32), {}, {}
    for place, query in enumerate(kept):
        won, own = owners == place, products[place] >= mask_threshold
        if not own.any() or not won.sum() / own.sum() > overlap_threshold:
            continue
        label = labels[query].item()
        number = of_stuff.get(label) or len(found) + 1
        if label in stuff:
            of_stuff[label] = number
        segmentation[won] = number
        found.setdefault(number, []).append((label, won.sum().item(), scores[query].item()))
    return segmentation, found


@pytest.mark.parametrize("stuff", [(), (0, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("overlap_threshold", [0.8, 0.1])
def test_panoptic_segments_equal_the_definition(logits, stuff, threshold, overlap_threshold):
    found = panoptic_segmentation(
        *logits, GEOMETRY, stuff=stuff, threshold=threshold, overlap_threshold=overlap_threshold
    )
    expected, parts = panoptic_by_definition(*logits, stuff, threshold, overlap_threshold=overlap_threshold)
    assert len(parts) > 1
    assert torch.equal(found.segmentation, expected)
    assert found.segmentation.dtype == torch.int32
    assert [segment.id for segment in found.segments] == list(range(1, len(parts) + 1))
    for segment in found.segments:
        labels, areas, scores = zip(*parts[segment.id], strict=True)
        assert {segment.label} == set(labels)
        assert segment.area == sum(areas) == (found.segmentation == segment.id).sum()
        assert segment.is_thing == (segment.label not in stuff)
        mean = sum(area * score for area, score in zip(areas, scores, strict=True)) / segment.area
        assert segment.class_score == pytest.approx(mean, abs=1e-6)


def test_the_score_of_a_segment_is_the_mean_product_over_its_pixels(logits):
    classes, masks = logits
    found = panoptic_segmentation(classes, masks, GEOMETRY, threshold=0.0, overlap_threshold=0.1)
    products = GEOMETRY.enlarge(masks).sigmoid() * classes.softmax(-1)[:, :-1].amax(1)[:, None, None]
    for segment in found.segments:
        inside = found.segmentation == segment.id
        assert segment.score == pytest.approx(products.amax(0)[inside].mean().item(), abs=1e-6)
        assert segment.score == pytest.approx(segment.class_score * segment.mask_score, abs=1e-6)
        assert 0 < segment.score <= 1
        assert 0 < segment.mask_score <= 1


def test_parts_of_stuff_are_one_segment_and_parts_of_things_are_two():
    sky_thing_sky = squares((0, 0, 16, 4), (0, 4, 16, 12), (0, 12, 16, 16), labels=[1, 0, 1])
    fused = panoptic_segmentation(*sky_thing_sky, stuff=[1])
    assert [(segment.id, segment.label, segment.is_thing, segment.area) for segment in fused.segments] == [
        (1, 1, False, 128),
        (2, 0, True, 128),
    ]
    assert fused.segmentation[0].tolist() == [1] * 4 + [2] * 8 + [1] * 4
    apart = panoptic_segmentation(*sky_thing_sky)
    assert [segment.id for segment in apart.segments] == [1, 2, 3]


def test_reference_ids_go_on_from_the_fused_segment_and_unique_ones_never_repeat():
    boxes = [(0, left, 16, left + 4) for left in (0, 4, 8, 12)]
    logits = squares(*boxes, labels=[2, 0, 2, 1])
    unique = panoptic_segmentation(*logits, stuff=[2])
    reference = panoptic_segmentation(*logits, stuff=[2], id_policy="reference")
    assert [(segment.id, segment.label) for segment in unique.segments] == [(1, 2), (2, 0), (3, 1)]
    assert [(segment.id, segment.label) for segment in reference.segments] == [(1, 2), (2, 0), (1, 2), (2, 1)]
    assert unique.segmentation[0, ::4].tolist() == [1, 2, 1, 3]
    assert reference.segmentation[0, ::4].tolist() == [1, 2, 1, 2]


def test_a_query_that_lost_most_of_its_mask_leaves_its_pixels_void():
    classes, masks, geometry = squares((0, 0, 16, 16), (0, 0, 16, 12), labels=[0, 0])
    masks[1, :, :12] = 12.0
    found = panoptic_segmentation(classes, masks, geometry)
    assert [(segment.id, segment.area) for segment in found.segments] == [(1, 192)]
    assert found.segmentation[0].tolist() == [1] * 12 + [0] * 4


def test_semantic_labels_equal_the_definition(logits):
    classes, masks = logits
    found = semantic_segmentation(classes, masks, GEOMETRY)
    canvas = F.interpolate(masks[None], (64, 64), mode="bilinear", align_corners=False).sigmoid()[0]
    sums = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], canvas)[:, :48]
    full = F.interpolate(sums[None], (90, 120), mode="bilinear", align_corners=False)[0]
    assert found.labels.dtype == torch.int64
    assert torch.equal(found.labels, full.argmax(0))
    present = found.labels.unique().tolist()
    assert len(present) > 1
    assert [segment.label for segment in found.segments] == present == [segment.id for segment in found.segments]
    for segment in found.segments:
        inside = found.labels == segment.label
        assert segment.area == inside.sum()
        assert segment.score == pytest.approx(min(full.amax(0)[inside].mean().item(), 1.0), abs=1e-5)


@pytest.mark.parametrize("pixels", [1, 90 * 120, 3 * 90 * 120, 64 * 64 * 3, 2**25])
def test_chunks_change_nothing(logits, pixels):
    panoptic = panoptic_segmentation(*logits, GEOMETRY, threshold=0.0, stuff=[0], max_chunk_pixels=pixels)
    expected = panoptic_segmentation(*logits, GEOMETRY, threshold=0.0, stuff=[0])
    assert torch.equal(panoptic.segmentation, expected.segmentation)
    assert scores(panoptic) == pytest.approx(scores(expected), abs=1e-6)
    semantic = semantic_segmentation(*logits, GEOMETRY, max_chunk_pixels=pixels)
    expected = semantic_segmentation(*logits, GEOMETRY)
    assert torch.equal(semantic.labels, expected.labels)
    assert scores(semantic) == pytest.approx(scores(expected), abs=1e-6)


def scores(found):
    return [segment.score for segment in found.segments]


def test_a_large_image_of_many_categories_is_never_enlarged_at_once(monkeypatch):
    """40 queries and 30 categories at 4 megapixels would be 640 MB of masks and 480 MB of category maps."""
    generator = torch.Generator().manual_seed(0)
    classes, masks = 4 * torch.randn(40, 31, generator=generator), torch.randn(40, 8, 8, generator=generator)
    geometry = MaskGeometry(canvas_size=64, scaled_size=(64, 64), original_size=(2000, 2000))
    enlarged = []

    def watched(self, values):
        enlarged.append(values.shape[0] * self.original_size[0] * self.original_size[1])
        return enlarge(self, values)

    enlarge = MaskGeometry.enlarge_to_image
    monkeypatch.setattr(MaskGeometry, "enlarge_to_image", watched)
    for segmentation in SEGMENTATIONS:
        enlarged.clear()
        segmentation(classes, masks, geometry, max_chunk_pixels=2 * 2000 * 2000)
        assert 0 < max(enlarged) <= 2 * 2000 * 2000


def test_queries_that_cannot_matter_are_not_enlarged(logits, monkeypatch):
    counts = []
    enlarge = MaskGeometry.enlarge
    monkeypatch.setattr(MaskGeometry, "enlarge", lambda self, masks: counts.append(len(masks)) or enlarge(self, masks))
    classes, masks = logits
    panoptic_segmentation(classes, masks, GEOMETRY, threshold=0.5)
    assert sum(counts) == (classes.softmax(-1)[:, :-1].amax(1) > 0.5).sum() < 12
    counts.clear()
    # Every product is below the mask's threshold, so that there is nothing to find.
    assert panoptic_segmentation(classes * 0, masks, GEOMETRY, threshold=0.0).segments == ()
    assert counts == []


def assert_same_segments(ours, theirs):
    """Equal but for rounding: a softmax over more columns may add up in another order."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in one.__dataclass_fields__:
            value = getattr(one, name)
            same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert getattr(other, name) == same


def test_padding_columns_are_never_labels(logits):
    classes, masks = logits
    padded = torch.cat([classes[:, :4], torch.full((12, 3), -1e9), classes[:, 4:]], dim=1)
    alone, batched = (panoptic_segmentation(c, masks, GEOMETRY, num_conditions=4) for c in (classes, padded))
    assert torch.equal(alone.segmentation, batched.segmentation)
    assert_same_segments(alone.segments, batched.segments)
    alone, batched = (semantic_segmentation(c, masks, GEOMETRY, num_conditions=4) for c in (classes, padded))
    assert torch.equal(alone.labels, batched.labels)
    assert_same_segments(alone.segments, batched.segments)


def test_nothing_found_is_a_result(logits):
    classes, masks = logits
    for found in (
        panoptic_segmentation(classes, masks, GEOMETRY, threshold=1.0),
        panoptic_segmentation(classes[:, -1:], masks, GEOMETRY),
        panoptic_segmentation(classes, masks * 0 - 9, GEOMETRY, threshold=0.0),
    ):
        assert found.segments == ()
        assert torch.equal(found.segmentation, torch.zeros(90, 120, dtype=torch.int32))
    found = semantic_segmentation(classes[:, -1:], masks, GEOMETRY)
    assert found.segments == ()
    assert torch.equal(found.labels, torch.full((90, 120), -1))


def test_half_precision_logits_are_computed_with_in_float32(logits):
    rounded = [value.bfloat16() for value in logits]
    exact = [value.float() for value in rounded]
    for segmentation in SEGMENTATIONS:
        assert segmentation(*rounded, GEOMETRY).segments == segmentation(*exact, GEOMETRY).segments


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_raise(logits, segmentation, which, value):
    logits[which][2, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        segmentation(*logits, GEOMETRY)


def test_an_unknown_id_policy_raises(logits):
    with pytest.raises(ValueError, match="unknown id policy 'other'; known: unique, reference"):
        panoptic_segmentation(*logits, GEOMETRY, id_policy="other")
