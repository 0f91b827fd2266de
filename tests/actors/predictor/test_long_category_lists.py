"""More categories than one conversation holds: several share the image, and find no mask twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from actors.predictor.config import PredictorConfig
from actors.predictor.conversations import Ask, check_prompts, cut
from actors.predictor.predictions import without_doubles
from actors.predictor.predictor import XSamPredictor
from pipelines.masks import rle
from pipelines.types import Image, ImageRef, MaskPrediction, Prompt
from tests.support.fakes import text_prompt
from xsam_model.testing import save_untrained

NAMES = tuple(text_prompt(f"thing {number:03}", number) for number in range(40))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XSamPredictor]:
    """One whose text holds about a third of the names."""
    folder = save_untrained(tmp_path_factory.mktemp("model"))
    predictor = XSamPredictor(PredictorConfig(path=str(folder), min_score=0.0, max_masks_per_image=5000))
    predictor.segmenter.processor.max_text_length = 350
    return predictor


def image(seed: int = 1) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image(ref=ImageRef(image_id=f"img-{seed}", uri="/x"), pixels=pixels)


def found(predictor: XSamPredictor, *prompts: Prompt) -> dict[tuple[str, str], float]:
    (answer,) = predictor.predict([image()], [list(prompts)])
    return {(mask.prompt.prompt_id, mask.segmentation.counts): mask.score for mask in answer.masks}


def test_all_categories_are_asked_in_even_parts_in_order(predictor: XSamPredictor) -> None:
    parts = cut(predictor.segmenter.processor, Ask("ovseg", False), NAMES)
    assert [prompt for part in parts for prompt in part] == list(NAMES)
    assert len(parts) >= 3
    assert max(map(len, parts)) - min(map(len, parts)) <= len(parts)
    check_prompts(predictor.segmenter.processor, NAMES)


def test_what_fits_is_not_cut(predictor: XSamPredictor) -> None:
    assert cut(predictor.segmenter.processor, Ask("ovseg", False), NAMES[:5]) == (NAMES[:5],)


def test_a_long_list_finds_what_its_parts_find_without_doubles(predictor: XSamPredictor) -> None:
    parts = cut(predictor.segmenter.processor, Ask("ovseg", False), NAMES)
    together, apart = found(predictor, *NAMES), [found(predictor, *part) for part in parts]
    union = {key: score for part in apart for key, score in part.items()}
    assert together.keys() <= union.keys()
    for key, score in together.items():
        assert score == pytest.approx(union[key], abs=1e-4)
    names = [{prompt.prompt_id for prompt in part} for part in parts]
    assert all(any(prompt_id in part for prompt_id, _ in together) for part in names)
    best_of_each = [max(part.values()) for part in apart]
    assert max(together.values()) == pytest.approx(max(best_of_each), abs=1e-4)
    kept = [(key[0], rle.Rle((60, 90), key[1])) for key in together]
    for place, (prompt_id, mask) in enumerate(kept):
        others = [other for name, other in kept[:place] if all({name, prompt_id} - part for part in names)]
        assert not others or rle.iou([mask], others).max() < 0.8


def test_a_name_that_alone_is_too_long_is_refused(predictor: XSamPredictor) -> None:
    with pytest.raises(ValueError, match="fit beside an image"):
        check_prompts(predictor.segmenter.processor, [*NAMES, text_prompt("x" * 600, 40)])


def test_names_that_are_written_alike_are_refused_however_far_apart(predictor: XSamPredictor) -> None:
    with pytest.raises(ValueError, match=r"'thing 000', 'Thing-000-other' are all written 'thing 000'"):
        check_prompts(predictor.segmenter.processor, [*NAMES, text_prompt("Thing-000-other", 40)])


def test_one_label_for_every_pixel_is_not_cut(predictor: XSamPredictor) -> None:
    whole = tuple(Prompt(prompt_id=p.prompt_id, task="ovseg_semantic", text=p.text, category_id=p.category_id,
                         category_name=p.text) for p in NAMES)  # fmt: skip
    with pytest.raises(ValueError, match="40 conditions make"):
        check_prompts(predictor.segmenter.processor, whole)


def mask(name: str, score: float, columns: slice) -> MaskPrediction:
    pixels = np.zeros((10, 20), np.bool_)
    pixels[:, columns] = True
    encoded = rle.encode(pixels)
    return MaskPrediction(
        prompt=text_prompt(name), score=score, mask_score=1.0, segmentation=encoded,
        bbox_xywh=rle.bbox_xywh(encoded), area=rle.area(encoded),
    )  # fmt: skip


def test_of_a_mask_that_two_conversations_find_the_better_one_stays() -> None:
    parts = {"ovseg:cat": 0, "ovseg:dog": 1, "ovseg:cow": 1}
    masks = [
        mask("cat", 0.9, slice(0, 10)),
        mask("dog", 0.8, slice(0, 11)),  # the cat again
        mask("cow", 0.7, slice(0, 6)),  # another thing: too little in common
        mask("dog", 0.6, slice(12, 20)),
        mask("cow", 0.5, slice(12, 20)),  # the same conversation knows better
        mask("cat", 0.4, slice(12, 20)),
    ]
    kept = without_doubles(masks[::-1], parts)
    assert [(m.prompt.text, m.score) for m in kept] == [("cat", 0.9), ("cow", 0.7), ("dog", 0.6), ("cow", 0.5)]
    assert without_doubles([], parts) == []
