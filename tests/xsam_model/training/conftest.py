import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from xsam_model import XSamForSegmentation
from xsam_model.training.samples.batches import BatchBuilder
from xsam_model.training.tiny import build_processor, train_tokenizer, xsam_tiny_config

torch.set_num_threads(1)
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from rectangles import NAMES, Rectangles  # noqa: E402

VISION = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
MASK_ENCODER = {"hidden_size": 64, "mlp_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64}
MASK_ENCODER |= {
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "output_channels": 16,
    "num_pos_feats": 8,
}
SEGMENTOR = {"select_layers": [1, 2, 3], "connector_scale_factors": [2, 1, 0.5], "connector_hidden_dim": 32}
SEGMENTOR |= {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64, "encoder_feedforward_dim": 64}
SEGMENTOR |= {
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "dim_feedforward": 64,
    "num_queries": 8,
}


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(NAMES, vocab_size=600)


@pytest.fixture(scope="session")
def config(tokenizer):
    small = xsam_tiny_config(
        tokenizer,
        vision_config=VISION,
        mask_encoder_config=MASK_ENCODER,
        segmentor_config=SEGMENTOR,
        mask_encoder_select_layer=-2,
    )
    small.text_config.hidden_size, small.text_config.intermediate_size = 64, 128
    return small


@pytest.fixture(scope="session")
def processor(config, tokenizer):
    return build_processor(config, tokenizer)


@pytest.fixture
def model(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return XSamForSegmentation(config)


@pytest.fixture(scope="session")
def start_folder(config, processor, tmp_path_factory):
    """A folder to start small runs from."""
    folder = tmp_path_factory.mktemp("start") / "model"
    torch.manual_seed(0)
    XSamForSegmentation(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def build(processor):
    """Make a batch of rectangles: build(task, count, **options of BatchBuilder)."""

    def make(task, count=2, seed=0, source=None, **options):
        source = source or Rectangles(task)
        randoms = [np.random.default_rng([seed, place]) for place in range(count)]
        samples = [source.draw(place, random) for place, random in enumerate(randoms)]
        return BatchBuilder(processor=processor, classes=NAMES, **options).build(samples, randoms)

    return make
