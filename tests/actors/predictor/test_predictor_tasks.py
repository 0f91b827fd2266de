"""Every task of X-SAM asked through the predictor of a tiny untrained model, alone and all in one batch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.predictor.batch_size import MAX_BATCH_SIZE
from actors.predictor.config import PredictorConfig
from actors.predictor.model_check import check_model
from actors.predictor.predictions import find_masks
from actors.predictor.predictor import XSamPredictor
from pipelines.masks import rle
from pipelines.types import (
    CATEGORY_TASKS,
    PANOPTIC_TASKS,
    SENTENCE_TASKS,
    TASKS,
    Answer,
    Exemplar,
    Image,
    ImageRef,
    Prompt,
    Region,
    Rle,
    Task,
)
from tests.support.fakes import sentence
from tests.xsam_model.forced_answers import force
from xsam_model.post_processing.calibration import ScoreCalibration
from xsam_model.prompts.visual import draw_box
from xsam_model.segmenter import XSamSegmenter
from xsam_model.testing import save_untrained

CAPTION = sentence("gcgseg", "caption")
MAX_MASKS = 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def load(model_folder: Path) -> Any:
    def load(**settings: Any) -> XSamPredictor:
        values = {"device": "cpu", "min_score": 0.02, "max_masks_per_image": MAX_MASKS, "max_new_tokens": 8, **settings}
        return XSamPredictor(PredictorConfig(path=str(model_folder), **values))

    return load


@pytest.fixture(scope="module")
def predictor(load: Any) -> XSamPredictor:
    return load()


def image(width: int, height: int, seed: int) -> Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((height // 4 + 1, width // 4 + 1, 1), dtype=np.uint8))[:height, :width]
    return Image(ref=ImageRef(image_id=f"img-{seed}", uri="/x"), pixels=np.ascontiguousarray(pixels))


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
IMAGES = [image(90, 60, 1), image(48, 111, 2), image(64, 64, 3)]


def region(task: Task, prompt_id: str, box: tuple[float, ...] = (5.0, 5.0, 30.0, 20.0)) -> Prompt:
    drawn = Region(kind="box", coordinates=box)
    return Prompt(prompt_id=prompt_id, task=task, text="box", category_id=0, category_name="box", region=drawn)


def prompts_of(task: Task) -> list[Prompt]:
    """Two prompts of a task, one where it takes no more."""
    if task == "gcgseg":
        return [CAPTION]
    if task in ("vgdseg", "intseg"):
        return [region(task, f"{task}-0"), region(task, f"{task}-1", (20.0, 20.0, 15.0, 30.0))]
    names = ["the dog", "a lawn"] if task not in PANOPTIC_TASKS else ["lawn"]
    things = [number == 0 for number in range(2)] if task in PANOPTIC_TASKS else [None, None]
    return [
        dataclasses.replace(sentence(task, name, number), is_thing=thing)
        for number, (name, thing) in enumerate(zip(names, things, strict=False))
    ]


EVERYTHING = [
    prompt for task in TASKS for prompt in prompts_of(task)
] + [sentence("reaseg", "What is green?", 7, explain=True)]  # fmt: skip


def dense(segmentation: Rle) -> np.ndarray:
    return rle.decode(segmentation)


def assert_valid(answer: Answer, asked: list[Prompt], picture: Image) -> None:
    for mask in answer.masks:
        assert mask.segmentation.size_hw == picture.size_hw
        assert mask.area == rle.area(mask.segmentation) > 0
        assert mask.bbox_xywh == rle.bbox_xywh(mask.segmentation)
        assert 0.02 <= mask.score <= 1
        assert (mask.mask_score is None) == mask.prompt.task.endswith("_semantic")
        assert mask.prompt in asked
    counts = {task: [mask.prompt.task for mask in answer.masks].count(task) for task in TASKS}
    assert max(counts.values()) <= MAX_MASKS
    assert all(caption.text.strip() and caption.prompt in asked for caption in answer.captions)


def test_every_task_is_answered_in_one_batch_and_the_images_are_encoded_once(
    predictor: XSamPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = predictor.segmenter.model.encode_images, []
    monkeypatch.setattr(predictor.segmenter.model, "encode_images", lambda *a: calls.append(len(a[0])) or encode(*a))
    answers = predictor.predict(IMAGES, [EVERYTHING] * len(IMAGES))
    assert calls == [len(IMAGES)]
    for picture, answer in zip(IMAGES, answers, strict=True):
        assert_valid(answer, EVERYTHING, picture)
        assert answer.rejected == ()
        found = {mask.prompt.prompt_id for mask in answer.masks}
        for task in ("refseg", "reaseg", "vgdseg", "intseg"):
            assert {prompt.prompt_id for prompt in prompts_of(task)} <= found
        assert {mask.prompt.task for mask in answer.masks} >= set(CATEGORY_TASKS) - set(PANOPTIC_TASKS)
        assert {caption.prompt.prompt_id for caption in answer.captions} == {
            "gcgseg:caption", "chat:the dog", "chat:a lawn", "reaseg:What is green?"
        }  # fmt: skip


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])
def test_every_task_is_answered_on_a_gpu(load: Any, device: str) -> None:
    for picture, answer in zip(IMAGES, load(device=device).predict(IMAGES, [EVERYTHING] * len(IMAGES)), strict=True):
        assert_valid(answer, EVERYTHING, picture)
        assert {mask.prompt.task for mask in answer.masks} >= {"ovseg", "ovseg_semantic", "refseg", "vgdseg", "intseg"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_gpu_is_tried_for_how_many_images_it_holds(load: Any, device: str) -> None:
    found = load(device=device).find_batch_size(EVERYTHING, shards=2)
    assert found == (None if device == "cpu" else MAX_BATCH_SIZE)  # a tiny model leaves room


def test_a_batch_of_everything_answers_as_one_image_and_one_task_at_a_time(predictor: XSamPredictor) -> None:
    asked = [EVERYTHING, EVERYTHING[::2], [prompt for prompt in EVERYTHING if prompt.task in ("chat", "intseg")]]
    for picture, prompts, together in zip(IMAGES, asked, predictor.predict(IMAGES, asked), strict=True):
        for task in TASKS:
            (alone,) = predictor.predict([picture], [[prompt for prompt in prompts if prompt.task == task]])
            ours = [mask for mask in together.masks if mask.prompt.task == task]
            assert [mask.prompt for mask in ours] == [mask.prompt for mask in alone.masks]
            for one, other in zip(ours, alone.masks, strict=True):
                assert one.score == pytest.approx(other.score, abs=5e-4)
                assert rle.iou([one.segmentation], [other.segmentation])[0, 0] > 0.98
            assert [caption for caption in together.captions if caption.prompt.task == task] == list(alone.captions)


@pytest.mark.parametrize("task", ["ovseg_semantic", "genseg_semantic"])
def test_semantic_rows_share_out_every_pixel(predictor: XSamPredictor, task: Task) -> None:
    answers = predictor.predict(IMAGES, [prompts_of(task)] * len(IMAGES))
    for answer in answers:
        assert (sum(dense(mask.segmentation).astype(int) for mask in answer.masks) == 1).all()
        assert len({mask.prompt.prompt_id for mask in answer.masks}) == len(answer.masks)
        assert {mask.prompt.is_thing for mask in answer.masks} == {None}


def decode_of(masks: list[tuple[slice, slice]], labels: list[int], size: int = 64) -> dict[str, Any]:
    """Logits of queries that are sure of a square each, and of one that is sure of nothing everywhere."""
    from xsam_model.post_processing.mask_geometry import MaskGeometry

    class_logits = torch.full((len(masks) + 1, 3), -9.0)
    mask_logits = torch.full((len(masks) + 1, size, size), -30.0)
    class_logits[-1, 2], mask_logits[-1] = 9.0, 9.0
    for query, (square, label) in enumerate(zip(masks, labels, strict=True)):
        class_logits[query, label] = 9.0
        mask_logits[query][square] = 9.0
    geometry = MaskGeometry(canvas_size=size, scaled_size=(size, size), original_size=(size, size))
    return {"class_logits": class_logits, "mask_logits": mask_logits, "geometry": geometry, "num_conditions": 2}


@pytest.mark.parametrize("task", PANOPTIC_TASKS)
def test_panoptic_rows_are_one_a_thing_and_one_for_all_of_a_stuff(task: Task) -> None:
    from actors.predictor.conversations import Conversation

    squares = [(slice(0, 20), slice(a, a + 20)) for a in (0, 40)] + [(slice(40, 60), slice(a, a + 20)) for a in (0, 40)]
    prompts = tuple(
        dataclasses.replace(sentence(task, name, number), is_thing=name == "dog")
        for number, name in enumerate(["dog", "sky"])
    )
    found = list(
        find_masks(
            task, decode_of(squares, [0, 0, 1, 1]), Conversation(image=0, prompts=prompts),
            min_score=0.05, max_chunk_pixels=2**20,
        )
    )  # fmt: skip
    assert [(mask.prompt.text, mask.prompt.is_thing, mask.area) for mask in found] == [
        ("dog", True, 400), ("dog", True, 400), ("sky", False, 800),
    ]  # fmt: skip
    assert (sum(dense(mask.segmentation).astype(int) for mask in found) <= 1).all()
    assert all(mask.score > 0.9 and mask.mask_score is not None and mask.mask_score > 0.9 for mask in found)


def say(predictor: XSamPredictor, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make the model answer this."""
    tokenizer, generate = predictor.segmenter.processor.tokenizer, predictor.segmenter.model.generate
    answer = tokenizer.encode(f"{text}<|end|>", add_special_tokens=False)

    def forced(**arguments: Any) -> Any:
        return generate(**arguments, logits_processor=force(*[answer] * len(arguments["input_ids"])))

    monkeypatch.setattr(predictor.segmenter.model, "generate", forced)


