"""Conversations, token groups and canvas geometry."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from xsam_model import XSamImageProcessor, XSamProcessor, image_processing_xsam
from xsam_model.processing_xsam import add_tokens
from xsam_model.prompts.templates import QUESTIONS, TASKS, clean_category


def words(processor, inputs, row=0):
    """Conversation as text again, with the pseudo ids written out."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
    marks = {processor.image_token_index: "<image>", processor.region_token_index: "<region>"}
    return "".join(marks.get(token) or processor.tokenizer.decode([token]) for token in ids)


@pytest.mark.parametrize(
    ("task", "conditions", "spoken"),
    [
        ("genseg", ["Wall-other-merged", "cell-phone"], "categories: <p>wall</p>, <p>cell phone</p>? Please generate"),
        ("ovseg", ["Chest of Drawers"], "categories: <p>chest of drawers</p>? Please generate"),
        ("refseg", [" The woman in a Red coat "], "Can you segment <p>the woman in a red coat</p> in this image?"),
        ("reaseg", [" What holds the soup? "], "\n<p>What holds the soup?</p> Please segment the image."),
    ],
)
def test_each_task_has_one_fixed_wording(task, conditions, spoken, tiny_processor, picture):
    inputs = tiny_processor([picture(40, 60)], task=task, conditions=[conditions])
    text = words(tiny_processor, inputs)
    assert text.startswith("<s><|user|><image>\n")
    assert spoken in text
    assert text.endswith("<SEG>.<|end|>\n")
    assert inputs["num_conditions"] == [len(conditions)]


