"""Answers that the model finds itself: what it says, and the masks of what it says."""

import numpy as np
import pytest
import torch

from tests.xsam_model.forced_answers import force
from xsam_model import XSamForSegmentation, XSamProcessor
from xsam_model.modeling_xsam import number_phrases
from xsam_model.testing import build_tokenizer, untrained_tiny_config

FEATURES, LOGITS = 2e-5, 1e-4


def ids_of(processor, *answers):
    return [processor.tokenizer.encode(answer, add_special_tokens=False) for answer in answers]


def forced_tasks(golden):
    return [name for name, case in golden.meta.items() if isinstance(case, dict) and case.get("mode") == "predict"]


def near(actual, expected, tolerance, name=""):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}")


def test_golden_answers_that_are_generated_give_the_recorded_values(golden, golden_model):
    if golden_model.segmentor.encoder.config._attn_implementation != "eager":
        pytest.skip("recorded with eager attention; a mask logit near 0 may fall the other way")
    for name in forced_tasks(golden):
        recorded, inputs = golden.task(name), golden.inputs(name)
        answer = recorded["generate.sequences"][0]
        output = golden_model.generate(
            **inputs.for_model(), logits_processor=force(answer.tolist()), stop_token_ids=[int(answer[-1])]
        )
        assert torch.equal(output.sequences[0], answer)
        near(output.condition_embeddings, recorded["segmentor.in.cond_embeddings"], FEATURES, name)
        near(output.seg_embeddings[None], recorded["segmentor.in.seg_embeddings"], FEATURES, name)
        near(output.class_logits, recorded["class_logits"], LOGITS, name)
        last = golden_model.config.segmentor_config.decoder_layers - 1
        near(output.mask_logits, recorded[f"decoder.mask_logits_lowres.{last}"], LOGITS, name)


@pytest.fixture(scope="module", params=[None, 40], ids=["no window", "window of 40"])
def windowed(request, tiny_folder):
    """The untrained model with and without a sliding window shorter than the image's tokens."""
    config = untrained_tiny_config()
    config.text_config.sliding_window = request.param
    model = XSamForSegmentation.from_pretrained(tiny_folder, config=config).eval()
    return model, XSamProcessor.from_pretrained(tiny_folder)


TASKS = {
    "genseg": {"conditions": [["dog", "traffic light"], ["cat"]]},
    "ovseg": {"conditions": [["dog"], ["cat", "a very long name of a thing"]]},
    "refseg": {"conditions": [["the left one"], ["a man in a red coat"]]},
    "reaseg": {"conditions": [["What is round?"], ["What could fall?"]]},
    "vgdseg": {"visual_prompts": [[np.eye(64, 48, dtype=bool)], [np.eye(40, 60, dtype=bool)] * 2]},
    "intseg": {"visual_prompts": [[np.eye(64, 48, dtype=bool)], [np.eye(40, 60, dtype=bool)]]},
}


@pytest.mark.parametrize("task", TASKS)
def test_generated_answer_equals_the_same_answer_given(task, windowed, picture):
    model, processor = windowed
    images, answer = [picture(64, 48), picture(40, 60, seed=1)], "Sure, it is <SEG>."
    given = processor(images, task=task, answer=answer, **TASKS[task])
    asked = processor(images, task=task, generate=True, **TASKS[task])
    with torch.no_grad():
        expected = model(**given.for_model())
    forced = ids_of(processor, answer + "<|end|>")[0]
    output = model.generate(
        **asked.for_model(), stop_token_ids=processor.stop_token_ids, logits_processor=force(forced, forced)
    )
    assert [row.tolist() for row in output.sequences] == [forced, forced]
    assert output.conversation_indices.tolist() == [0, 1]
    near(output.class_logits, expected.class_logits, LOGITS)
    near(output.mask_logits, expected.mask_logits, 1e-3)  # untrained mask logits are about 1,000 times larger


def test_answers_of_different_lengths_in_a_batch_equal_one_by_one(windowed, picture):
    model, processor = windowed
    images = [picture(64, 48), picture(40, 60, seed=1), picture(50, 50, seed=2)]
    answers = ids_of(
        processor,
        "<p>A dog</p> sees <p>a cat</p>. <SEG><|end|>",
        "Nothing.<|end|>",
        "<p>A ball</p> and much more that is said here. <SEG><|end|>",
    )
    single = [
        model.generate(
            **processor([image], task="gcgseg", generate=True).for_model(),
            stop_token_ids=processor.stop_token_ids,
            logits_processor=force(answer),
        )
        for image, answer in zip(images, answers, strict=True)
    ]
    batch = model.generate(
        **processor(images, task="gcgseg", generate=True).for_model(),
        stop_token_ids=processor.stop_token_ids,
        logits_processor=force(*answers),
    )
    assert [ids.tolist() for ids in batch.sequences] == answers
    assert batch.conversation_indices.tolist() == [0, 2]
    assert [len(one.mask_logits) for one in single] == [1, 0, 1]
    assert (batch.condition_mask.sum(1) - 1).tolist() == [2, 1]
    for place, one in enumerate((single[0], single[2])):
        columns = one.class_logits.shape[2] - 1
        near(batch.class_logits[place, :, :columns], one.class_logits[0, :, :columns], LOGITS)
        near(batch.mask_logits[place], one.mask_logits[0], 1e-3)


