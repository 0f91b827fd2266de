"""Behavior of the network that no recording covers: batches, saving, half precision, visual prompts, errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from xsam_model import XSamConfig, XSamForSegmentation, XSamImageFeatures
from xsam_model.convert_xsam_to_hf import from_hf, to_hf
from xsam_model.testing import save_untrained, untrained_tiny_config

KEYS = Path(__file__).parents[1] / "golden" / "full_state_dict_keys.tsv"
BATCH_TOLERANCE = 5e-4


def square(size_hw, top, left, side):
    mask = np.zeros(size_hw, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@torch.no_grad()
def predict(model, inputs, **extra):
    return model(**inputs.for_model(), **extra)


def features_of(batched, row):
    features, part = batched.image_features, slice(row, row + 1)
    return XSamImageFeatures(
        vision_tokens=features.vision_tokens[part],
        segmentor_tokens=features.segmentor_tokens[part],
        multi_scale_features=tuple(level[part] for level in features.multi_scale_features),
        mask_features=features.mask_features[part],
    )


def assert_same_as_single(model, batched, inputs):
    for row, single_inputs in enumerate(inputs):
        alone, in_batch = predict(model, single_inputs).image_features, features_of(batched, row)
        for ours, theirs in zip(alone.multi_scale_features, in_batch.multi_scale_features, strict=True):
            torch.testing.assert_close(ours, theirs, atol=BATCH_TOLERANCE, rtol=0)
        for name in ("vision_tokens", "segmentor_tokens", "mask_features"):
            torch.testing.assert_close(getattr(alone, name), getattr(in_batch, name), atol=BATCH_TOLERANCE, rtol=0)
        # From the same features on: a mask logit that rounds to the other side of 0 would move the decoder's attention.
        single = predict(model, single_inputs, image_features=in_batch)
        columns = [*range(single.class_logits.shape[2] - 1), -1]
        close = {"atol": BATCH_TOLERANCE, "rtol": 0}
        torch.testing.assert_close(batched.class_logits[row][:, columns], single.class_logits[0], **close)
        torch.testing.assert_close(batched.mask_logits[row], single.mask_logits[0], **close)


def test_default_configuration_has_every_key_and_shape_of_the_released_checkpoint():
    with torch.device("meta"):
        model = XSamForSegmentation(XSamConfig())
    lines = [line.split("\t") for line in KEYS.read_text().splitlines()[1:]]
    released = {key: json.loads(shape) for key, shape, _ in lines}
    assert {key: list(value.shape) for key, value in from_hf(model.state_dict()).items()} == released
    assert list(from_hf(to_hf(released))) == list(released)
    assert model.config.num_image_tokens == 1753
    assert model.config.max_text_length == 2319


def test_batch_of_mixed_sizes_and_category_counts_equals_one_by_one(golden, golden_model, picture):
    images = [golden.image, picture(150, 90), picture(64, 200)]
    conditions = [["person", "traffic light"], ["dog"], ["sky", "grass", "a car", "person"]]
    batched = predict(golden_model, golden.processor(images, task="ovseg", conditions=conditions))
    singles = [
        golden.processor([image], task="ovseg", conditions=[names])
        for image, names in zip(images, conditions, strict=True)
    ]
    assert batched.condition_mask.sum(1).tolist() == [3, 2, 5]
    assert (batched.class_logits[1, :, 1:4] == -1e9).all()
    assert_same_as_single(golden_model, batched, singles)


def test_batch_of_visual_prompts_equals_one_by_one(golden, golden_model, picture):
    images = [picture(100, 160), picture(140, 110), golden.image]
    prompts = [
        [square((100, 160), 10, 20, 50)],
        [square((140, 110), 0, 0, 9), square((140, 110), 60, 30, 60)],
        [square(golden.image.shape[:2], 5, 5, 40)],
    ]
    batched = predict(golden_model, golden.processor(images, task="vgdseg", visual_prompts=prompts))
    singles = [
        golden.processor([image], task="vgdseg", visual_prompts=[masks])
        for image, masks in zip(images, prompts, strict=True)
    ]
    assert_same_as_single(golden_model, batched, singles)


def test_prompts_may_be_read_at_all_their_pixels_or_at_given_points(tiny_folder, tiny_processor, picture):
    model = XSamForSegmentation.from_pretrained(tiny_folder).eval()
    inputs = tiny_processor([picture(120, 120)], task="vgdseg", visual_prompts=[[square((120, 120), 10, 10, 60)]])
    seeded, again = predict(model, inputs), predict(model, inputs)
    model.config.region_sampling = "all"
    everywhere = predict(model, inputs)
    inputs["region_points"] = [inputs["vprompt_masks"][0].nonzero() / 256]
    given = predict(model, inputs)
    assert torch.equal(seeded.class_logits, again.class_logits)
    assert torch.equal(everywhere.class_logits, given.class_logits)
    assert not torch.equal(everywhere.class_logits, seeded.class_logits)


def test_image_features_answer_another_question_without_the_images(tiny_model, tiny_processor, picture):
    images = [picture(120, 80), picture(90, 90)]
    first = predict(tiny_model, tiny_processor(images, conditions=[["dog"], ["cat"]]))
    inputs = tiny_processor(images, conditions=[["sky"], ["grass", "dog"]])
    expected = predict(tiny_model, inputs)
    reused = {key: value for key, value in inputs.for_model().items() if "pixel_values" not in key}
    with torch.no_grad():
        actual = tiny_model(**reused, image_features=first.image_features)
    assert torch.equal(actual.class_logits, expected.class_logits)
    assert torch.equal(actual.mask_logits, expected.mask_logits)


def test_saved_model_loads_with_equal_logits(tiny_model, tiny_processor, picture, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = XSamForSegmentation.from_pretrained(tmp_path).eval()
    inputs = tiny_processor([picture(100, 140)], conditions=[["dog", "cat"]])
    before, after = predict(tiny_model, inputs), predict(loaded, inputs)
    assert torch.equal(before.class_logits, after.class_logits)
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert loaded.config.to_json_string() == tiny_model.config.to_json_string()


def test_auto_classes_load_model_and_processor(tiny_folder, tiny_model):
    from transformers import AutoModel, AutoProcessor

    assert isinstance(AutoModel.from_pretrained(tiny_folder), XSamForSegmentation)
    assert AutoProcessor.from_pretrained(tiny_folder).max_text_length == tiny_model.config.max_text_length


def test_bfloat16_model_is_finite_and_keeps_deformable_sampling_in_float32(tiny_folder, tiny_processor, picture):
    model = XSamForSegmentation.from_pretrained(tiny_folder, dtype=torch.bfloat16).eval()
    assert model.segmentor.pixel_decoder.level_embed.dtype == torch.float32
    assert model.llm.lm_head.weight.dtype == torch.bfloat16
    masks = [[square((100, 140), 10, 10, 60)]]
    output = predict(model, tiny_processor([picture(100, 140)], task="vgdseg", visual_prompts=masks))
    assert output.mask_logits.dtype == torch.bfloat16
    assert torch.isfinite(output.class_logits).all()
    assert torch.isfinite(output.mask_logits).all()
    (found,) = tiny_processor.post_process_instance_segmentation(output, [(183, 256)], [(100, 140)], 0.0)
    assert torch.isfinite(found.scores).all()


def test_sliding_window_hides_the_image_from_late_tokens(picture, tiny_processor):
    text = untrained_tiny_config().text_config.to_dict()
    config = untrained_tiny_config(text_config={**text, "sliding_window": 16})
    windowed = XSamForSegmentation._from_config(config).eval()
    first, second = (
        tiny_processor([picture(100, 140, seed)], conditions=[["dog", "cat"]], question="{}" + "?" * 80)
        for seed in (0, 1)
    )
    # Two layers reach 2 * 15 tokens back: not to the image.
    same = [predict(windowed, inputs).seg_embeddings for inputs in (first, second)]
    assert torch.equal(*same)
    config.text_config.sliding_window = None
    different = [predict(windowed, inputs).seg_embeddings for inputs in (first, second)]
    assert not torch.equal(*different)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_is_out_of_sight_of_a_sliding_window(attention, picture, tiny_processor):
    text = untrained_tiny_config().text_config.to_dict()
    config = untrained_tiny_config(text_config={**text, "sliding_window": 40, "num_key_value_heads": 2})
    torch.manual_seed(0)
    model = XSamForSegmentation._from_config(config, attn_implementation=attention).eval()
    images, conditions = [picture(90, 140), picture(140, 90)], [["dog"], ["traffic light", "a", "chest of drawers"]]
    batched = predict(model, tiny_processor(images, conditions=conditions))
    singles = [tiny_processor([image], conditions=[names]) for image, names in zip(images, conditions, strict=True)]
    assert_same_as_single(model, batched, singles)


def test_eager_and_fused_mask_encoders_agree_on_a_grid_that_windows_do_not_divide(picture, tiny_processor):
    mask = {**untrained_tiny_config().mask_encoder_config.to_dict(), "window_size": 5}
    config = untrained_tiny_config(mask_encoder_config=mask)
    eager, fused = (
        XSamForSegmentation._from_config(config, attn_implementation=attention).eval()
        for attention in ("eager", "sdpa")
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator) if "rel_pos" in name else value
        for name, value in fused.state_dict().items()
    }
    pixels = tiny_processor([picture(90, 140)], conditions=[["dog"]])["segmentor_pixel_values"]
    maps = []
    for model in (eager, fused):
        model.load_state_dict(weights)
        with torch.no_grad():
            maps.append(model.segmentor.encode(pixels, {1, 2, 4}))
    for layer, expected in maps[1].items():
        torch.testing.assert_close(maps[0][layer], expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_masks_of_every_golden_case_stay_near_float32(golden):
    exact, half = (
        XSamForSegmentation.from_pretrained(golden.pretrained, dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    )
    cases = [name for name, case in golden.meta.items() if isinstance(case, dict) and "text" in case]
    assert cases
    for name in cases:
        inputs = golden.inputs(name)
        if golden.meta[name]["mode"] == "predict":
            answer = golden.task(name)["generate.sequences"][0].numpy()
            ids = np.concatenate([inputs["input_ids"][0].numpy(), answer])
            conditions, segs = golden.processor.token_groups(ids)
            values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "cond_ids": conditions, "seg_ids": segs}
            inputs.update({key: torch.from_numpy(value)[None] for key, value in values.items()})
        geometry = golden.processor.geometry(inputs["scaled_sizes"][0], inputs["original_sizes"][0])
        expected, found = (predict(model, inputs) for model in (exact, half))
        ours, theirs = (geometry.enlarge(output.mask_logits[0]) > 0 for output in (found, expected))
        union, both = (ours | theirs).sum((1, 2)), (ours & theirs).sum((1, 2))
        assert torch.isfinite(found.class_logits).all()
        assert both.sum() > 0.9 * union.sum(), name
        assert (both >= 0.9 * union).float().mean() > 0.9, (name, both / union)


def test_images_of_one_pixel_or_one_row_have_masks(tiny_model, tiny_processor):
    sizes = [(1, 1), (1, 300), (300, 1), (4000, 30)]
    inputs = tiny_processor(
        [np.full((*size, 3), 77, dtype=np.uint8) for size in sizes],
        task="vgdseg",
        visual_prompts=[[np.ones(size, dtype=bool)] for size in sizes],
    )
    outputs = predict(tiny_model, inputs)
    found = tiny_processor.post_process_instance_segmentation(outputs, inputs["scaled_sizes"], sizes, 0.0)
    assert [tuple(instances.masks.shape[1:]) for instances in found] == sizes
    assert all(torch.isfinite(instances.scores).all() for instances in found)


@pytest.mark.parametrize(
    ("vision", "mask", "segmentor", "text"),
    [
        pytest.param({}, {"image_size": 208}, {}, {}, id="odd-mask-encoder-grid"),
        pytest.param({"patch_size": 16}, {"window_size": 5}, {"feature_strides": [4, 8, 16, 32]}, {}, id="patches"),
        pytest.param({}, {"num_hidden_layers": 5}, {"select_layers": [2, 3, 5]}, {}, id="three-levels-only"),
        pytest.param({}, {}, {"common_stride": 8}, {"num_key_value_heads": 2}, id="no-fpn-level-grouped-heads"),
        pytest.param({}, {}, {"connector_scale_factors": [2, 2, 1]}, {}, id="other-scales"),
    ],
)
def test_other_sizes_run(vision, mask, segmentor, text, picture, tiny_processor):
    base = untrained_tiny_config()
    parts = {"vision_config": vision, "mask_encoder_config": mask, "segmentor_config": segmentor, "text_config": text}
    config = untrained_tiny_config(
        **{name: {**getattr(base, name).to_dict(), **changed} for name, changed in parts.items()}
    )
    torch.manual_seed(0)
    model = XSamForSegmentation(config).eval()
    processor = type(tiny_processor)(
        type(tiny_processor.image_processor)(112, segmentor_size=config.mask_encoder_config.image_size),
        tiny_processor.tokenizer,
    )
    masks = [[square((140, 100), 30, 10, 60)]]
    output = predict(model, processor([picture(140, 100)], task="vgdseg", visual_prompts=masks))
    assert torch.isfinite(output.class_logits).all()
    assert output.mask_logits.shape[1] == config.segmentor_config.num_queries
    tokens = output.image_features.vision_tokens.shape[1] + output.image_features.segmentor_tokens.shape[1]
    assert tokens == config.num_image_tokens


def test_another_language_model_needs_only_its_configuration(picture, tiny_processor):
    text = untrained_tiny_config().text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(text, name) for name in names}
    config = untrained_tiny_config(text_config={"model_type": "qwen2", "num_key_value_heads": 2, **sizes})
    model = XSamForSegmentation(config).eval()
    assert type(model.llm).__name__ == "Qwen2ForCausalLM"
    output = predict(model, tiny_processor([picture(80, 60)], conditions=[["dog"]]))
    assert torch.isfinite(output.class_logits).all()


def test_random_weights_depend_on_the_seed_alone_and_see_the_image(tmp_path, tiny_folder, tiny_processor, picture):
    again = save_untrained(tmp_path / "again")
    other = save_untrained(tmp_path / "other", seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_folder, again, other)]
    assert weights[0] == weights[1] != weights[2]
    model = XSamForSegmentation.from_pretrained(again).eval()
    seen = [predict(model, tiny_processor([picture(90, 90, seed)], conditions=[["a"]])) for seed in (0, 1)]
    assert not torch.allclose(seen[0].mask_logits, seen[1].mask_logits)


@pytest.mark.slow
def test_untrained_model_gives_the_same_masks_in_another_process(tiny_folder, tiny_model, tiny_processor):
    program = (
        "import sys, torch, numpy as np; torch.set_num_threads(int(sys.argv[2]))\n"
        "from xsam_model import XSamForSegmentation, XSamProcessor\n"
        "model = XSamForSegmentation.from_pretrained(sys.argv[1]).eval()\n"
        "processor = XSamProcessor.from_pretrained(sys.argv[1])\n"
        "image = np.arange(90 * 120 * 3, dtype=np.uint32).reshape(90, 120, 3).astype(np.uint8)\n"
        "inputs = processor([image], conditions=[['dog', 'cat']])\n"
        "with torch.no_grad(): output = model(**inputs.for_model())\n"
        "print(output.class_logits.double().sum().item().hex(), output.mask_logits.double().sum().item().hex())\n"
    )
    # Another number of threads adds up in another order.
    command = [sys.executable, "-c", program, str(tiny_folder), str(torch.get_num_threads())]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    image = np.arange(90 * 120 * 3, dtype=np.uint32).reshape(90, 120, 3).astype(np.uint8)
    output = predict(tiny_model, tiny_processor([image], conditions=[["dog", "cat"]]))
    here = [logits.double().sum().item().hex() for logits in (output.class_logits, output.mask_logits)]
    assert there == here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"pixel_values": None}, "image_features, or both", id="no-pixels"),
        pytest.param({"region_points": [torch.zeros(1, 2)]}, "has 0 regions, but 1 visual", id="spare-region"),
        pytest.param({"seg_ids": "none"}, r"conversations \[0\] have no <SEG>", id="no-seg"),
        pytest.param({"input_ids": "no-image"}, "exactly one image", id="no-image"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message, tiny_model, tiny_processor, picture):
    arguments = tiny_processor([picture(60, 60)], conditions=[["dog"]]).for_model()
    spoiled = {"none": lambda ids: torch.full_like(ids, -1), "no-image": lambda ids: ids.clamp(min=0)}
    for key, value in change.items():
        arguments[key] = spoiled[value](arguments[key]) if isinstance(value, str) else value
    with pytest.raises(ValueError, match=message):
        tiny_model(**arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentor_config": {"num_feature_levels": 2}}, "num_feature_levels must be 3 or 4"),
        ({"segmentor_config": {"select_layers": [1, 2]}}, "select_layers needs at least 3"),
        ({"image_token_index": 5}, "image_token_index must be negative"),
    ],
)
def test_configuration_refuses_what_the_network_cannot_do(fields, message):
    with pytest.raises(ValueError, match=message):
        XSamConfig(**fields)
