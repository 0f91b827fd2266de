"""The refiner reads where a prompt is, and a model without one is as it was."""

import pytest
import torch

from xsam_model import XSamForSegmentation
from xsam_model.layers.refiner import XSamRefiner, prompt_maps
from xsam_model.testing import untrained_tiny_config

DIMS = [8, 16, 16]


@pytest.fixture(scope="module")
def config():
    return untrained_tiny_config(interactive_zoom=1.3, refiner_dims=DIMS)


def test_a_prompt_is_drawn_at_the_resolution_of_a_map():
    regions = torch.zeros(2, 1, 8, 8)
    regions[:, :, 0:4, 2:4] = 1
    regions[:, :, 3, 2:4] = 0
    box, point = prompt_maps(regions, torch.tensor([True, False]), (2, 4))
    assert box[0].tolist() == [[0, 0.75, 0, 0], [0, 0, 0, 0]]
    assert box[1].any() == point[0].any() == False  # noqa: E712  (one line for both)
    assert point[1].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    # The center is in row 1.5 and column 3 of 8; the map's places have their middles in rows 2 and 6.
    torch.testing.assert_close(box[2, :, 0], torch.tensor([2 * (2 - 1.5) / 8, 2 * (6 - 1.5) / 8]))
    torch.testing.assert_close(point[3, 0], torch.tensor([-0.5, 0, 0.5, 1.0]))
    assert (box[4] == 1).all()
    assert (point[4] == 0).all()


def test_masks_and_their_quality_depend_on_where_the_prompt_is_and_what_it_is(config):
    torch.manual_seed(0)
    refiner = XSamRefiner(config)
    sides = [16, 8, 8]
    shapes = [config.mask_encoder_map(layer)[0] for layer in config.segmentor_config.used_layers]
    one = [torch.randn(1, count, side, side) for count, side in zip(shapes, sides, strict=True)]
    regions = torch.zeros(3, 64, 64, dtype=torch.bool)
    regions[:2, 8:24, 8:24] = regions[2, 40:56, 8:24] = True
    pyramid = [level.expand(3, -1, -1, -1) for level in one]
    logits, quality = refiner(pyramid, regions, torch.tensor([True, False, True]))
    assert logits.shape == (3, 16, 16)
    assert quality.shape == (3,)
    for other in (1, 2):
        assert not torch.allclose(logits[0], logits[other])
        assert quality[0] != quality[other]
    # Each alone is as in the batch.
    alone, _ = refiner(one, regions[1:2], torch.tensor([False]))
    torch.testing.assert_close(alone[0], logits[1], atol=1e-5, rtol=1e-4)


def test_a_model_with_a_refiner_is_loaded_as_it_was_saved_and_one_without_has_no_weights_of_it(config, tmp_path):
    torch.manual_seed(0)
    model = XSamForSegmentation(config)
    model.save_pretrained(tmp_path)
    loaded = XSamForSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.config.refiner_dims == DIMS
    plain = XSamForSegmentation(untrained_tiny_config())
    assert {name for name in model.state_dict() if not name.startswith("refiner.")} == set(plain.state_dict())
    with pytest.raises(ValueError, match="has no refiner"):
        plain.refine(torch.zeros(1, 3, 256, 256), torch.ones(1, 256, 256, dtype=torch.bool), torch.tensor([True]))


@torch.no_grad()
def test_what_is_seen_both_ways_is_the_same_in_a_mirror(config):
    torch.manual_seed(0)
    model = XSamForSegmentation(config).eval()
    canvas, region, is_box = (
        torch.randn(1, 3, 256, 256),
        torch.zeros(1, 256, 256, dtype=torch.bool),
        torch.tensor([True]),
    )
    region[:, 40:120, 20:90] = True
    once, _ = model.refine(canvas, region, is_box)
    logits, quality = model.refine(canvas, region, is_box, mirrored=True)
    other, same = model.refine(canvas.flip(-1), region.flip(-1), is_box, mirrored=True)
    torch.testing.assert_close(logits, other.flip(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quality, same, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, once, atol=1e-4)


@pytest.mark.parametrize(
    ("dims", "zoom", "message"),
    [
        (DIMS, None, "refiner_dims need interactive_zoom"),
        ([8, 8], 1.3, "must be 3 multiples of 8"),
        ([8, 12, 8], 1.3, r"got \[8, 12, 8\]"),
        ([8, 0, 8], 1.3, "must be 3 multiples of 8"),
    ],
)
def test_channels_that_cannot_be_are_refused(dims, zoom, message):
    with pytest.raises(ValueError, match=message):
        untrained_tiny_config(refiner_dims=dims, interactive_zoom=zoom)


@torch.no_grad()
def test_maps_of_the_encoder_are_seen_at_scales_that_are_trained_beside_their_weights(config):
    torch.manual_seed(0)
    refiner = XSamRefiner(config)
    shapes = [config.mask_encoder_map(layer)[0] for layer in config.segmentor_config.used_layers]
    maps = [torch.randn(1, count, 8, 8) for count in shapes]
    region = torch.zeros(1, 32, 32, dtype=torch.bool)
    region[:, 8:24, 8:24] = True
    is_box = torch.tensor([True])
    logits, _ = refiner(maps, region, is_box)
    # The likeness of what a prompt shows is seen at its own width.
    assert not torch.allclose(refiner([2 * maps[0], *maps[1:]], region, is_box)[0], logits)
    refiner.scales[0] /= 2
    torch.testing.assert_close(refiner([2 * maps[0], *maps[1:]], region, is_box)[0], logits)
    refiner.scales[0] = refiner.scales[-1] = 0
    blind, _ = refiner(maps, region, is_box)
    ends = [torch.randn_like(maps[0]), maps[1], torch.randn_like(maps[2])]
    torch.testing.assert_close(refiner(ends, region, is_box)[0], blind)
    assert "scales" in dict(refiner.named_parameters())
