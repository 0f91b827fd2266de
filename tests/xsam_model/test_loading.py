"""Options of `from_pretrained` reach every part of the model: type, device, attention."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModel

from xsam_model import XSamForSegmentation

PARTS = ("vision_config", "mask_encoder_config", "text_config")
# The decoder attends where mask logits are positive: one near 0 may fall on the other side, on each processor another.
HALF = {torch.bfloat16: 0.05, torch.float16: 0.03}


@pytest.fixture(scope="module")
def tiny_inputs(tiny_processor):
    pixels = torch.arange(90 * 120 * 3).reshape(90, 120, 3).byte().numpy()
    return tiny_processor([pixels], conditions=[["dog", "cat"]])


@pytest.fixture(scope="module")
def expected(tiny_model, tiny_inputs):
    with torch.no_grad():
        return tiny_model(**tiny_inputs.for_model())


@torch.no_grad()
def error(model, inputs, expected):
    """Greatest difference of the probabilities of classes."""
    logits = model.eval()(**inputs.to(model.device).for_model()).class_logits
    return float((logits.softmax(-1).cpu() - expected.class_logits.softmax(-1)).abs().max())


def attention(model):
    return [getattr(model.config, part)._attn_implementation for part in PARTS]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_everywhere_but_in_the_pixel_decoder(dtype, tiny_folder, tiny_inputs, expected):
    model = AutoModel.from_pretrained(tiny_folder, dtype=dtype)
    types = {name: value.dtype for name, value in model.named_parameters()}
    full = {name for name in types if name.startswith("segmentor.pixel_decoder.")}
    assert {name for name, found in types.items() if found == torch.float32} == full
    assert {types[name] for name in types.keys() - full} == {dtype}
    assert error(model, tiny_inputs, expected) < HALF[dtype]


@pytest.mark.parametrize(
    "device_map", ["cpu", {"": "cpu"}, {"": torch.device("cpu")}, {"llm": "cpu", "": "cpu"}], ids=str
)
def test_the_model_is_loaded_onto_a_device(device_map, tiny_folder, tiny_inputs, expected):
    model = AutoModel.from_pretrained(tiny_folder, device_map=device_map)
    assert {value.device.type for value in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert error(model, tiny_inputs, expected) == 0


@pytest.mark.parametrize("device_map", ["auto", "balanced"])
def test_auto_is_the_accelerator_if_there_is_one(device_map, tiny_folder, tiny_inputs, expected):
    accelerator = torch.accelerator.current_accelerator()
    model = AutoModel.from_pretrained(tiny_folder, device_map=device_map, dtype="float32")
    kinds = {value.device.type for value in [*model.parameters(), *model.buffers()]}
    assert kinds == {accelerator.type if accelerator else "cpu"}
    assert error(model, tiny_inputs, expected) < 1e-3


def test_a_map_that_splits_the_model_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="not split over devices"):
        AutoModel.from_pretrained(tiny_folder, device_map={"": 0, "llm": "cpu"})


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_chosen_for_all_parts(implementation, tiny_folder, tiny_inputs, expected):
    model = AutoModel.from_pretrained(tiny_folder, attn_implementation=implementation)
    assert attention(model) == [implementation] * 3
    assert ("Sdpa" in type(model.segmentor.encoder.layers[0].attn).__name__) == (implementation == "sdpa")
    assert error(model, tiny_inputs, expected) < 1e-5


def test_attention_is_chosen_for_each_part(tiny_folder, tiny_inputs, expected):
    chosen = {"vision_config": "eager", "mask_encoder_config": "sdpa", "text_config": "eager"}
    model = AutoModel.from_pretrained(tiny_folder, attn_implementation=chosen)
    assert attention(model) == list(chosen.values())
    assert model.llm.config._attn_implementation == model.visual_encoder.config._attn_implementation == "eager"
    assert error(model, tiny_inputs, expected) < 1e-5


def test_the_mask_encoder_stays_with_sdpa_where_its_relative_positions_cannot_go(tiny_folder):
    model = AutoModel.from_pretrained(tiny_folder, attn_implementation="flex_attention")
    assert attention(model) == ["flex_attention", "sdpa", "flex_attention"]
    assert "Sdpa" in type(model.segmentor.encoder.layers[0].attn).__name__


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
@pytest.mark.parametrize("chosen", ["flash_attention_2", {"text_config": "flash_attention_2"}], ids=str)
def test_flash_attention_is_refused_where_it_is_not_installed(chosen, tiny_folder):
    with pytest.raises(ImportError, match=r"FlashAttention2 .* the package .* installed"):
        XSamForSegmentation.from_pretrained(tiny_folder, attn_implementation=chosen, dtype=torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("others", ["", "SamModel, "])  # which X-SAM is made of, and import the Auto classes
def test_auto_classes_know_x_sam_whichever_package_is_imported_first(others, tiny_folder):
    program = (
        "import sys, xsam_model\n"
        "assert 'torch' not in sys.modules\n"
        f"from transformers import {others}AutoConfig, AutoModel\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "print(type(config).__name__, AutoModel._model_mapping[type(config)].__name__)\n"
    )
    command = [sys.executable, "-c", program, str(tiny_folder)]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert there == ["XSamConfig", "XSamForSegmentation"]