def test_every_task_but_the_caption_has_a_question_with_a_place_for_conditions():
    assert set(QUESTIONS) == set(TASKS)
    assert [task for task in TASKS if "{}" not in QUESTIONS[task]] == ["gcgseg"]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("sky-other-merged", "sky"),
        ("floor-wood", "floor wood"),
        ("water-stuff", "water"),
        (" Traffic Light ", "traffic light"),
        ("wall-other-merged", "wall"),
        ("Car-Other", "car"),
        ("off-stuffing", "off stuffing"),
        ("other-merged-thing", "other merged thing"),
        ("-other", "other"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_category_names_are_written_as_in_training(name, clean):
    assert clean_category(name) == clean


@pytest.mark.parametrize("task", ["ovseg", "genseg"])
def test_categories_that_are_written_alike_are_refused(task, tiny_processor):
    """They would compete for each mask: of a sure 0.9997 each of three would get a third."""
    with pytest.raises(ValueError, match=r"'car', 'Car', 'car-other' are all written 'car'.*keep one of them"):
        tiny_processor(task=task, conditions=[["car", "dog", "Car", "car-other"]])
    assert tiny_processor(task="refseg", conditions=[["car", "Car"]])["num_conditions"] == [2]


def test_categories_can_be_asked_as_the_reference_asks_them(tiny_processor, monkeypatch):
    """Its list for ADE20K has "window ", and the space is a token of the condition."""
    clean = words(tiny_processor, tiny_processor(conditions=[["window ", "off-stuffing"]]))
    monkeypatch.setattr(tiny_processor, "category_text", "reference")
    same = words(tiny_processor, tiny_processor(conditions=[["window ", "off-stuffing"]]))
    assert "<p>window</p>, <p>off stuffing</p>" in clean
    assert "<p>window </p>, <p>offing</p>" in same
    # It asks doubled names, too.
    assert tiny_processor(conditions=[["car", "Car"]])["num_conditions"] == [2]
    with pytest.raises(ValueError, match=r"condition ' ' is blank"):
        tiny_processor(conditions=[[" "]])


def test_groups_hold_the_phrase_with_its_marks_and_the_seg_token(tiny_processor, picture):
    inputs = tiny_processor([picture(40, 60)], conditions=[["ab", "c"]])
    ids, cond_ids, seg_ids = (inputs[key][0] for key in ("input_ids", "cond_ids", "seg_ids"))
    decode = tiny_processor.tokenizer.decode
    assert decode(ids[cond_ids == 0].tolist()) == "<p>ab</p>"
    assert decode(ids[cond_ids == 1].tolist()) == "<p>c</p>"
    assert decode(ids[seg_ids == 0].tolist()) == "<SEG>"
    assert (seg_ids >= 0).sum() == 1


def test_wordings_can_be_replaced_and_shorter_rows_are_padded_on_the_right(tiny_processor, picture):
    images = [picture(40, 60), picture(60, 40)]
    inputs = tiny_processor(images, conditions=[["a"], ["b", "c d"]], question="Find {}!", answer="<SEG>.")
    assert words(tiny_processor, inputs) == "<s><|user|><image>\nFind <p>a</p>!<|end|><|assistant|><SEG>.<|end|>\n"
    assert inputs["num_conditions"] == [1, 2]
    padding = inputs["attention_mask"] == 0
    assert padding[0].sum() > 0
    assert not padding[1].any()
    assert torch.equal(padding[0].int(), padding[0].int().sort().values)
    assert (inputs["cond_ids"][padding] == -1).all()
    assert (inputs["input_ids"][padding] == tiny_processor.tokenizer.pad_token_id).all()


def test_question_answer_and_line_break_are_tokenized_apart(tiny_processor, picture, monkeypatch):
    pieces = []
    encode = tiny_processor.tokenizer.encode

    def record(piece, **options):
        pieces.append(piece)
        return encode(piece, **options)

    monkeypatch.setattr(tiny_processor.tokenizer, "encode", record)
    turn = "<|user|>\n{}Find <p>it</p><|end|>\n<|assistant|>\nIt is <SEG>.<|end|>"
    tiny_processor([picture(40, 60)], text=turn.format("<image>\n") + "\n" + turn.format(""))
    answer = ["It is <SEG>.<|end|>", "\n"]
    first = ["<|user|>\n", "\nFind <p>it</p><|end|>\n<|assistant|>\n"]
    assert pieces == [*first, *answer, "<|user|>\nFind <p>it</p><|end|>\n<|assistant|>\n", *answer]


def test_a_caption_needs_its_answer(tiny_processor, picture):
    answer = "<p>A dog</p> chases <p>a cat</p>. <SEG>"
    inputs = tiny_processor([picture(40, 60)], task="gcgseg", answer=answer)
    assert inputs["num_conditions"] == [2]
    with pytest.raises(ValueError, match="gcgseg has no fixed answer: set generate, or give the text"):
        tiny_processor([picture(40, 60)], task="gcgseg")


def test_processor_survives_saving(tiny_processor, picture, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    loaded = XSamProcessor.from_pretrained(tmp_path)
    assert loaded.max_text_length == tiny_processor.max_text_length
    masks = [[np.ones((40, 60), dtype=bool)]]
    before, after = (
        processor([picture(40, 60)], task="vgdseg", visual_prompts=masks) for processor in (tiny_processor, loaded)
    )
    assert list(before) == list(after)
    for key, value in before.for_model().items():
        assert torch.equal(value, after[key]), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "segment"}, "unknown task 'segment'; known: genseg"),
        ({"conditions": [[]]}, "image 0: conditions are missing"),
        ({"conditions": [["dog"], ["cat"]]}, "conditions has 2 entries for 1 images"),
        ({"conditions": [["dog", "  "]]}, "is blank"),
        ({"conditions": [["-"]]}, "is blank"),
        ({"conditions": [["a</p><SEG>"]]}, "contains '<SEG>', which the tokenizer reserves"),
        ({"conditions": [["an <image>"]]}, "reserves"),
        ({"conditions": [["x<|end|>"]]}, "reserves"),
        ({"conditions": [["dog"]], "question": "Find it."}, "has no {}"),
        ({"conditions": [["dog"]], "answer": "It is."}, "must hold <SEG> exactly once"),
        ({"task": "vgdseg"}, "visual prompts are missing"),
        ({"task": "vgdseg", "visual_prompts": [[np.zeros((40, 60), bool)]]}, "mask is empty"),
        (
            {"task": "vgdseg", "visual_prompts": [[np.ones((60, 40), bool)]]},
            r"shape \(60, 40\), but its image is 60 x 40",
        ),
        ({"text": "<|user|>\n<image>\n<p><region></p><|end|>\n<|assistant|>\n<SEG>.<|end|>"}, "has 1 <region>, but 0"),
        ({"text": "<|user|>\n<image>\n<p>a <p>b</p></p><SEG>"}, "every <p> needs its </p>"),
        ({"text": "<|user|>\n<image>\n<p>a<SEG>"}, "every <p> needs its </p>"),
        ({"text": "</p><p>"}, "every <p> needs its </p>"),
        ({"images": [np.zeros((4, 4), np.uint8)]}, r"image 0 must be a uint8 array of shape \(height, width, 3\)"),
        ({"images": [np.zeros((4, 4, 3), np.float32)]}, "uint8"),
        ({"images": [np.zeros((0, 4, 3), np.uint8)]}, "image 0 must be"),
        ({"images": [Image.new("RGB", (0, 4))]}, r"image 0 must have pixels of 8 bits, got mode RGB and size \(0, 4\)"),
        ({"images": [Image.new("I;16", (4, 4))]}, "got mode I;16"),
        ({"images": [Image.new("F", (4, 4))]}, "got mode F"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, message, tiny_processor, picture):
    arguments = {"images": [picture(40, 60)], **arguments}
    with pytest.raises(ValueError, match=message):
        tiny_processor(**arguments)


