"""The convolutional mask encoder: its numbers, its pyramid, and a whole model around it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xsam_model import XSamConfig, XSamForSegmentation, XSamProcessor, XSamTrunkConfig
from xsam_model.layers.trunk import XSamTrunk
from xsam_model.testing import save_untrained, untrained_tiny_config

SMALL = {"image_size": 64, "stem_channels": 8, "channels": [8, 12, 16, 24, 32], "depths": [1, 2, 1, 1, 2]}
SMALL |= {"kernel_sizes": [3, 3, 5, 3, 5], "strides": [1, 2, 2, 2, 2], "expansions": [1, 2, 2, 2, 2]}
SEGMENTOR = {"select_layers": [2, 3, 4, 5], "connector_scale_factors": [1, 1, 1, 1], "num_feature_levels": 4}


def trunk_config(**changes):
    config = untrained_tiny_config()
    segmentor = {**config.segmentor_config.to_dict(), **SEGMENTOR, **changes.pop("segmentor_config", {})}
    encoder = {"model_type": "xsam_trunk", **SMALL, **changes.pop("mask_encoder_config", {})}
    fields = {"mask_encoder_select_layer": 4, "token_downsample": 1, **changes}
    return untrained_tiny_config(mask_encoder_config=encoder, segmentor_config=segmentor, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("trunk") / "model", config=trunk_config())


@pytest.fixture(scope="module")
def model(folder):
    return XSamForSegmentation.from_pretrained(folder).eval()


def test_the_defaults_are_the_sizes_of_efficientnet_lite0():
    with torch.device("meta"):
        trunk = XSamTrunk(XSamTrunkConfig(), (112, 14))
    # Of the published 4,652,008 the head and the classifier have 1,693,160; and a scale and a shift for each of 19,728
    # channels have become one bias.
    assert sum(one.numel() for name, one in trunk.named_parameters() if name != "token_positions") == 2_939_120


@torch.no_grad()
def test_a_model_around_it_answers_every_prompt_and_a_batch_equals_one_by_one(folder, model):
    processor = XSamProcessor.from_pretrained(folder)
    images = [np.full((50, 60, 3), value, dtype=np.uint8) for value in (30, 120, 200)]
    inputs = processor(images, task="ovseg", conditions=[["dog", "cat"]] * 3)
    outputs = model(**inputs.for_model())
    features = outputs.image_features
    assert features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1] == model.config.num_image_tokens
    assert [level.shape[-1] for level in features.multi_scale_features] == [2, 4, 8]
    assert outputs.mask_logits.shape[-2:] == features.mask_features.shape[-2:] == (16, 16)
    for row, image in enumerate(images):
        alone = model(**processor([image], task="ovseg", conditions=[["dog", "cat"]]).for_model())
        torch.testing.assert_close(outputs.mask_logits[row], alone.mask_logits[0], atol=5e-4, rtol=0)
    spots = np.zeros((2, 50, 60), dtype=bool)
    spots[0, 5:10, 5:10] = spots[1, 30:35, 40:45] = True
    answers = [
        model(**processor(images[:1], task="intseg", visual_prompts=[[spot]]).for_model()).seg_embeddings
        for spot in spots
    ]
    # On a picture of one color only the positions of tokens tell two points apart.
    assert (answers[0] - answers[1]).abs().max() > 1e-4


def test_a_model_around_it_is_saved_and_loaded_whole(folder, model, tmp_path):
    model.save_pretrained(tmp_path)
    again = XSamForSegmentation.from_pretrained(tmp_path)
    assert isinstance(again.config.mask_encoder_config, XSamTrunkConfig)
    assert again.config.to_dict()["mask_encoder_config"] == model.config.to_dict()["mask_encoder_config"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@torch.no_grad()
def test_a_canvas_need_not_be_a_multiple_of_the_last_stride():
    torch.manual_seed(0)
    whole = XSamForSegmentation(trunk_config(mask_encoder_config={"image_size": 48})).eval()
    features = whole.encode_images(torch.zeros(1, 3, 112, 112), torch.zeros(1, 3, 48, 48))
    assert [level.shape[-1] for level in features.multi_scale_features] == [2, 3, 6]
    assert features.mask_features.shape[-1] == 12
    assert features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1] == whole.config.num_image_tokens


def test_positions_begin_smooth_and_tell_all_places_apart(model):
    positions = model.segmentor.encoder.token_positions.detach()
    places = positions.flatten(0, 1)
    apart = torch.cdist(places, places) + 1e9 * torch.eye(len(places))
    assert apart.min() > 1
    across, down = (positions.diff(dim=axis).norm(dim=2) for axis in (0, 1))
    opposite = (positions[0, 0] - positions[-1, -1]).norm()
    assert max(across.max(), down.max()) < opposite


def padded_as_tensorflow_pads(conv, features):
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    missing = [
        max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (features.shape[3], features.shape[2])
    ]
    padded = F.pad(features, [part for total in missing for part in (total // 2, total - total // 2)])
    found = F.conv2d(padded, conv.weight, conv.bias, stride, groups=conv.groups)
    return found if conv.linear else F.relu6(found)


@torch.no_grad()
@pytest.mark.parametrize("side", [48, 45])
def test_maps_are_those_of_convolutions_padded_as_tensorflow_pads(side, model):
    trunk, pixels = model.segmentor.encoder, torch.randn(2, 3, side, side, generator=torch.manual_seed(0))
    hidden = padded_as_tensorflow_pads(trunk.stem, pixels)
    expected = [hidden]
    for stage in trunk.stages:
        for block in stage:
            before = hidden
            for conv in filter(None, (block.expand, block.depthwise, block.project)):
                hidden = padded_as_tensorflow_pads(conv, hidden)
            hidden = before + hidden if block.is_residual else hidden
        expected.append(hidden)
    found = trunk.encode(pixels, range(6))
    for layer, one in enumerate(expected):
        torch.testing.assert_close(found[layer].permute(0, 3, 1, 2), one, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_random_weights_neither_fade_nor_explode(model):
    maps = model.segmentor.encode(torch.randn(2, 3, 64, 64), {0, 5})
    assert 0.05 < maps[5].std() / maps[0].std() < 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_encoder_config": {"strides": [1, 2, 3, 2, 2]}}, "strides must be 1 or 2"),
        ({"mask_encoder_config": {"kernel_sizes": [3, 4, 5, 3, 5]}}, "kernel sizes odd"),
        ({"mask_encoder_config": {"depths": [1, 2]}}, "depths needs one entry for each of 5 stages"),
        ({"mask_encoder_config": {"depths": [1, 2, 0, 1, 2]}}, "must be 1 or more"),
        (
            {"mask_encoder_config": {"image_size": 100}},
            "image_size must be a multiple of half the last stage's stride, 16",
        ),
        ({"segmentor_config": {"select_layers": [1, 2, 3, 4]}}, r"have strides \[2, 4, 8, 16\] in this trunk"),
        ({"segmentor_config": {"select_layers": [2, 3, 4, 9]}}, r"select_layers: \[9\] are not among 0 .. 5"),
        ({"segmentor_config": {"connector_scale_factors": [4, 2, 1, 0.5]}}, "connector_scale_factors must be 1"),
        ({"mask_encoder_select_layer": 6}, "mask_encoder_select_layer must be in -6 .. 5"),
        ({"mask_encoder_select_layer": -7}, "mask_encoder_select_layer must be in -6 .. 5"),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        trunk_config(**fields)


def test_an_unknown_encoder_is_refused_by_name():
    with pytest.raises((ValueError, KeyError), match="no_such_encoder"):
        XSamConfig(mask_encoder_config={"model_type": "no_such_encoder"})
