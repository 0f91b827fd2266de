"""Conversations that share what the language model has read of their image: the same answers for less work."""

import contextlib

import numpy as np
import pytest
import torch

from xsam_model import Query, XSamSegmenter
from xsam_model.layers.image_prefix import PackedTexts

SIZES = [(64, 48), (40, 60)]
LONG = " ".join(["the man in red who stands behind the car on the very left of it"] * 4)
BOX = np.zeros(SIZES[0], dtype=bool)
BOX[10:30, 5:25] = True
# What two images are asked: by task, (image, conditions, visual prompts).
QUERIES = {
    "refseg": [(0, ["the left one"], []), (1, [LONG], []), (0, ["the dog"], [])],
    "ovseg": [(0, ["dog", "traffic light"], []), (1, ["cat"], []), (0, ["sky", LONG, "tree"], [])],
    "vgdseg": [(0, [], [BOX, ~BOX]), (0, [], [BOX])],
    "reaseg": [(1, ["What could fall?"], []), (1, ["What is round?"], [])],
}


@pytest.fixture
def segmenter(tiny_folder):
    return XSamSegmenter.from_pretrained(tiny_folder)


@pytest.fixture
def pictures(picture):
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


@contextlib.contextmanager
def counted(segmenter):
    """Count the tokens that the language model reads, padding included."""
    read = []

    def note(_module, _args, options):
        rows, length = options["inputs_embeds"].shape[:2]
        read.append(rows * length)

    hook = segmenter.model.llm.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def queries(task):
    return [Query(image=image, conditions=words, visual_prompts=masks) for image, words, masks in QUERIES[task]]


def apart(segmenter, pictures, task):
    """Ask each question alone."""
    encoded = segmenter.encode(pictures)
    return [segmenter.ask(encoded, task, [query]).outputs for query in queries(task)]


def assert_same(together, alone):
    for row, output in enumerate(alone):
        classes = output.class_logits.shape[2] - 1
        close = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(
            together.class_logits[row, :, :classes], output.class_logits[0, :, :classes], **close
        )
        torch.testing.assert_close(together.mask_logits[row], output.mask_logits[0], **close)
        torch.testing.assert_close(together.seg_embeddings[row], output.seg_embeddings[0], **close)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("task", QUERIES)
def test_questions_that_share_an_image_are_answered_as_alone(task, attention, segmenter, pictures):
    segmenter.model.llm.set_attn_implementation(attention)
    assert segmenter.model.llm.config._attn_implementation == attention
    encoded = segmenter.encode(pictures)
    together = segmenter.ask(encoded, task, queries(task)).outputs
    assert list(encoded.prefixes.values()) != [None]
    assert_same(together, apart(segmenter, pictures, task))


def test_an_image_is_read_once_however_often_it_is_asked(segmenter, pictures):
    with counted(segmenter) as alone:
        apart(segmenter, pictures, "refseg")
    encoded = segmenter.encode(pictures, is_reused=True)
    with counted(segmenter) as together:
        for task in QUERIES:
            segmenter.ask(encoded, task, queries(task))
    assert len(encoded.prefixes) == 1
    (prefix,) = encoded.prefixes.values()
    assert together[0] == len(pictures) * prefix.num_tokens
    assert len(together) == 1 + len(QUERIES)
    longest = max(alone) - prefix.num_tokens
    assert together[1] == 3 * longest


def test_an_image_that_is_asked_once_is_not_read_apart(segmenter, pictures):
    encoded = segmenter.encode(pictures)
    with counted(segmenter) as read:
        segmenter.ask(encoded, "refseg", queries("refseg")[:2])
    assert (len(read), encoded.prefixes) == (1, {})


