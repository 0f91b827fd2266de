"""One call for every task: results of the right kind and size, the same alone and together."""

import numpy as np
import pytest
import torch

from tests.xsam_model.forced_answers import force
from xsam_model import (
    EncodedImages,
    InstanceSegmentation,
    PanopticSegmentation,
    PhraseSegmentation,
    Query,
    SemanticSegmentation,
    XSamForSegmentation,
    XSamImageProcessor,
    XSamProcessor,
    XSamSegmenter,
)
from xsam_model.post_processing.calibration import NOT_CALIBRATED, ScoreCalibration
from xsam_model.prompts.templates import TASKS
from xsam_model.testing import build_tokenizer, untrained_tiny_config

SIZES = [(64, 48), (40, 60)]
BOX = [np.zeros(size, dtype=bool) for size in SIZES]
for mask in BOX:
    mask[10:30, 5:25] = True
CATEGORIES = [["dog", "traffic light", "sky"], ["cat", "a thing with a long name"]]
# For each kind of result what is asked of two images.
ASKED = {
    "genseg": {"task": "genseg", "conditions": CATEGORIES, "threshold": 0.0},
    "ovseg": {"task": "ovseg", "conditions": CATEGORIES, "threshold": 0.0},
    "genseg semantic": {"task": "genseg", "conditions": CATEGORIES, "segmentation": "semantic"},
    "ovseg semantic": {"task": "ovseg", "conditions": CATEGORIES, "segmentation": "semantic"},
    "genseg panoptic": {
        "task": "genseg", "conditions": CATEGORIES, "segmentation": "panoptic", "stuff": ["sky"], "threshold": 0.0,
    },
    "ovseg panoptic": {"task": "ovseg", "conditions": CATEGORIES, "segmentation": "panoptic", "threshold": 0.0},
    "refseg": {"task": "refseg", "conditions": [["the left one", "a man in red"], ["the dog"]]},
    "reaseg": {"task": "reaseg", "conditions": [["What is round?"], ["a thing to eat", "What could fall?"]]},
    "reaseg explained": {
        "task": "reaseg", "conditions": [["What is round?"], ["What falls?"]], "explain": True, "max_new_tokens": 8,
    },
    "vgdseg": {"task": "vgdseg", "visual_prompts": [[BOX[0]], [BOX[1], ~BOX[1]]], "threshold": 0.0},
    "intseg": {"task": "intseg", "visual_prompts": [[BOX[0], ~BOX[0]], [BOX[1]]]},
    "gcgseg": {"task": "gcgseg", "max_new_tokens": 8},
    "chat": {"task": "chat", "conditions": [["What is this?", "Why?"], ["Who?"]], "max_new_tokens": 8},
}  # fmt: skip
KINDS = {
    "instance": InstanceSegmentation,
    "semantic": SemanticSegmentation,
    "panoptic": PanopticSegmentation,
}


def tensors(segmentation):
    """Everything in a result that can be compared."""
    if segmentation is None:
        return {}
    values = {name: getattr(segmentation, name) for name in type(segmentation).__dataclass_fields__}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def one_image(asked, index):
    lists = ("conditions", "visual_prompts")
    chosen = {name: [value[index]] if name in lists else value for name, value in asked.items()}
    stuff = [name for name in asked.get("stuff", ()) if name in asked["conditions"][index]]
    return {**chosen, "stuff": stuff} if "stuff" in asked else chosen


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return XSamSegmenter.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A tiny X-SAM with Qwen3 in place of Phi-3: grouped queries, norms of queries and keys, other chat marks."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    config = untrained_tiny_config(
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        }
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen3")
    model = XSamForSegmentation(config)
    with torch.no_grad():
        model.segmentor.pixel_decoder.mask_projection.weight.mul_(1000)
    model.save_pretrained(folder)
    image_processor = XSamImageProcessor(vision_size=112, segmentor_size=256)
    XSamProcessor(image_processor, tokenizer, config.max_text_length, chat_format="qwen3").save_pretrained(folder)
    return XSamSegmenter.from_pretrained(folder)