def test_conversations_of_unequal_length_speak_as_they_do_alone(windowed, picture):
    model, processor = windowed
    images = [picture(64, 48), picture(40, 60, seed=1)]
    questions = [["Why?"], ["What is the name of the thing that stands to the left of the other thing?"]]

    def answers(images, questions):
        inputs = processor(images, task="chat", conditions=questions, generate=True)
        return model.generate(**inputs.for_model(), stop_token_ids=[], max_new_tokens=12).sequences

    together = answers(images, questions)
    alone = [answers([image], [question])[0] for image, question in zip(images, questions, strict=True)]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]


@pytest.mark.parametrize(
    ("answer", "num_conditions"),
    [
        ("No segmentation here.<|end|>", None),
        ("<SEG> and <SEG>.<|end|>", None),
        ("It is <SEG>.<|end|>", 1),  # no phrase of its own: the question's
        ("<p>one</p> and <p>two</p>: <SEG><|end|>", 2),
        ("<p>one</p> and <p>two: <SEG><|end|>", 1),  # not closed: no phrase
        ("</p><p>one: <SEG><|end|>", 1),  # none: the question's
        ("<SEG>", None),  # cut off before the language model has read it
    ],
)
def test_masks_follow_the_answer(answer, num_conditions, tiny_model, tiny_processor, picture):
    inputs = tiny_processor([picture(40, 60)], task="refseg", conditions=[["a dog"]], generate=True)
    (ids,) = ids_of(tiny_processor, answer)
    output = tiny_model.generate(
        **inputs.for_model(),
        stop_token_ids=tiny_processor.stop_token_ids,
        max_new_tokens=len(ids),
        logits_processor=force(ids),
    )
    found = [int(row.sum()) - 1 for row in output.condition_mask]
    assert found == ([] if num_conditions is None else [num_conditions])
    assert output.mask_logits.shape[0] == output.class_logits.shape[0] == len(found)
    assert output.mask_logits.shape[1:] == (32, 32, 32)


def test_length_of_an_answer_is_bounded(tiny_model, tiny_processor, picture):
    inputs = tiny_processor([picture(40, 60)], task="gcgseg", generate=True).for_model()
    ids = tiny_model.generate(**inputs, stop_token_ids=[], max_new_tokens=7).sequences[0]
    assert len(ids) == 7
    features = tiny_model.encode_images(inputs["pixel_values"], inputs["segmentor_pixel_values"])
    length = inputs["input_ids"].shape[1] - 1 + features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1]
    text = tiny_model.config.text_config
    before = text.max_position_embeddings
    try:
        text.max_position_embeddings = length + 3
        assert len(tiny_model.generate(**inputs, stop_token_ids=[]).sequences[0]) == 3
        text.max_position_embeddings = length
        with pytest.raises(ValueError, match=f"a conversation of {length} tokens leaves no room for an answer"):
            tiny_model.generate(**inputs)
    finally:
        text.max_position_embeddings = before


def test_a_conversation_may_be_about_any_encoded_image(tiny_model, tiny_processor, picture):
    images = [picture(64, 48), picture(40, 60, seed=1)]
    pixels = tiny_processor.image_processor(images)
    mask = np.eye(40, 60, dtype=bool)
    with torch.no_grad():
        features = tiny_model.encode_images(pixels["pixel_values"], pixels["segmentor_pixel_values"])
        inputs = tiny_processor(task="vgdseg", visual_prompts=[[mask], [mask], [mask]])
        indices = torch.tensor([1, 0, 1])
        output = tiny_model(**inputs.for_model(), image_features=features, image_indices=indices)
        alone = tiny_model(**tiny_processor([images[1]], task="vgdseg", visual_prompts=[[mask]]).for_model())
        with pytest.raises(ValueError, match="3 conversations but 2 images"):
            tiny_model(**inputs.for_model(), image_features=features)
        with pytest.raises(ValueError, match="do not name one of 2 images"):
            tiny_model(**inputs.for_model(), image_features=features, image_indices=torch.tensor([0, 1, 2]))
    assert output.image_indices.tolist() == [1, 0, 1]
    near(output.class_logits[0], output.class_logits[2], 0)
    near(output.class_logits[0], alone.class_logits[0], LOGITS)
    assert not torch.equal(output.class_logits[0], output.class_logits[1])


def test_of_nested_phrases_the_outer_start_counts_and_an_open_one_is_none():
    text = "a<b>c<d<e>f>g<h"
    numbers = number_phrases([letter == "<" for letter in text], [letter == ">" for letter in text])
    assert numbers == [-1, 0, 0, 0, -1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1]
    assert number_phrases([], []) == []


def test_byte_tokenizer_keeps_the_marks_of_an_answer():
    tokenizer = build_tokenizer()
    text = "<p>A dog</p> runs. <SEG><|end|>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
