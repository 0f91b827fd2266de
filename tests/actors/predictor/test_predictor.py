"""The seam between network and data, on a tiny X-SAM with real arithmetic."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from actors.predictor.config import PredictorConfig
from actors.predictor.model_check import check_model
from actors.predictor.predictor import XSamPredictor
from pipelines.masks import rle
from pipelines.types import Image, ImageRef, PredictionError, Prompt, Reason, Region, ReplicaUnusable
from tests.support.fakes import text_prompt
from xsam_model.testing import save_untrained

CAT, DOG, CUP = (text_prompt(name, number) for number, name in enumerate(["cat", "dog", "cup"]))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> XSamPredictor:
    return XSamPredictor(PredictorConfig(path=str(model_folder), min_score=0.02, max_masks_per_image=12))


def _image(width: int, height: int, seed: int) -> Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((height // 4 + 1, width // 4 + 1, 1), dtype=np.uint8))[:height, :width]
    return Image(ref=ImageRef(image_id=f"img-{seed}", uri="/x"), pixels=np.ascontiguousarray(pixels))


def _region(prompt_id: str, kind: str, coordinates=(), mask=None, row: int = 0) -> Prompt:
    region = Region(kind=kind, coordinates=coordinates, mask=mask)
    return Prompt(
        prompt_id=prompt_id, task="vgdseg", text=kind, category_id=0, category_name=prompt_id, region=region,
        source_row=row,
    )  # fmt: skip


def test_masks_have_their_images_size_and_agree_with_pycocotools(predictor: XSamPredictor) -> None:
    images = [_image(90, 60, 1), _image(48, 111, 2)]
    answers = predictor.predict(images, [[CAT, DOG], [CUP]])
    assert all(answer.masks for answer in answers)
    for image, answer in zip(images, answers, strict=True):
        assert len(answer.masks) <= 12
        for mask in answer.masks:
            coco = mask.segmentation.to_coco()
            assert tuple(coco["size"]) == image.size_hw == coco_mask.decode(coco).shape
            assert mask.area == coco_mask.area(coco) > 0
            assert list(mask.bbox_xywh) == coco_mask.toBbox(coco).tolist()
            assert 0.02 <= mask.score <= mask.mask_score <= 1
    assert {mask.prompt.prompt_id for mask in answers[1].masks} == {"ovseg:cup"}


def test_a_mixed_batch_answers_as_one_by_one(predictor: XSamPredictor) -> None:
    images = [_image(90, 60, 1), _image(48, 111, 2), _image(64, 64, 3)]
    asked = [[CAT, DOG], [CUP], [CAT, _region("box", "box", (5.0, 5.0, 30.0, 20.0))]]
    together = predictor.predict(images, asked)
    for image, prompts, answer in zip(images, asked, together, strict=True):
        (alone,) = predictor.predict([image], [prompts])
        assert len(alone.masks) == len(answer.masks)
        for one, other in zip(alone.masks, answer.masks, strict=True):
            assert one.prompt == other.prompt
            assert one.score == pytest.approx(other.score, abs=5e-4)
            assert rle.iou([one.segmentation], [other.segmentation])[0, 0] > 0.99


@pytest.mark.parametrize(
    "region",
    [
        _region("p", "point", (20.0, 20.0)),
        _region("p", "box", (10.0, 10.0, 30.0, 20.0)),
        _region("p", "scribble", (10.0, 10.0, 30.0, 30.0, 50.0, 20.0)),
        _region("p", "polygon", (10.0, 10.0, 60.0, 10.0, 30.0, 50.0)),
        _region("p", "mask", mask=rle.encode(np.eye(60, 90, dtype=bool))),
    ],
    ids=lambda prompt: prompt.region.kind,
)
def test_every_kind_of_region_is_asked(predictor: XSamPredictor, region: Prompt) -> None:
    (answer,) = predictor.predict([_image(90, 60, 1)], [[region]])
    assert answer.masks
    assert {mask.prompt for mask in answer.masks} == {region}
    assert answer.rejected == ()


def test_a_region_that_cannot_be_drawn_is_refused_by_row_and_the_others_are_asked(predictor: XSamPredictor) -> None:
    good = _region("good", "box", (5.0, 5.0, 30.0, 20.0), row=1)
    bad = _region("bad", "mask", mask=rle.encode(np.zeros((60, 90), dtype=bool)), row=2)
    (answer,) = predictor.predict([_image(90, 60, 1)], [[good, bad]])
    assert {mask.prompt.prompt_id for mask in answer.masks} == {"good"}
    assert [(r.row, r.prompt_id) for r in answer.rejected] == [(2, "bad")]


def test_two_processes_worth_of_loading_gives_the_same_masks(model_folder: Path, predictor: XSamPredictor) -> None:
    again = XSamPredictor(PredictorConfig(path=str(model_folder), min_score=0.02, max_masks_per_image=12))
    image = _image(90, 60, 1)
    assert again.predict([image], [[CAT]]) == predictor.predict([image], [[CAT]])
    assert again.describe() == predictor.describe()
    assert len(again.describe()["weights_sha256"]) == 64


def test_out_of_memory_has_its_own_reason(predictor: XSamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(predictor.segmenter.model, "forward", full)
    with pytest.raises(PredictionError, match="no room") as caught:
        predictor.predict([_image(32, 32, 1)], [[CAT]])
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_scores_that_are_not_finite_have_their_own_reason(
    predictor: XSamPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = predictor.segmenter.model.forward

    def broken(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.class_logits[0, 0, 0] = float("nan")
        return outputs

    monkeypatch.setattr(predictor.segmenter.model, "forward", broken)
    with pytest.raises(PredictionError) as caught:
        predictor.predict([_image(32, 32, 1)], [[CAT]])
    assert caught.value.reason is Reason.NON_FINITE_SCORES


def test_a_cuda_error_ends_the_replica_instead_of_blaming_the_images(
    predictor: XSamPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(predictor.segmenter.model, "forward", broken)
    with pytest.raises(ReplicaUnusable, match="illegal memory access"):
        predictor.predict([_image(32, 32, 1)], [[CAT]])


def test_more_categories_than_the_text_holds_are_refused_before_any_image(predictor: XSamPredictor) -> None:
    predictor.check([CAT, DOG])
    many = [text_prompt(f"a category with a long name, number {n}", n) for n in range(2000)]
    predictor.check(many)  # in several conversations
    # One label for every pixel: all of them compete.
    with pytest.raises(ValueError, match=r"the first .* fit"):
        predictor.check([replace(prompt, task="ovseg_semantic") for prompt in many])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_asking_for_a_gpu_that_is_not_there_says_so(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        XSamPredictor(PredictorConfig(path=str(model_folder), device="cuda"))


@pytest.mark.parametrize(
    "values",
    [
        {"path": ""},
        {"path": "x", "min_score": 1.0},
        {"path": "x", "max_masks_per_image": 0},
        {"path": "x", "max_masks_per_image": 10**5},
    ],
)
def test_impossible_settings_are_refused(values) -> None:
    with pytest.raises(ValueError, match=r"allowed|empty"):
        PredictorConfig(**values)


def test_weights_that_are_cut_short_or_missing_are_found_without_loading_them(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = PredictorConfig(path=str(folder))
    check_model(config, [CAT])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is cut short or damaged"):
        check_model(config, [CAT])
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors"):
        check_model(config, [CAT])


class Program:
    """What a pickle of weights may hold: opening it runs something."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_programs_in_a_model_folder_are_not_run_whatever_it_says_of_them(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    program = f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\nclass Own: pass\n"
    (folder / "own.py").write_text(program)
    kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
    for file in folder.glob("*.json"):
        if "config" in file.name:
            file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": dict.fromkeys(kinds, "own.Own")}))
    config = PredictorConfig(path=str(folder))
    check_model(config, [CAT])
    XSamPredictor(config)
    assert not (tmp_path / "trace").exists()


def test_weights_that_are_a_program_are_not_opened(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Program(tmp_path / "trace")}, folder / "pytorch_model.bin")
    config = PredictorConfig(path=str(folder))
    with pytest.raises(OSError, match=r"no \*\.safetensors"):
        check_model(config, [CAT])
    with pytest.raises(OSError, match="safetensors"):
        XSamPredictor(config)
    assert not (tmp_path / "trace").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "trace").exists()
