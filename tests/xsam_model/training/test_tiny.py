import numpy as np
import pytest
import torch
from rectangles import NAMES, Rectangles

from xsam_model import XSamForSegmentation, XSamProcessor
from xsam_model.training.loop.start import start_model
from xsam_model.training.tiny import train_tokenizer, xsam_tiny_config


def test_known_words_are_single_tokens_and_nothing_is_unknown(tokenizer):
    words = train_tokenizer(["xylophone", "traffic light"])
    assert words.tokenize("xylophone, a xylophone") == ["xylophone", ",", "Ġa", "Ġxylophone"]
    for text in ("qzjxv", "naïve café, 東京 🦓", "<p>traffic light</p> <SEG>"):
        ids = words.encode(text, add_special_tokens=False)
        assert words.unk_token_id not in ids
        assert words.decode(ids) == text


def test_the_same_phrases_give_the_same_tokenizer():
    one, other = train_tokenizer(NAMES), train_tokenizer(reversed(NAMES))
    assert one.get_vocab() == other.get_vocab()
    assert one.tokenize("a blue box") == other.tokenize("a blue box")


@pytest.mark.parametrize(
    ("size", "most", "image_tokens", "text_tokens"),
    [("tiny", 4e6, 36 + 64, 800), ("tiny-256", 12.4e6, 100 + 256, 2000)],
)
def test_sizes(size, most, image_tokens, text_tokens):
    config = xsam_tiny_config(size=size)
    with torch.device("meta"):
        model = XSamForSegmentation(config)
    # With the largest vocabulary, "tiny-256" still fits 25 MB as float16.
    words = 2 * (2048 + 16 - config.text_config.vocab_size) * config.text_config.hidden_size
    assert most / 2 < sum(parameter.numel() for parameter in model.parameters()) + words < most
    assert config.num_image_tokens == image_tokens
    assert config.max_text_length > text_tokens


def test_a_start_model_is_whole_and_reproducible(tmp_path):
    for name in ("one", "two"):
        start_model(tmp_path / name, [Rectangles("ovseg"), Rectangles("chat")], seed=3)
    assert not list(tmp_path.glob("writing*"))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    model = XSamForSegmentation.from_pretrained(tmp_path / "one").eval()
    processor = XSamProcessor.from_pretrained(tmp_path / "one")
    inputs = processor(images=[np.zeros((40, 60, 3), dtype=np.uint8)], task="ovseg", conditions=[list(NAMES)])
    with torch.no_grad():
        assert model(**inputs.for_model()).mask_logits.isfinite().all()