def test_phrases_of_an_image_share_it_whatever_the_batch(segmenter, pictures):
    asked = {"task": "refseg", "conditions": [["the left one", "the dog", LONG], ["the cat"]]}
    with counted(segmenter) as read:
        one_by_one = segmenter.segment(pictures, **asked, batch_size=1)
    assert len(read) == 1 + 4
    for result, other in zip(one_by_one, segmenter.segment(pictures, **asked), strict=True):
        torch.testing.assert_close(result.segmentation.scores, other.segmentation.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beyond", [0, 20, 60])
def test_a_sliding_window_that_ends_inside_the_image_is_exact_too(beyond, segmenter, pictures):
    """The window is narrower than a conversation, so that the question's end does not see the image's beginning."""
    encoded = segmenter.encode(pictures)
    segmenter.ask(encoded, "refseg", queries("refseg"))
    (prefix,) = encoded.prefixes.values()
    wide = [output.class_logits for output in apart(segmenter, pictures, "refseg")]
    segmenter.model.config.text_config.sliding_window = prefix.num_tokens + 1 + beyond
    assert segmenter.model.llm.config.sliding_window == prefix.num_tokens + 1 + beyond
    encoded = segmenter.encode(pictures)
    together = segmenter.ask(encoded, "refseg", queries("refseg")).outputs
    assert list(encoded.prefixes.values()) != [None]
    alone = apart(segmenter, pictures, "refseg")
    assert_same(together, alone)
    assert not torch.allclose(alone[1].class_logits, wide[1], atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"sliding_window": 40}, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0}}]
)
def test_a_model_that_cannot_share_reads_each_conversation_whole(change, segmenter, pictures):
    alone = apart(segmenter, pictures, "refseg")
    for name, value in change.items():
        setattr(segmenter.model.config.text_config, name, value)
    encoded = segmenter.encode(pictures)
    together = segmenter.ask(encoded, "refseg", queries("refseg")).outputs
    assert list(encoded.prefixes.values()) == [None]
    if "rope_parameters" in change:
        assert_same(together, alone)


def pack(lengths, images, **options):
    texts = [torch.full((length, 1), float(number)) for number, length in enumerate(lengths, start=1)]
    packed = PackedTexts.of(texts, images, **{"num_before": 3, "window": None, "row_length": 5} | options)
    for text, again in zip(texts, packed.unpack(packed.embeds), strict=True):
        torch.testing.assert_close(text, again)
    return packed


def test_texts_of_an_image_stand_in_rows_that_are_no_longer_than_they_may_be():
    packed = pack([2, 4, 3, 1, 7, 2], [0, 1, 0, 1, 0, 0])
    assert packed.embeds[..., 0].tolist() == [
        [1, 1, 3, 3, 3, 0, 0],
        [2, 2, 2, 2, 4, 0, 0],
        [5, 5, 5, 5, 5, 5, 5],
        [6, 6, 0, 0, 0, 0, 0],
    ]
    assert packed.images.tolist() == [0, 1, 0, 0]
    assert packed.position_ids[0, :5].tolist() == [3, 4, 3, 4, 5]
    assert len(pack([1, 1, 1], [0, 0, 0], row_length=0).embeds) == 3


def test_a_packed_text_sees_its_image_and_itself_alone():
    seen = pack([2, 3], [0, 0]).attention_mask[0, 0].int().tolist()
    assert [row[:3] for row in seen] == [[1, 1, 1]] * 5
    assert [row[3:] for row in seen] == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_a_packed_text_sees_as_far_back_as_the_window_reaches():
    seen = pack([1, 3], [0, 0], window=3).attention_mask[0, 0].int().tolist()
    assert seen == [[0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


def test_a_prefix_of_other_text_is_refused(segmenter, pictures):
    encoded = segmenter.encode(pictures)
    inputs = segmenter.processor(task="refseg", conditions=[["the dog"], ["the cat"]])
    prefix = segmenter.model.read_images(encoded.features, torch.tensor([1, 5, 6]))
    with pytest.raises(ValueError, match="conversation 0 begins with other text"):
        segmenter.model(**inputs.for_model(), image_features=encoded.features, image_prefix=prefix)