def test_a_caption_grounds_its_phrases_one_mask_each(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(max_new_tokens=200)
    say(predictor, monkeypatch, "<p>Ein Hund</p> über <p>dem Gras</p>. <SEG>")
    (answer,) = predictor.predict(IMAGES[:1], [[CAPTION]])
    (caption,) = answer.captions
    assert (caption.prompt, caption.text) == (CAPTION, "Ein Hund über dem Gras.")
    assert [caption.text[phrase.start : phrase.end] for phrase in caption.phrases] == ["Ein Hund", "dem Gras"]
    found = sorted((m.prompt.category_id, m.prompt.category_name, m.prompt.text) for m in answer.masks)
    assert found == [(0, "Ein Hund", "Ein Hund"), (1, "dem Gras", "dem Gras")]
    assert {(m.prompt.prompt_id, m.prompt.task) for m in answer.masks} == {("gcgseg:caption", "gcgseg")}


@pytest.mark.parametrize(
    ("text", "masks", "said"),
    [
        ("It is round. It is <SEG>.", 1, "It is round."),
        ("There is nothing of that kind.", 0, "There is nothing of that kind."),
        ("It is <SEG>.", 1, None),
        ("<p>A cat</p> and <p>a dog</p> <SEG>.", 1, "A cat and a dog ."),
    ],
)
def test_an_explanation_is_words_beside_one_mask(
    load: Any, monkeypatch: pytest.MonkeyPatch, text: str, masks: int, said: str | None
) -> None:
    predictor, why = load(max_new_tokens=200), sentence("reaseg", "What is round?", 3, explain=True)
    say(predictor, monkeypatch, text)
    (answer,) = predictor.predict(IMAGES[:1], [[why]])
    assert [mask.prompt for mask in answer.masks] == [why] * masks
    assert [caption.text for caption in answer.captions] == ([said] if said else [])


def test_an_answer_in_words_ends_after_so_many_tokens(load: Any) -> None:
    # Each token of the untrained model is one byte.
    for limit in (1, 5):
        (answer,) = load(max_new_tokens=limit).predict(IMAGES[:1], [[CAPTION, sentence("chat", "Why?")]])
        assert all(len(caption.text) <= limit for caption in answer.captions)


def test_empty_masks_are_never_rows(load: Any) -> None:
    predictor = load(min_score=0.0, max_masks_per_image=1000)
    for answer in predictor.predict(IMAGES, [EVERYTHING] * len(IMAGES)):
        assert answer.masks
        assert min(mask.area for mask in answer.masks) > 0


def test_a_higher_floor_leaves_out_rows_and_changes_none(predictor: XSamPredictor, load: Any) -> None:
    asked = [prompt for prompt in EVERYTHING if prompt.task not in ("gcgseg", "chat") and not prompt.explain]
    strict = load(min_score=0.5)
    for low, high in zip(predictor.predict(IMAGES, [asked] * 3), strict.predict(IMAGES, [asked] * 3), strict=True):
        # Of a task that finds more than its share, the best are kept either way.
        assert [mask for mask in low.masks if mask.score >= 0.5] == list(high.masks)


@pytest.mark.parametrize("task", SENTENCE_TASKS)
@pytest.mark.parametrize(
    ("text", "reason"), [("word " * 1000, "text tokens, .* more than the [0-9]+ that fit"), ("a <p> b", "reserves")]
)
def test_a_sentence_of_a_table_that_cannot_be_asked_is_refused_by_row_and_the_rest_is_asked(
    predictor: XSamPredictor, task: Task, text: str, reason: str
) -> None:
    bad, good = sentence(task, text, source_row=4), sentence(task, "the dog", 1, source_row=5)
    first, second = predictor.predict(IMAGES[:2], [[bad, good], [bad]])
    for answer, picture in ((first, IMAGES[0]), (second, IMAGES[1])):
        (refused,) = answer.rejected
        assert (refused.row, refused.prompt_id, refused.image) == (4, bad.prompt_id, picture.ref.image_id)
        assert refused.reason.startswith(f"{task} '")
        assert re.search(reason, refused.reason)
    assert {found.prompt for found in (*first.masks, *first.captions)} == {good}
    assert (second.masks, second.captions) == ((), ())


@pytest.mark.parametrize("task", [*CATEGORY_TASKS, *SENTENCE_TASKS])
def test_prompts_of_every_image_that_do_not_fit_are_named_before_any_image(
    predictor: XSamPredictor, task: Task
) -> None:
    predictor.check(EVERYTHING)
    with pytest.raises(ValueError, match=rf"^{task} 'word word .*': .* more than the \d+ that fit beside an image"):
        predictor.check([EVERYTHING[-1], sentence(task, "word " * 1000)])
    with pytest.raises(ValueError, match="reserves"):
        predictor.check([sentence(task, "a <SEG> b")])


def test_sentences_of_a_table_are_tried_before_any_image_as_far_as_that_is_quick(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        sentence("refseg", text, source_row=row) for row, text in enumerate(["it", "a <p>", "word " * 1000, "</p>"])
    ]
    reasons = check_model(PredictorConfig(path=str(model_folder)), [], rows)
    assert sorted(reasons) == [1, 2, 3]
    assert "reserves" in reasons[1]
    assert "more than the" in reasons[2]
    monkeypatch.setattr("actors.predictor.model_check.MAX_TRIED", 2)
    assert list(check_model(PredictorConfig(path=str(model_folder)), [], rows)) == [1]


def test_regions_of_both_tasks_that_cannot_be_drawn_are_refused_by_row(predictor: XSamPredictor) -> None:
    outside = (500.0, 500.0, 5.0, 5.0)
    bad = [dataclasses.replace(region(task, f"bad-{task}", outside), source_row=3) for task in ("vgdseg", "intseg")]
    (answer,) = predictor.predict(IMAGES[:1], [[*bad, region("intseg", "good")]])
    assert {mask.prompt.prompt_id for mask in answer.masks} == {"good"}
    assert sorted((r.row, r.prompt_id) for r in answer.rejected) == [(3, "bad-intseg"), (3, "bad-vgdseg")]


def test_a_model_that_looks_closer_answers_regions_in_their_windows_and_encodes_no_whole_image(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load()
    monkeypatch.setattr(predictor.segmenter.model.config, "interactive_zoom", 1.5)
    encode, calls = predictor.segmenter.model.encode_images, []
    monkeypatch.setattr(predictor.segmenter.model, "encode_images", lambda *a: calls.append(len(a[0])) or encode(*a))
    picture, asked = image(300, 200, 4), [region("intseg", "a", (100, 60, 60, 40)), region("intseg", "b")]
    (answer,) = predictor.predict([picture], [asked])
    assert calls == [1, 1]  # one window of each box, as many at once as there are images
    boxes = [draw_box(one.region.coordinates, picture.size_hw) for one in asked if one.region]
    (result,) = predictor.segmenter.segment([picture.pixels], task="intseg", visual_prompts=[boxes])
    expected = {prompt.prompt_id: mask for prompt, mask in zip(asked, result.segmentation.masks.numpy(), strict=True)}
    assert {mask.prompt.prompt_id for mask in answer.masks} == {name for name, mask in expected.items() if mask.any()}
    assert_valid(answer, asked, picture)
    drawn = {prompt.prompt_id: box for prompt, box in zip(asked, boxes, strict=True)}
    for mask in answer.masks:
        assert (dense(mask.segmentation) == expected[mask.prompt.prompt_id]).all()
        assert not (dense(mask.segmentation) & ~drawn[mask.prompt.prompt_id]).any()


@pytest.mark.parametrize("zoom", [None, 1.5])
def test_min_score_counts_calibrated_scores(load: Any, monkeypatch: pytest.MonkeyPatch, zoom: float | None) -> None:
    predictor = load(min_score=0.0)
    monkeypatch.setattr(predictor.segmenter.model.config, "interactive_zoom", zoom)
    asked = [sentence("refseg", "the left one", "a"), region("vgdseg", "b"), region("intseg", "c")]
    (plain,) = predictor.predict(IMAGES[:1], [asked])
    calibration = ScoreCalibration(temperature=0.5, offset=-1.0)
    settings = {task: {"temperature": 0.5, "offset": -1.0} for task in ("refseg", "vgdseg", "intseg")}
    monkeypatch.setattr(predictor.segmenter.model.config, "score_calibration", settings)
    scores = {
        (mask.prompt.task, mask.segmentation.counts): calibration.of(torch.tensor(mask.score)).item()
        for mask in plain.masks
    }
    least = sorted(scores.values())[len(scores) // 2]
    monkeypatch.setattr(predictor, "_config", predictor._config.model_copy(update={"min_score": least - 1e-6}))
    (answer,) = predictor.predict(IMAGES[:1], [asked])
    found = {(mask.prompt.task, mask.segmentation.counts): mask.score for mask in answer.masks}
    assert found == pytest.approx({key: score for key, score in scores.items() if score >= least}, abs=1e-5)
    assert 0 < len(found) < len(scores)


BOX_OF_EXEMPLAR = Region(kind="box", coordinates=(5.0, 5.0, 30.0, 20.0))


def shown_by(*exemplars: tuple[int, Region], label: str = "thing") -> Prompt:
    return Prompt(
        prompt_id=f"vgdseg:{label}", task="vgdseg", text=label, category_id=7, category_name=label,
        exemplars=tuple(Exemplar(image_sha256=str(place), region=drawn) for place, drawn in exemplars),
    )  # fmt: skip


def studied(load: Any, *prompts: Prompt, **settings: Any) -> XSamPredictor:
    predictor: XSamPredictor = load(**settings)
    places = sorted({exemplar.image_sha256 for prompt in prompts for exemplar in prompt.exemplars})
    predictor.study(prompts, ((place, IMAGES[int(place)]) for place in places))
    return predictor


def test_an_exemplar_is_asked_of_its_own_image_as_its_region_is(load: Any) -> None:
    asked = shown_by((0, BOX_OF_EXEMPLAR))
    predictor = studied(load, asked)
    (lent,), (own,) = (predictor.predict(IMAGES[:1], [[prompt]]) for prompt in (asked, region("vgdseg", "own")))
    assert lent.masks
    assert [(m.score, m.segmentation) for m in lent.masks] == [(m.score, m.segmentation) for m in own.masks]
    assert {(m.prompt.prompt_id, m.prompt.category_name) for m in lent.masks} == {("vgdseg:thing", "thing")}


def test_the_image_of_exemplars_is_encoded_once_however_many_images_are_asked(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Region(kind="point", coordinates=(20.0, 20.0))
    asked = [shown_by((0, BOX_OF_EXEMPLAR), (0, other), (1, other)), shown_by((0, other), label="other")]
    encoded: list[int] = []
    real = XSamSegmenter.encode
    monkeypatch.setattr(
        XSamSegmenter,
        "encode",
        lambda self, images, **options: encoded.append(len(images)) or real(self, images, **options),
    )
    predictor = studied(load, *asked)
    assert encoded == [1, 1]
    for _ in range(3):
        answers = predictor.predict(IMAGES, [asked] * 3)
        assert len(answers) == 3
    assert encoded == [1, 1, 3, 3, 3]


def test_exemplars_share_the_conversation_of_an_images_own_regions(load: Any) -> None:
    asked, own = shown_by((1, BOX_OF_EXEMPLAR)), region("vgdseg", "own")
    predictor = studied(load, asked, min_score=0.0)
    (both,) = predictor.predict(IMAGES[:1], [[asked, own]])
    (turned,) = predictor.predict(IMAGES[:1], [[own, asked]])
    assert {mask.prompt.prompt_id for mask in both.masks} <= {"vgdseg:thing", "own"}
    assert len(both.masks) == len(turned.masks) == MAX_MASKS
    (alone,) = predictor.predict(IMAGES[:1], [[asked]])
    # What competes for a mask shares its score.
    assert [mask.score for mask in alone.masks] != [mask.score for mask in both.masks]


def test_a_region_of_an_image_that_cannot_be_drawn_costs_an_exemplar_nothing(load: Any) -> None:
    asked, outside = shown_by((1, BOX_OF_EXEMPLAR)), region("vgdseg", "outside", (500.0, 500.0, 5.0, 5.0))
    predictor = studied(load, asked)
    (answer,) = predictor.predict(IMAGES[:1], [[outside, asked]])
    assert [rejected.prompt_id for rejected in answer.rejected] == ["outside"]
    assert {mask.prompt.prompt_id for mask in answer.masks} == {"vgdseg:thing"}


def test_exemplars_are_together_what_their_order_does_not_change(load: Any) -> None:
    one, other = (0, BOX_OF_EXEMPLAR), (1, BOX_OF_EXEMPLAR)
    asked, turned = shown_by(one, other), shown_by(other, one)
    predictor = studied(load, asked, turned)
    (first,), (second,) = (predictor.predict(IMAGES[2:], [[prompt]]) for prompt in (asked, turned))
    assert [m.segmentation for m in first.masks] == [m.segmentation for m in second.masks]
    (single,) = studied(load, shown_by(one)).predict(IMAGES[2:], [[shown_by(one)]])
    assert [m.score for m in single.masks] != [m.score for m in first.masks]


def test_more_labels_of_exemplars_than_fit_into_a_conversation_are_refused_before_it_is_loaded(
    model_folder: Path,
) -> None:
    asked = [shown_by((0, BOX_OF_EXEMPLAR), label=f"thing {number}") for number in range(2000)]
    with pytest.raises(ValueError, match=r"vgdseg: 2000 conditions make .* the first \d+ fit"):
        check_model(PredictorConfig(path=str(model_folder)), asked)
