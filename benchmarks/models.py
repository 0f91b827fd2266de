"""Untrained models of two sizes to label with, and the prompts that are asked."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import torch

from actors.predictor.config import PredictorConfig
from actors.predictor.predictor import XSamPredictor
from flows.prompts import named_prompts
from pipelines.types import Prompt
from xsam_model.configuration_xsam import XSamConfig
from xsam_model.testing import save_untrained, untrained_tiny_config

CATEGORIES = ("person", "cat", "cup", "building", "flower", "sky")


def prompts() -> tuple[Prompt, ...]:
    """Return one open-vocabulary prompt for each category."""
    return tuple(named_prompts("ovseg", CATEGORIES))


def mid_config() -> XSamConfig:
    """Return sizes between the tiny model and the full one: about 40 million parameters on the tiny one's canvas."""
    tiny = untrained_tiny_config()
    text = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 3}
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    mask = {"hidden_size": 320, "mlp_dim": 1280, "num_hidden_layers": 10, "num_attention_heads": 5}
    mask["global_attn_indexes"] = [2, 5, 9]  # type: ignore[assignment]
    segmentor = {
        "select_layers": [3, 5, 8, 10],
        "connector_hidden_dim": 128,
        "feature_size": 128,
        "mask_feature_size": 128,
        "hidden_dim": 128,
        "encoder_feedforward_dim": 512,
        "encoder_layers": 3,
        "decoder_layers": 6,
        "dim_feedforward": 512,
    }
    return untrained_tiny_config(
        vision_config={**tiny.vision_config.to_dict(), **vision},
        mask_encoder_config={**tiny.mask_encoder_config.to_dict(), **mask},
        text_config={**tiny.text_config.to_dict(), **text},
        segmentor_config={**tiny.segmentor_config.to_dict(), **segmentor},
    )


def load_predictor(folder: Path, config: XSamConfig | None = None) -> XSamPredictor:
    """Write an untrained model and load it on the CPU; the tiny one by default."""
    with contextlib.redirect_stderr(io.StringIO()):
        save_untrained(folder, config=config)
        return XSamPredictor(PredictorConfig(path=str(folder), device="cpu"))


def num_parameters(predictor: XSamPredictor) -> int:
    """Count the model's parameters."""
    return sum(parameter.numel() for parameter in predictor.segmenter.model.parameters())


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one core, as a replica of one CPU does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