def test_too_many_categories_are_refused_with_the_number_that_fits(tiny_processor, picture):
    processor = XSamProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, max_text_length=300)
    names = [f"thing {index:03d}" for index in range(40)]
    with pytest.raises(ValueError, match=r"image 0: 40 conditions make \d+ text tokens.* the first \d+ fit") as caught:
        processor([picture(40, 60)], conditions=[names])
    fits = int(str(caught.value).split("the first ")[1].split()[0])
    assert processor([picture(40, 60)], conditions=[names[:fits]])["input_ids"].shape[1] <= 300
    with pytest.raises(ValueError, match=r"\d+ more than the 300 that fit"):
        processor([picture(40, 60)], conditions=[names[: fits + 1]])


def test_tokenizer_without_the_added_tokens_is_refused(tiny_processor):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"lacks \['<SEG>', '<p>', '</p>'\]"):
        XSamProcessor(tiny_processor.image_processor, bare)
    assert add_tokens(bare) == 3
    assert bare.convert_tokens_to_ids(["<SEG>", "<p>", "</p>"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("size_hw", "scaled"),
    [((90, 120), (768, 1024)), ((120, 90), (1024, 768)), ((1, 5000), (1, 1024)), ((333, 500), (682, 1024))],
)
def test_longest_side_fills_the_canvas(size_hw, scaled):
    assert XSamImageProcessor().scaled_size(size_hw) == scaled


def test_canvas_is_zero_outside_the_image_and_the_square_is_padded_with_gray():
    white = np.full((30, 61, 3), 255, dtype=np.uint8)
    features = XSamImageProcessor(vision_size=61, segmentor_size=122)([white])
    canvas, square = features["segmentor_pixel_values"][0], features["pixel_values"][0]
    assert features["scaled_sizes"] == [(60, 122)]
    assert (canvas[:, :60] > 2).all()
    assert (canvas[:, 60:] == 0).all()
    # 31 rows are missing: 15 above, 16 below.
    gray = (127 / 255 - 0.5) / 0.5
    assert torch.allclose(square[:, :15], torch.tensor(gray))
    assert (square[:, 15:45] == 1).all()
    assert torch.allclose(square[:, 45:], torch.tensor(gray))


@pytest.mark.parametrize("size_hw", [(40, 90), (90, 40), (64, 64)])
@pytest.mark.parametrize("band_pixels", [700, 2**21])
def test_the_square_in_bands_is_the_whole_square_resized(picture, monkeypatch, size_hw, band_pixels):
    monkeypatch.setattr(image_processing_xsam, "_BAND_PIXELS", band_pixels)
    image, side = Image.fromarray(picture(*size_hw)), max(size_hw)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    expected = np.asarray(square.resize((48, 48), Image.Resampling.BILINEAR))
    found = XSamImageProcessor(vision_size=48, segmentor_size=64)(image)["pixel_values"][0]
    assert ((found.permute(1, 2, 0) * 127.5 + 127.5).round().numpy() == expected).all()


def test_pil_images_of_any_mode_equal_their_rgb_arrays(picture):
    processor = XSamImageProcessor(vision_size=28, segmentor_size=64)
    gray = Image.fromarray(picture(40, 60)).convert("L")
    arrays = processor(np.asarray(gray.convert("RGB")))
    assert torch.equal(processor(gray)["pixel_values"], arrays["pixel_values"])


def test_prompt_masks_follow_the_canvas_and_never_vanish():
    processor = XSamImageProcessor(segmentor_size=64)
    mask = np.zeros((100, 200), dtype=bool)
    mask[50:, 100:] = True
    scaled = processor.scale_mask(mask)
    assert scaled[16:32, 32:64].all()
    assert scaled.sum() == 16 * 32
    speck = np.zeros((1000, 2000), dtype=bool)
    speck[500, 1000] = True
    assert np.argwhere(processor.scale_mask(speck)).tolist() == [[16, 32]]
