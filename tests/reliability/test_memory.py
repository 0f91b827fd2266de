"""What a replica holds does not grow with what it has labeled, nor with the masks of a large image."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import large_image, memory_curve
from pipelines.labeling.isolation import ModelClock, ask
from pipelines.labeling.shard import LabelConfig, LabelJob, label_images
from pipelines.types import Answer, Image, ImageRef, Prompt
from tests.reliability.small_run import LONG
from tests.support.fakes import BrightPredictor, png, text_prompt

BRIGHT = text_prompt("bright")


@pytest.mark.timeout(400)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="free memory is given back by a call of glibc")
def test_memory_stays_flat_over_thousands_of_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leak of one decoded image in a hundred would show: over half of the images it adds up to twice the bound."""
    # One heap for all threads, and for Arrow: what allocators keep in several is far more than a leak would be.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")
    count = 20_000 if LONG else 2_000
    curve = memory_curve.measure(memory_curve.FAKE, count, settle_every=2)
    grown = curve.quarter(3) - curve.quarter(1)
    leak = memory_curve.decoded_mb() * count / 2 / 100
    assert grown < leak / 2
    with capsys.disabled():
        print(
            f"\n{count:,} images: {curve.quarter(1):.1f} MB in the second quarter, {curve.quarter(3):.1f} in the last"
        )


@pytest.mark.timeout(400)
def test_a_hundred_masks_of_a_large_image_take_no_more_memory_than_ten(capsys: pytest.CaptureFixture[str]) -> None:
    width, height = (12_000, 9_000) if LONG else (3_000, 2_250)
    ten, many = (large_image.measure((width, height), count) for count in (10, 100))
    assert (ten.masks, many.masks) == (10, 100)
    # A third of what the ninety more would take as bool masks; as logits they would take four times as much.
    most_mb = ten.over_mb + 90 * width * height / 1e6 / 3
    # The allocator keeps up to 150 MB of what is freed, as chance will have it: the least of three shows what is held.
    for _ in range(2):
        if many.over_mb >= most_mb:
            many = min(many, large_image.measure((width, height), 100), key=lambda case: case.over_mb)
    assert many.over_mb < most_mb
    with capsys.disabled():
        print(f"\n{ten.name}: {ten.over_mb:.0f} MB over the image; {many.name}: {many.over_mb:.0f} MB")


def test_images_are_let_go_as_soon_as_they_are_answered() -> None:
    """Without waiting for the garbage collector, which seldom comes where few objects are made."""
    images = [Image(ref=ImageRef(image_id=f"{n}", uri="/x"), pixels=np.zeros((8, 8, 3), np.uint8)) for n in range(3)]
    alive = [weakref.ref(image.pixels) for image in images]
    ask(images, [[BRIGHT]] * 3, BrightPredictor(), ModelClock())
    images.clear()
    assert [pixels() for pixels in alive] == [None] * 3


class Counting(BrightPredictor):
    """Notes the bytes of pixels in each call."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        self.most = max(getattr(self, "most", 0), sum(image.pixels.nbytes for image in images))
        return super().predict(images, prompts)


def test_a_batch_of_large_images_ends_where_the_bytes_do(tmp_path: Path) -> None:
    refs = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png(np.full((100, 100, 3), number, np.uint8)))
        refs.append(ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size))
    config = LabelConfig(batch_size=8, max_bytes_ahead=70_000)
    predictor = Counting()
    outcomes = label_images(refs, LabelJob(run_id="r", prompts=(BRIGHT,), config=config), predictor, ModelClock())
    assert [outcome.ref for outcome in outcomes] == refs
    assert [len(call) for call in predictor.calls] == [3, 3, 3, 1]
    assert predictor.most == 90_000
