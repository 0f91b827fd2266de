"""Models under test: the reference implementation's tiny models, and our own untrained one.

`XSAM_GOLDEN` may name other folders of recorded reference values, separated by colons; nothing here assumes a size.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import SamConfig

from xsam_model import XSamConfig, XSamForSegmentation, XSamProcessor
from xsam_model.convert_xsam_to_hf import main as convert
from xsam_model.testing import save_untrained

GOLDEN_ROOT = Path(__file__).parents[1] / "golden"
# One where another process runs other tests beside these.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def golden_folders():
    named = os.environ.get("XSAM_GOLDEN")
    if named:
        return [Path(part) for part in named.split(":") if part]
    return sorted(path.parent for path in GOLDEN_ROOT.glob("*/config.json"))


def golden_segmentor(sizes):
    """Sizes of the segmentor, by our names."""
    return {
        **{name: value for name, value in sizes["m2f"].items() if name != "feature_channels"},
        "select_layers": sizes["seg_select_layers"],
        "connector_scale_factors": sizes["connector_scale_factor"],
        "connector_hidden_dim": sizes["connector_hidden_dim"],
    }


def golden_model_config(sizes):
    """Sizes as the reference implementation's recordings write them -> XSamConfig."""
    derived = sizes["derived"]
    text = {**derived.get("llm_config", {}), **sizes["llm"], "vocab_size": derived["vocab_after"]}
    text.setdefault("model_type", "phi3")
    if "sliding_window" in sizes:
        text["sliding_window"] = sizes["sliding_window"]
    return XSamConfig(
        vision_config={"model_type": "siglip_vision_model", **sizes["siglip"]},
        mask_encoder_config=sizes["sam"],
        text_config=text,
        segmentor_config=golden_segmentor(sizes),
        image_token_index=derived["image_token_index"],
        region_token_index=derived["region_token_index"],
        seg_token_id=derived["seg_id"],
        phrase_start_token_id=derived["pstart_id"],
        phrase_end_token_id=derived["pend_id"],
    )


@dataclass(frozen=True)
class Golden:
    """One recorded model: its values, and the same model as a `from_pretrained` folder."""

    folder: Path
    pretrained: Path

    @cached_property
    def sizes(self):
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def meta(self):
        return json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def tensors(self):
        return load_file(self.folder / "tensors.safetensors")

    @cached_property
    def image(self):
        return np.array(Image.open(self.folder / "image.png").convert("RGB"))

    @cached_property
    def processor(self):
        return XSamProcessor.from_pretrained(self.pretrained)

    def task(self, name):
        """The recorded values of one case without its prefix."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def inputs(self, name):
        """Model inputs of a recorded case from its text and image; regions get the points that were drawn."""
        recorded, case = self.task(name), self.meta[name]
        count = case["text"].count("<region>")
        dummy = [[np.ones(self.image.shape[:2], dtype=bool)] * count] if count else None
        inputs = self.processor([self.image], task=case["task"], text=case["text"], visual_prompts=dummy)
        if count:
            inputs["vprompt_masks"] = None
            inputs["region_points"] = [
                recorded[f"vision_sampler.points_rowcol01.{row}"] for row in self.region_order(recorded)
            ]
        return inputs

    @staticmethod
    def region_order(recorded):
        """Row of the recorded sampler that feeds each region of the prompt."""
        sampled, used = recorded["vision_sampler.region_feats.0"], recorded["mm.vprompt_feats_in_prompt_order.0"]
        return [int((sampled - row).abs().amax(1).argmin()) for row in used]


def _tokenizer_folder(folder):
    places = [folder, folder / "tokenizer", folder.parent / "tokenizer", GOLDEN_ROOT / "tokenizer"]
    return next(place for place in places if (place / "tokenizer.json").exists())


def write_base_folders(folder, target):
    """Write what a recording's base models were: the converter's arguments that name their folders."""
    sizes = json.loads((folder / "config.json").read_text())
    config = golden_model_config(sizes)
    text, vision, mask = (target / name for name in ("text", "vision", "mask"))
    shutil.copytree(_tokenizer_folder(folder), text, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    config.text_config.save_pretrained(text)
    config.vision_config.save_pretrained(vision)
    SamConfig(vision_config=config.mask_encoder_config.to_dict()).save_pretrained(mask)
    indices = {name: getattr(config, name) for name in ("image_token_index", "region_token_index")}
    overrides = target / "xsam.json"
    overrides.write_text(json.dumps({"segmentor_config": golden_segmentor(sizes), **indices}))
    named = {"text-model": text, "vision-model": vision, "mask-encoder": mask, "config": overrides}
    return [word for name, path in named.items() for word in (f"--{name}", str(path))]


def convert_golden(folder, target, bases):
    """Write recorded sizes and reference weights as a `from_pretrained` folder."""
    arguments = write_base_folders(folder, bases)
    assert convert(["--checkpoint", str(folder / "weights.safetensors"), *arguments, "--output", str(target)]) == 0


@pytest.fixture(scope="session")
def golden_bases(tmp_path_factory):
    """Folders text, vision and mask, and overrides in xsam.json, of the committed recording."""
    target = tmp_path_factory.mktemp("bases")
    write_base_folders(GOLDEN_ROOT / "A", target)
    return target


@pytest.fixture(scope="session", params=golden_folders(), ids=lambda folder: folder.name)
def golden(request, tmp_path_factory):
    target = tmp_path_factory.mktemp(request.param.name) / "converted"
    convert_golden(request.param, target, target.parent)
    return Golden(request.param, target)


@pytest.fixture(scope="session", params=["eager", "sdpa"])
def golden_model(request, golden):
    return XSamForSegmentation.from_pretrained(golden.pretrained, attn_implementation=request.param).eval()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    return XSamForSegmentation.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def tiny_processor(tiny_folder):
    return XSamProcessor.from_pretrained(tiny_folder)


@pytest.fixture
def picture():
    """Deterministic picture of colored rectangles: picture(height, width) -> uint8 (height, width, 3)."""

    def draw(height, width, seed=0):
        rng = np.random.default_rng(seed)
        pixels = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(5):
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            pixels[top : top + height // 3, left : left + width // 3] = rng.integers(0, 256, 3)
        return pixels

    return draw
