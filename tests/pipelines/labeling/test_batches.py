from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.labeling.batches import order_by_text
from pipelines.labeling.shard import LabelConfig, LabelJob, label_shard
from pipelines.storage.store import Store
from pipelines.table.reader import open_table
from pipelines.types import ImageRef
from tests.support.fakes import BrightPredictor, sentence, text_prompt, write_images
from tests.support.labeled import plan_run

MANY = tuple(text_prompt(f"thing of the kind number {number:04d}") for number in range(60))
ONE = (MANY[0].prompt_id,)


def _ref(number: int, *, few: bool = False, own: int = 0) -> ImageRef:
    prompts = tuple(sentence("refseg", f"what is {'very ' * 60}far", row) for row in range(own))
    return ImageRef(image_id=f"{number:04d}", uri="u", common=ONE if few else None, prompts=prompts)


def test_images_that_are_asked_the_same_stay_in_order() -> None:
    assert order_by_text([_ref(number) for number in range(9)], MANY) == list(range(9))
    nearly = [replace(_ref(number), prompts=(sentence("refseg", "x" * number),)) for number in range(9)]
    assert order_by_text(nearly, ()) == list(range(9)), "a few characters are not worth another order"


def test_images_with_little_text_come_before_those_with_much() -> None:
    images = [_ref(0), _ref(1, few=True), _ref(2, own=2), _ref(3, few=True), _ref(4)]
    assert order_by_text(images, MANY) == [1, 3, 0, 4, 2]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3))))
def test_every_image_has_one_place(asked) -> None:
    images = [_ref(number, few=few, own=own) for number, (few, own) in enumerate(asked)]
    assert sorted(order_by_text(images, MANY)) == list(range(len(images)))


def test_batches_hold_images_of_like_texts_and_rows_are_in_planned_order(store: Store, tmp_path: Path) -> None:
    refs = [
        replace(ref, common=ONE if number % 2 else None) for number, ref in enumerate(write_images(tmp_path / "in", 8))
    ]
    _, (shard,) = plan_run(store, "run-1", refs)
    predictor = BrightPredictor()
    job = LabelJob(run_id="run-1", prompts=MANY, config=LabelConfig(batch_size=2))
    label_shard(shard, job=job, store=store, predictor=predictor, attempt="d-0")
    odd, even = ["0001.png", "0003.png", "0005.png", "0007.png"], ["0000.png", "0002.png", "0004.png", "0006.png"]
    assert predictor.calls == [odd[:2], odd[2:], even[:2], even[2:]]
    rows = open_table(store, "images").to_table().to_pylist()
    assert [row["image_id"] for row in rows] == [ref.image_id for ref in refs]
    assert [len(row["per_prompt"]) for row in rows] == [60, 1] * 4
