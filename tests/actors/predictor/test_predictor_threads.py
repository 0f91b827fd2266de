"""One network, several threads: while it computes one batch, another is prepared or read out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.predictor.config import PredictorConfig
from actors.predictor.predictor import XSamPredictor
from pipelines.types import Answer, Image, ImageRef, Prompt, Region
from tests.support.fakes import text_prompt
from xsam_model.testing import save_untrained

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def _batch(number: int) -> tuple[list[Image], list[list[Prompt]]]:
    rng = np.random.default_rng(number)
    sizes = [(70 + 10 * number, 90), (64, 101)]
    images = [
        Image(
            ref=ImageRef(image_id=f"{number}-{size}", uri="/x"), pixels=rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        )
        for size in sizes
    ]
    box = Region(kind="box", coordinates=(5.0, 5.0, 30.0, 20.0))
    visual = Prompt(prompt_id="box", task="vgdseg", text="box", category_id=0, category_name="thing", region=box)
    return images, [[text_prompt("cat", 0), text_prompt("dog", 1)], [text_prompt("cup", 0), visual]]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_answers_are_those_of_one_thread(device: str, tmp_path: Path) -> None:
    save_untrained(tmp_path)
    predictor = XSamPredictor(PredictorConfig(path=str(tmp_path), device=device, dtype="float32"))  # type: ignore[arg-type]
    batches = [_batch(number) for number in range(8)]
    alone = [predictor.predict(*batch) for batch in batches]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda batch: predictor.predict(*batch), batches))
    assert [_masks(answers) for answers in together] == [_masks(answers) for answers in alone]
    assert all(answer.masks for answers in alone for answer in answers)


def _masks(answers: list[Answer]) -> list[list[tuple[str, str]]]:
    return [[(mask.prompt.prompt_id, mask.segmentation.counts) for mask in answer.masks] for answer in answers]
