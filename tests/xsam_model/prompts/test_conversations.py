"""Conversations are turned into the same tokens without transformers as with its processor."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaTokenizer

import xsam_model
from xsam_model.processing_xsam import XSamImageProcessor, XSamProcessor, add_tokens
from xsam_model.prompts.conversations import ConversationEncoder, TooManyConditionsError

PACKAGED = Path(xsam_model.__file__).parent / "weights/xsam-tiny"
ASKED = [
    ("ovseg", ["dog", "Fire-Hydrant-other", " window ", "crème brûlée", "車 🚗", "a  b\tc"], {}),
    ("genseg", ["sky"], {}),
    ("refseg", ["the man who holds a dog, left of it"], {}),
    ("reaseg", ["What would one sit on?"], {}),
    ("reaseg", ["What would one sit on?"], {"explain": True, "generate": True}),
    ("gcgseg", [], {"generate": True}),
    ("chat", ["What is\nthis?"], {"generate": True}),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of Llama's kind, as Phi-3 has: spaces become part of words."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {
        token: place for place, token in enumerate(["<unk>", "<s>", "</s>", "▁", *letters, "▁d", "▁do", "og"])
    }
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "d"), ("▁d", "o"), ("o", "g")])
    add_tokens(tokenizer)
    folder = tmp_path_factory.mktemp("llama")
    XSamProcessor(XSamImageProcessor(vision_size=112, segmentor_size=256), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["packaged", "untrained", "llama"])
@pytest.mark.parametrize(("task", "conditions", "options"), ASKED)
def test_the_tokens_are_those_of_the_processor(kind, task, conditions, options, tiny_folder, llama):
    folder = {"packaged": PACKAGED, "untrained": tiny_folder, "llama": llama}[kind]
    processor = XSamProcessor.from_pretrained(folder)
    for text in ("clean", "reference"):
        here = ConversationEncoder.from_folder(folder)
        here.category_text = processor.category_text = text
        there = processor(task=task, conditions=[conditions], **options)
        assert here.token_ids(conditions, task=task, **options) == there["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("conditions", "error"), [(["a <SEG> b"], ValueError), ([f"thing {n}" for n in range(400)], TooManyConditionsError)]
)
def test_it_refuses_what_the_processor_refuses_in_the_same_words(conditions, error):
    processor, told = XSamProcessor.from_pretrained(PACKAGED), []
    for encode in (
        lambda: ConversationEncoder.from_folder(PACKAGED).token_ids(conditions, task="ovseg"),
        lambda: processor(task="ovseg", conditions=[conditions]),
    ):
        with pytest.raises(error) as raised:
            encode()
        told.append((str(raised.value).removeprefix("image 0: "), getattr(raised.value, "num_fitting", None)))
    assert told[0] == told[1]


def test_a_tokenizer_that_is_rebuilt_when_it_is_read_is_left_to_transformers(tmp_path):
    folder = Path(shutil.copytree(PACKAGED, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    del described["backend"]
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="not read as it stands"):
        ConversationEncoder.from_folder(folder)