@pytest.fixture
def images(picture):
    return [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def assert_fits(name, results):
    asked = ASKED[name]
    assert len(results) == len(SIZES)
    for index, (result, size) in enumerate(zip(results, SIZES, strict=True)):
        found, words = result.segmentation, result.captions
        if asked["task"] == "chat":
            assert found is None
            assert len(words) == len(asked["conditions"][index])
            continue
        if asked["task"] in ("genseg", "ovseg", "vgdseg"):
            assert isinstance(found, KINDS[asked.get("segmentation", "instance")])
        else:
            assert isinstance(found, PhraseSegmentation)
            items = asked.get("conditions") or asked.get("visual_prompts")
            assert len(found) == (len(items[index]) if items else len(words[0].phrases))
        for value in tensors(found).values():
            assert value.ndim == 1 or value.shape[-2:] == size
        spoken = asked["task"] == "gcgseg" or asked.get("explain")
        assert len(words) == (1 if spoken else 0)


@pytest.mark.parametrize("name", ASKED)
def test_every_task_gives_its_kind_of_result_at_the_size_of_each_image(name, tiny, images):
    results = tiny.segment(images, **ASKED[name])
    assert_fits(name, results)
    if name in ("genseg", "ovseg", "vgdseg", "genseg semantic", "refseg", "intseg"):
        assert all(any(value.any() for value in tensors(result.segmentation).values()) for result in results)


def test_every_task_is_asked():
    assert {asked["task"] for asked in ASKED.values()} == set(TASKS)


@pytest.mark.parametrize("name", ASKED)
def test_batch_equals_one_by_one(name, tiny, images):
    together = tiny.segment(images, **ASKED[name], batch_size=8)
    for index, image in enumerate(images):
        (alone,) = tiny.segment([image], **one_image(ASKED[name], index), batch_size=1)
        assert alone.captions == together[index].captions
        ours, theirs = tensors(together[index].segmentation), tensors(alone.segmentation)
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            if value.dtype.is_floating_point:
                torch.testing.assert_close(value, theirs[key], atol=1e-3, rtol=0)
            else:
                # A pixel may lie on an edge, within rounding.
                assert (value != theirs[key]).sum() <= max(3, 0.002 * value.numel()), key


@pytest.mark.parametrize("name", ASKED)
def test_another_language_model_runs_every_task(name, qwen3, images):
    assert qwen3.model.config.text_config.model_type == "qwen3"
    assert_fits(name, qwen3.segment(images, **ASKED[name]))


def test_qwen3_conversations_carry_its_own_marks(qwen3):
    inputs = qwen3.processor(task="refseg", conditions=[["a dog"]])
    text = qwen3.processor.tokenizer.decode(inputs["input_ids"][0].clamp(min=0).tolist())
    assert "<|im_end|>\n<|im_start|>assistant\nIt is <SEG>.<|im_end|>\n" in text
    assert "<|user|>" not in text
    assert qwen3.processor.tokenizer.convert_ids_to_tokens(qwen3.processor.stop_token_ids)[0] == "<|im_end|>"


@pytest.mark.slow
def test_bfloat16_runs_every_task(tiny_folder, images):
    segmenter = XSamSegmenter.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    assert segmenter.model.dtype == torch.bfloat16
    for name, asked in ASKED.items():
        assert_fits(name, segmenter.segment(images, **asked))


def test_images_are_encoded_once_for_any_number_of_questions(tiny, images, monkeypatch):
    calls = []
    encode = tiny.model.encode_images
    monkeypatch.setattr(tiny.model, "encode_images", lambda *pixels: calls.append(1) or encode(*pixels))
    encoded = tiny.encode(images)
    assert isinstance(encoded, EncodedImages)
    for name, asked in ASKED.items():
        assert_fits(name, tiny.segment(encoded, **asked))
    assert len(calls) == 1


def test_phrases_are_asked_one_by_one(tiny, images):
    both, swapped = (
        tiny.segment(images[:1], task="refseg", conditions=[phrases])[0].segmentation
        for phrases in (["the left one", "a man"], ["a man", "the left one"])
    )
    torch.testing.assert_close(both.scores, swapped.scores.flip(0), atol=1e-4, rtol=0)


def test_an_image_may_be_asked_nothing_where_prompts_are_asked_one_by_one(tiny, images):
    empty, found = tiny.segment(images, task="refseg", conditions=[[], ["a dog"]])
    assert len(empty.segmentation) == 0
    assert empty.segmentation.masks.shape == (0, 64, 48)
    assert len(found.segmentation) == 1


def test_nothing_found_is_an_empty_result(tiny, images):
    instances = tiny.segment(images, conditions=CATEGORIES, threshold=1.0)
    assert [len(result.segmentation) for result in instances] == [0, 0]
    segments = tiny.segment(images, conditions=CATEGORIES, segmentation="panoptic", threshold=1.0)
    assert [result.segmentation.segments for result in segments] == [(), ()]
    assert not any(result.segmentation.segmentation.any() for result in segments)


@pytest.mark.parametrize("most", [3, 40])
def test_an_image_has_as_many_instances_as_are_wanted(most, tiny, images):
    categories = [["dog", "traffic light", "sky"], ["cat", "tree", "road"]]
    many, few = (
        tiny.segment(images, task="ovseg", conditions=categories, threshold=0.0, top_k=number) for number in (60, most)
    )
    for all_found, found in zip(many, few, strict=True):
        scores = all_found.segmentation.scores / all_found.segmentation.mask_scores
        assert len(found.segmentation.scores) == most
        best = scores.sort(descending=True).values[:most]
        of_found = found.segmentation.scores / found.segmentation.mask_scores
        torch.testing.assert_close(of_found.sort(descending=True).values, best)


def test_an_answer_without_masks_gives_empty_rows(tiny, images, monkeypatch):
    # The untrained model babbles, and never says <SEG>.
    results = tiny.segment(images, task="refseg", conditions=[["a dog"], ["a cat"]], generate=True, max_new_tokens=3)
    for result, size in zip(results, SIZES, strict=True):
        assert result.segmentation.masks.shape == (1, *size)
        assert not result.segmentation.masks.any()
        assert result.segmentation.scores.tolist() == [0.0]


def test_one_thing_asked_is_one_row_whatever_phrases_the_answer_names(tiny, images, monkeypatch):
    (answer,) = (tiny.processor.tokenizer.encode(text, add_special_tokens=False) for text in [
        "<p>A dog</p> and <p>a cat</p>: <SEG><|end|>"
    ])  # fmt: skip
    generate = tiny.model.generate

    def forced(**arguments):
        rows = len(arguments["input_ids"])
        return generate(**arguments, logits_processor=force(*[answer] * rows))

    monkeypatch.setattr(tiny.model, "generate", forced)
    for name in ("refseg", "reaseg explained", "intseg"):
        asked = {**ASKED[name], "generate": True, "max_new_tokens": 64}
        results = tiny.segment(images, **asked)
        items = asked.get("conditions") or asked["visual_prompts"]
        assert [len(result.segmentation) for result in results] == [len(group) for group in items]
    (caption,) = tiny.segment(images[:1], task="gcgseg", max_new_tokens=64)
    assert [phrase.text for phrase in caption.captions[0].phrases] == ["A dog", "a cat"]
    assert len(caption.segmentation) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "paint"}, "unknown task 'paint'; known: genseg"),
        ({"task": "refseg"}, "conditions has no entries for 2 images"),
        ({"task": "vgdseg", "conditions": CATEGORIES}, "vgdseg takes visual_prompts, not conditions"),
        ({"task": "refseg", "visual_prompts": [[], []]}, "refseg takes conditions, not visual_prompts"),
        ({"task": "gcgseg", "conditions": CATEGORIES}, "takes no conditions"),
        ({"conditions": CATEGORIES[:1]}, "conditions has 1 entries for 2 images"),
        ({"conditions": [["dog"], []]}, "image 1: conditions are missing"),
        ({"conditions": CATEGORIES, "stuff": ["grass"]}, "stuff names what is no condition: grass"),
        ({"task": "refseg", "conditions": CATEGORIES, "segmentation": "panoptic"}, "'panoptic' goes with the tasks"),
        ({"task": "vgdseg", "visual_prompts": [[BOX[1]], [BOX[1]]]}, r"shape \(40, 60\), but its image is 48 x 64"),
        ({"conditions": CATEGORIES, "explain": True}, "explain goes with the task reaseg"),
        ({"task": "chat", "conditions": CATEGORIES, "answer": "A dog."}, "no <SEG>"),
        (
            {"task": "refseg", "conditions": [["x" * 5000], ["a"]]},
            r"has \d+ text tokens, \d+ more than the \d+ that fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused(asked, message, tiny, images):
    with pytest.raises(ValueError, match=message):
        tiny.segment(images, **asked)


def test_a_caption_that_is_given_is_segmented_phrase_by_phrase(tiny, images):
    answer = "<p>A dog</p> sees <p>a cat</p>. <SEG>"
    for result, size in zip(tiny.segment(images, task="gcgseg", answer=answer), SIZES, strict=True):
        assert result.captions[0].text == "A dog sees a cat."
        assert result.segmentation.masks.shape == (2, *size)


def test_a_query_needs_no_image_of_its_own(tiny, images):
    encoded = tiny.encode(images)
    queries = [Query(image=1, conditions=["a dog"]), Query(image=0, conditions=["a cat"])]
    replies = tiny.ask(encoded, "refseg", queries)
    assert replies.decodes == (0, 1)
    assert replies.original_sizes == ((40, 60), (64, 48))
    assert [found.masks.shape for found in tiny.read(replies, "refseg", queries)] == [(1, 40, 60), (1, 64, 48)]


@pytest.fixture
def near(tiny, monkeypatch):
    """The tiny model with the setting that looks at visual prompts in windows around them."""
    monkeypatch.setattr(tiny.model.config, "interactive_zoom", 1.5)
    return tiny


def test_a_box_is_answered_in_its_window_and_nothing_lies_outside_the_box(near, tiny, picture, monkeypatch):
    image, box = picture(200, 300, seed=5), np.zeros((200, 300), dtype=bool)
    box[60:100, 100:160] = True
    (found,) = near.segment([image], task="intseg", visual_prompts=[[box]])
    monkeypatch.setattr(tiny.model.config, "interactive_zoom", None)
    rows, columns = slice(35, 125), slice(85, 175)  # 1.5 times 60 pixels around the box's center
    (window,) = tiny.segment([image[rows, columns]], task="intseg", visual_prompts=[[box[rows, columns]]])
    expected = torch.zeros(1, 200, 300, dtype=torch.bool)
    expected[:, rows, columns] = window.segmentation.masks
    expected &= torch.as_tensor(box)
    assert expected.any()
    assert (found.segmentation.masks != expected).sum() <= 3
    torch.testing.assert_close(found.segmentation.scores, window.segmentation.scores, atol=1e-3, rtol=0)


def test_of_a_points_windows_the_best_score_answers_whatever_is_asked_beside_it(near, images):
    points = [np.zeros(size, dtype=bool) for size in SIZES]
    points[0][20, 10] = points[1][30, 40] = True
    large = [np.kron(image, np.ones((6, 6, 1), dtype=np.uint8)) for image in images]
    prompts = [np.kron(point, np.ones((6, 6), dtype=bool)) for point in points]
    together = near.segment(large, task="intseg", visual_prompts=[[prompts[0], ~prompts[0]], [prompts[1]]])
    assert [len(result.segmentation) for result in together] == [2, 1]
    for image, prompt, result in zip(large, prompts, together, strict=True):
        (alone,) = near.segment([image], task="intseg", visual_prompts=[[prompt]], batch_size=1)
        torch.testing.assert_close(alone.segmentation.scores, result.segmentation.scores[:1], atol=1e-3, rtol=0)
        queries = [Query(image=0, visual_prompts=[prompt])]
        (seen,) = near.look_closer([image], queries)
        assert seen.found.scores.item() == pytest.approx(alone.segmentation.scores.item(), abs=1e-3)
        assert (seen.on_image(prompt.shape).masks != alone.segmentation.masks).sum() <= 0.002 * prompt.size


@pytest.fixture(scope="module")
def refined(tiny):
    """A tiny model whose untrained refiner draws what visual prompts stand for."""
    torch.manual_seed(0)
    model = XSamForSegmentation(untrained_tiny_config(interactive_zoom=1.5, refiner_dims=[8, 16, 16]))
    return XSamSegmenter(model, tiny.processor)


def test_a_refiner_draws_what_a_box_stands_for_in_its_window(refined, picture):
    image, box = picture(200, 300, seed=5), np.zeros((200, 300), dtype=bool)
    box[60:100, 100:160] = True
    (found,) = refined.segment([image], task="intseg", visual_prompts=[[box]])
    rows, columns = slice(35, 125), slice(85, 175)
    images = refined.processor.image_processor
    canvas = images([image[rows, columns]])["segmentor_pixel_values"]
    region = torch.from_numpy(images.scale_mask(box[rows, columns]))[None]
    with torch.inference_mode():
        logits, quality = refined.model.refine(canvas, region, torch.tensor([True]), mirrored=True)
    inside = refined.processor.geometry((256, 256), (90, 90)).enlarge(logits)[0] > 0
    expected = torch.zeros(1, 200, 300, dtype=torch.bool)
    expected[0, rows, columns] = inside & torch.as_tensor(box[rows, columns])
    assert expected.any()
    assert (found.segmentation.masks != expected).sum() <= 3
    torch.testing.assert_close(found.segmentation.class_scores, quality.sigmoid(), atol=1e-4, rtol=0)


def test_of_masks_that_a_refiner_draws_the_best_rated_counts_even_if_it_fills_its_window(refined, monkeypatch, picture):
    image, point = picture(400, 400, seed=6), np.zeros((400, 400), dtype=bool)
    point[200, 200] = True
    rated = {400: (0.3, 40), 240: (0.9, 240), 144: (0.95, 0), 86: (0.6, 40)}

    def draw(cuts, windows):
        rows = []
        for side in (len(cut) for cut in cuts):
            score, filled = rated[side]
            masks = (torch.arange(side) < filled).expand(1, side, side)
            rows.append(PhraseSegmentation(*(torch.tensor([score]),) * 3, torch.tensor([0]), masks))
        return rows

    monkeypatch.setattr(refined, "_refine", draw)
    (found,) = refined.look_closer([image], [Query(image=0, visual_prompts=[point], region_kind="point")])
    assert found.found.scores.item() == pytest.approx(0.9)


def test_a_refiner_gives_way_where_more_than_the_prompt_is_asked(refined, picture):
    image, point = picture(96, 96, seed=6), np.zeros((96, 96), dtype=bool)
    point[48, 48] = True
    asked = {"task": "intseg", "visual_prompts": [[point]]}
    (drawn,) = refined.segment([image], **asked)
    (said,) = refined.segment([image], **asked, answer="It is <SEG>.")
    assert not torch.allclose(drawn.segmentation.scores, said.segmentation.scores)
    with pytest.raises(ValueError, match="explain"):
        refined.segment([image], **asked, explain=True)


@pytest.mark.parametrize("asked", ["ovseg", "vgdseg", "refseg", "intseg"])
def test_scores_are_calibrated_for_the_tasks_that_the_configuration_names(tiny, images, monkeypatch, asked):
    plain = tiny.segment(images, **ASKED[asked])
    fields = {"temperature": 0.5, "offset": -1.0}
    for task, calibration in (("genseg", NOT_CALIBRATED), (asked, ScoreCalibration(**fields))):
        monkeypatch.setattr(tiny.model.config, "score_calibration", {task: fields})
        for before, after in zip(plain, tiny.segment(images, **ASKED[asked]), strict=True):
            expected = calibration.of(before.segmentation.scores)
            torch.testing.assert_close(after.segmentation.scores, expected, atol=1e-5, rtol=0)
            assert len(after.segmentation)


def test_a_refiners_scores_are_calibrated(refined, picture, monkeypatch):
    asked = {"task": "intseg", "visual_prompts": [[np.ones((96, 96), dtype=bool)]]}
    (plain,) = refined.segment([picture(96, 96)], **asked)
    monkeypatch.setattr(refined.model.config, "score_calibration", {"intseg": {"temperature": 2.0, "offset": 1.0}})
    (found,) = refined.segment([picture(96, 96)], **asked)
    expected = ScoreCalibration(2.0, 1.0).of(plain.segmentation.scores)
    torch.testing.assert_close(found.segmentation.scores, expected, atol=1e-5, rtol=0)
    assert torch.equal(found.segmentation.masks, plain.segmentation.masks)


def test_a_calibration_of_no_task_is_refused(refined):
    config = untrained_tiny_config(score_calibration={"ovsegg": {"temperature": 1.0, "offset": 0.0}})
    with pytest.raises(ValueError, match="no such tasks: ovsegg; known"):
        XSamSegmenter(XSamForSegmentation(config), refined.processor)


def test_encoded_images_are_asked_whole(near, tiny, images, monkeypatch):
    asked = ASKED["intseg"]
    whole = near.segment(near.encode(images), **asked)
    monkeypatch.setattr(tiny.model.config, "interactive_zoom", None)
    for ours, theirs in zip(whole, tiny.segment(images, **asked), strict=True):
        assert torch.equal(ours.segmentation.masks, theirs.segmentation.masks)


def test_a_zoom_that_would_cut_off_the_prompt_is_refused():
    with pytest.raises(ValueError, match="interactive_zoom must be 1 or more"):
        untrained_tiny_config(interactive_zoom=0.5)


def test_what_fills_a_window_gives_way_to_a_mask_that_is_whole_and_to_nothing_that_is_empty(near, monkeypatch, picture):
    image, point = picture(400, 400, seed=6), np.zeros((400, 400), dtype=bool)
    point[200, 200] = True
    answers = {400: (0.0, slice(0, 0)), 240: (0.9, slice(None)), 144: (0.95, slice(None)), 86: (0.6, slice(10, 40))}

    def read(replies, task, queries, **_):
        rows = []
        for query in queries:
            side = query.visual_prompts[0].shape[0]
            score, part = answers[side]
            masks = torch.zeros(1, side, side, dtype=torch.bool)
            masks[:, part, part] = True
            rows.append(PhraseSegmentation(*(torch.tensor([score]),) * 3, torch.tensor([0]), masks))
        return rows

    monkeypatch.setattr(near, "read", read)
    queries = [Query(image=0, visual_prompts=[point], region_kind="point")]
    assert next(near.look_closer([image], queries)).found.scores.item() == pytest.approx(0.6)
    answers[86] = (0.6, slice(None))
    # All are cut off, or empty: the surest answer.
    assert next(near.look_closer([image], queries)).found.scores.item() == pytest.approx(0.95)


@pytest.mark.parametrize("asked", [{"explain": True}, {"question": "What?"}, {"stuff": ["sky"]}])
def test_what_a_region_cannot_be_asked_is_refused_from_near_too(near, images, asked):
    with pytest.raises(ValueError):  # noqa: PT011  (the processor's own messages)
        near.segment(images, **ASKED["intseg"], **asked)


def test_a_region_read_from_an_image_is_asked_of_it_as_its_mask_is(tiny, images):
    encoded = tiny.encode(images)
    (read,) = tiny.pool_regions(encoded, 1, [BOX[1]])
    drawn = tiny.ask(encoded, "vgdseg", [Query(image=1, visual_prompts=[BOX[1], ~BOX[1]])])
    lent = tiny.ask(encoded, "vgdseg", [Query(image=1, visual_prompts=[read, ~BOX[1]])])
    torch.testing.assert_close(lent.outputs.class_logits, drawn.outputs.class_logits, atol=0, rtol=0)
    torch.testing.assert_close(lent.outputs.mask_logits, drawn.outputs.mask_logits, atol=0, rtol=0)


def test_a_region_of_one_image_is_asked_of_another(tiny, images):
    (lent,) = tiny.pool_regions(tiny.encode(images[:1]), 0, [BOX[0]])
    encoded = tiny.encode(images[1:])
    (asked, own) = (
        tiny.ask(encoded, "vgdseg", [Query(image=0, visual_prompts=[one])]).outputs.class_logits
        for one in (lent, BOX[1])
    )
    assert not torch.allclose(asked, own)
    # As training says it: both images in one batch, and the first lends its region to the second.
    inputs = tiny.processor(images, task="vgdseg", visual_prompts=[[BOX[0]], [BOX[1]]]).for_model()
    inputs["vprompt_masks"][1] = inputs["vprompt_masks"][0]
    with torch.inference_mode():
        together = tiny.model(**inputs, region_images=torch.tensor([0, 0])).class_logits[1:]
    torch.testing.assert_close(asked, together, atol=1e-3, rtol=0)


def test_regions_of_other_images_stand_among_those_of_the_image_in_any_order(tiny, images):
    encoded = tiny.encode(images)
    (lent,) = tiny.pool_regions(encoded, 0, [BOX[0]])
    asked = [[lent, BOX[1]], [BOX[1], lent], [BOX[1]]]
    replies = tiny.ask(encoded, "vgdseg", [Query(image=1, visual_prompts=one) for one in asked])
    conditions = replies.outputs.condition_mask.sum(1).tolist()
    assert conditions == [3, 3, 2]
    (alone,) = (tiny.ask(encoded, "vgdseg", [Query(image=1, visual_prompts=one)]) for one in asked[1:2])
    torch.testing.assert_close(replies.outputs.class_logits[1], alone.outputs.class_logits[0], atol=1e-3, rtol=0)


def test_segment_takes_regions_of_other_images(tiny, images):
    (lent,) = tiny.pool_regions(tiny.encode(images[:1]), 0, [BOX[0]])
    results = tiny.segment(images, task="vgdseg", visual_prompts=[[lent], [lent, BOX[1]]], threshold=0.0)
    assert all(len(result.segmentation) for result in results)


def test_a_region_of_another_image_is_no_interactive_prompt(tiny, images):
    (lent,) = tiny.pool_regions(tiny.encode(images[:1]), 0, [BOX[0]])
    with pytest.raises(ValueError, match="goes with vgdseg"):
        tiny.segment(images, task="intseg", visual_prompts=[[lent], [lent]])


def test_a_region_that_does_not_fit_its_image_cannot_be_read(tiny, images):
    encoded = tiny.encode(images)
    with pytest.raises(ValueError, match="its image is"):
        tiny.pool_regions(encoded, 0, [BOX[1]])
    with pytest.raises(ValueError, match="empty"):
        tiny.pool_regions(encoded, 0, [np.zeros(SIZES[0], dtype=bool)])
