"""label_shard end to end on a fake model whose answers can be worked out by eye."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from pycocotools import mask as coco_mask

from pipelines.images.decode import DecodeLimits
from pipelines.labeling import shard as label
from pipelines.labeling.isolation import ModelClock, ask
from pipelines.labeling.shard import LabelConfig, LabelJob, label_shard
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import read_commit
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from pipelines.types import (
    Answer,
    Image,
    ImageRef,
    PredictionError,
    Prompt,
    Reason,
    Region,
    RejectedPrompt,
    Shard,
)
from tests.support.fakes import SPOKEN, SPOT, BrightPredictor, half_bright, png, sentence, text_prompt, write_images
from tests.support.labeled import plan_run
from tests.support.odd_pictures import odd_pictures

RUN = "run-1"
BRIGHT = text_prompt("bright")
REFUSED = [
    RejectedPrompt(row=row, prompt_id=prompt_id, image="0000.png", reason="no")
    for row, prompt_id in [(1, "lost"), (2, "late")]
]


def _label(store: Store, refs: Sequence[ImageRef], predictor, prompts=(BRIGHT,), **config) -> Shard:
    _, (shard,) = plan_run(store, RUN, refs)
    job = LabelJob(run_id=RUN, prompts=tuple(prompts), config=LabelConfig(**config))
    label_shard(shard, job=job, store=store, predictor=predictor, attempt="d-0")
    return shard


def _images(store: Store) -> dict[str, dict]:
    return {row["image_id"]: row for row in open_table(store, "images").to_table().to_pylist()}


def test_every_mask_decodes_to_what_the_model_saw(store: Store, tmp_path: Path) -> None:
    refs = write_images(tmp_path / "photos", 7)
    _label(store, refs, BrightPredictor(), batch_size=3)
    images = _images(store)
    assert set(images) == {ref.image_id for ref in refs}
    for row in open_table(store, "annotations").to_table().to_pylist():
        image, segmentation = images[row["image_id"]], row["segmentation"]
        columns = 1 + int(row["image_id"][:4]) % 9
        mask = coco_mask.decode(segmentation)
        assert mask.shape == (image["height"], image["width"])
        assert (mask[:, :columns] == 1).all()
        assert (mask[:, columns:] == 0).all()
        assert row["area"] == coco_mask.area(segmentation) == columns * image["height"]
        box = [row[f"bbox_{side}"] for side in "xywh"]
        assert box == coco_mask.toBbox(segmentation).tolist() == [0, 0, columns, image["height"]]
        assert row["score"] == pytest.approx(columns / image["width"], abs=1e-6)
    assert verify(store, RUN).ok


def test_batches_hold_only_decoded_images_and_never_more_than_asked(store: Store, tmp_path: Path) -> None:
    refs = write_images(tmp_path, 7)
    (tmp_path / "0002.png").write_bytes(b"")
    refs[2] = dataclasses.replace(refs[2], num_bytes=0)
    predictor = BrightPredictor()
    _label(store, refs, predictor, batch_size=3)
    assert predictor.calls == [
        ["0000.png", "0001.png", "0003.png"],
        ["0004.png", "0005.png", "0006.png"],
    ]


def test_each_bad_image_is_a_row_with_its_reason_and_the_others_are_labeled(store: Store, tmp_path: Path) -> None:
    whole = png(half_bright())
    files = {
        "good.png": whole,
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.jpg": b"this is not a picture at all",
        "wide.png": png(half_bright(width=400, height=300)),
    }
    refs = [ImageRef(image_id="gone.png", uri=str(tmp_path / "gone.png"))]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        refs.append(ImageRef(image_id=name, uri=str(tmp_path / name), num_bytes=len(data)))
    limits = DecodeLimits(max_image_pixels=10_000)
    _label(store, refs, BrightPredictor(), decode=limits)
    images = _images(store)
    assert {name: (row["status"], row["reason"], row["stage"]) for name, row in images.items()} == {
        "good.png": ("ok", None, None),
        "cut.png": ("quarantined", "truncated", "decode"),
        "empty.png": ("quarantined", "zero_bytes", "decode"),
        "text.jpg": ("quarantined", "not_an_image", "decode"),
        "wide.png": ("quarantined", "too_many_pixels", "decode"),
        "gone.png": ("quarantined", "not_found", "fetch"),
    }
    assert all(row["error"] for row in images.values() if row["status"] == "quarantined")
    assert verify(store, RUN).ledger() == {"listed": 6, "ok": 1, "empty": 0, "not_asked": 0, "quarantined": 5}


def test_what_had_to_be_decided_to_see_a_picture_is_in_its_row(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "table"))
    names = ("16_bits.png", "no_end.jpg", "signed_no_data.tif", "of_an_app.png")
    odd = sorted((one for one in odd_pictures() if one.name in names), key=lambda one: one.name)
    for one in odd:
        (tmp_path / one.name).write_bytes(one.data)
    refs = [ImageRef(image_id=one.name, uri=str(tmp_path / one.name), num_bytes=len(one.data)) for one in odd]
    _label(store, refs, BrightPredictor())
    assert {name: (row["pixel_notes"], row["reason"]) for name, row in _images(store).items()} == {
        "16_bits.png": (None, None),
        "no_end.jpg": (["no_end_marker"], None),
        "of_an_app.png": (None, "unsupported_mode"),
        "signed_no_data.tif": (["stretched"], None),
    }
    assert verify(store, RUN).ok


def test_a_listed_size_over_the_limit_is_refused_without_a_fetch(store: Store) -> None:
    ref = ImageRef(image_id="huge", uri="/nowhere/huge.jpg", num_bytes=10**12)
    _label(store, [ref], BrightPredictor())
    assert _images(store)["huge"]["reason"] == "too_many_bytes"


class FailingOn(BrightPredictor):
    """Fails whenever a named image is in the batch."""

    def __init__(self, names: set[str], error: Exception) -> None:
        super().__init__()
        self._names, self._error = names, error

    def predict(self, images, prompts) -> list[Answer]:
        answers = super().predict(images, prompts)
        if self._names & {image.ref.image_id for image in images}:
            raise self._error
        return answers


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("boom"), "model_failed"),
        (PredictionError(Reason.OUT_OF_MEMORY, "no room"), "out_of_memory"),
        (PredictionError(Reason.NON_FINITE_SCORES, "nan"), "non_finite_scores"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_only_the_image_that_breaks_the_model_is_quarantined(
    store: Store, tmp_path: Path, error: Exception, reason: str
) -> None:
    refs = write_images(tmp_path, 8)
    _label(store, refs, FailingOn({"0005.png"}, error), batch_size=8)
    images = _images(store)
    assert {name for name, row in images.items() if row["status"] == "quarantined"} == {"0005.png"}
    assert (images["0005.png"]["reason"], images["0005.png"]["stage"]) == (reason, "model")
    assert images["0005.png"]["attempts"] == 4
    assert images["0005.png"]["width"] is not None
    assert images["0000.png"]["attempts"] == 2


def test_an_image_that_is_asked_nothing_costs_no_model_call(store: Store, tmp_path: Path) -> None:
    predictor = BrightPredictor()
    _label(store, write_images(tmp_path, 3), predictor, prompts=())
    assert predictor.calls == []
    assert {row["status"] for row in _images(store).values()} == {"not_asked"}
    assert verify(store, RUN).ledger() == {"listed": 3, "ok": 0, "empty": 0, "not_asked": 3, "quarantined": 0}


def test_an_image_all_of_whose_prompts_were_rejected_is_not_asked_and_not_empty(store: Store, tmp_path: Path) -> None:
    class Refusing(BrightPredictor):
        def predict(self, images, prompts) -> list[Answer]:
            return [
                Answer(rejected=tuple(RejectedPrompt.of(p, image.ref.image_id, "too long") for p in asked))
                for image, asked in zip(images, prompts, strict=True)
            ]

    refs = write_images(tmp_path, 2)
    refs[0] = dataclasses.replace(refs[0], prompts=(_box("outside", (500, 500, 5, 5), 4),))
    refs[1] = dataclasses.replace(refs[1], prompts=(sentence("refseg", "too long", source_row=5),))
    _label(store, refs, Refusing(), prompts=())
    assert {row["status"] for row in _images(store).values()} == {"not_asked"}
    assert [row["tasks"] for row in _images(store).values()] == [[], []]


def _box(prompt_id: str, coordinates: tuple[float, ...], row: int) -> Prompt:
    region = Region(kind="box", coordinates=coordinates)
    return Prompt(
        prompt_id=prompt_id, task="vgdseg", text="box", category_id=0, category_name="thing", region=region,
        source_row=row,
    )  # fmt: skip


def test_a_visual_prompt_outside_its_image_is_reported_by_row_and_the_rest_is_asked(
    store: Store, tmp_path: Path
) -> None:
    refs = write_images(tmp_path, 2)
    regions = (_box("inside", (1, 1, 5, 5), 3), _box("outside", (500, 500, 5, 5), 4))
    refs[1] = dataclasses.replace(refs[1], prompts=regions)
    shard = _label(store, refs, BrightPredictor())
    rows = open_table(store, "annotations").to_table().to_pylist()
    assert sorted((row["image_id"], row["prompt_id"], row["task"]) for row in rows) == [
        ("0000.png", "ovseg:bright", "ovseg"),
        ("0001.png", "inside", "vgdseg"),
        ("0001.png", "ovseg:bright", "ovseg"),
    ]
    (rejected,) = read_commit(store, RUN, shard.shard_id).rejected_prompts
    assert (rejected["row"], rejected["prompt_id"], rejected["image"]) == (4, "outside", "0001.png")
    assert "outside of its image, 21 x 13 pixels" in rejected["reason"]
    asked = {p["prompt_id"]: p for p in _images(store)["0001.png"]["per_prompt"]}
    assert asked["outside"]["rejected"] == rejected["reason"]
    assert asked["inside"]["rejected"] is None


def test_words_and_masks_of_every_kind_land_in_the_two_tables(store: Store, tmp_path: Path) -> None:
    refs = write_images(tmp_path, 2)
    refs[1] = dataclasses.replace(refs[1], prompts=(sentence("refseg", "the left one", source_row=5),))
    caption, why = sentence("gcgseg", "caption"), sentence("reaseg", "What is bright?", explain=True)
    sky = dataclasses.replace(sentence("ovseg_panoptic", "sky"), is_thing=False)
    _label(store, refs, BrightPredictor(), [sky, why, caption, sentence("chat", "What is dark?")])
    rows = [row for row in open_table(store, "annotations").to_table().to_pylist() if row["image_id"] == "0001.png"]
    assert sorted((row["task"], row["prompt"], row["category_name"], row["is_thing"]) for row in rows) == [
        ("gcgseg", SPOT, SPOT, None),
        ("ovseg_panoptic", "sky", "sky", False),
        ("reaseg", "What is bright?", "What is bright?", None),
        ("refseg", "the left one", "the left one", None),
    ]
    assert len({row["annotation_id"] for row in rows}) == len(rows)
    image = _images(store)["0001.png"]
    assert image["captions"] == [
        {"prompt_id": "reaseg:What is bright?", "task": "reaseg", "text": SPOKEN, "phrases": []},
        {"prompt_id": "gcgseg:caption", "task": "gcgseg", "text": SPOKEN,
         "phrases": [{"phrase": SPOT, "start": 11, "end": 22, "category_id": 0}]},
        {"prompt_id": "chat:What is dark?", "task": "chat", "text": "Nothing.", "phrases": []},
    ]  # fmt: skip
    assert {entry["prompt_id"]: entry["n"] for entry in image["per_prompt"]} == {
        "ovseg_panoptic:sky": 1, "reaseg:What is bright?": 1, "gcgseg:caption": 1, "chat:What is dark?": 0,
        "refseg:the left one": 1,
    }  # fmt: skip
    assert verify(store, RUN).ok


def test_rows_do_not_depend_on_the_order_in_which_a_predictor_answers(tmp_path: Path) -> None:
    class Backwards(BrightPredictor):
        def predict(self, images, prompts) -> list[Answer]:
            answers = super().predict(images, [asked[::-1] for asked in prompts])
            return [dataclasses.replace(answer, rejected=tuple(REFUSED[::-1])) for answer in answers]

    refs = write_images(tmp_path, 1)
    prompts = [BRIGHT, sentence("chat", "Is it night?"), sentence("gcgseg", "caption"), sentence("refseg", "it")]
    _label(open_store("memory://backwards"), refs, Backwards(), prompts)
    image = _images(open_store("memory://backwards"))["0000.png"]
    assert [caption["task"] for caption in image["captions"]] == ["chat", "gcgseg"]
    asked = [prompt.prompt_id for prompt in prompts]
    assert [entry["prompt_id"] for entry in image["per_prompt"]] == [*asked, "lost", "late"]


def test_sql_finds_the_phrases_of_a_caption_with_their_masks(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "output"))
    _label(store, write_images(tmp_path / "photos", 2), BrightPredictor(), [sentence("gcgseg", "caption"), BRIGHT])
    query = f"""
        WITH said AS (SELECT image_id, unnest(captions) AS c FROM '{tmp_path}/output/images/*/*.parquet'),
        phrases AS (SELECT image_id, c.prompt_id, c.text, unnest(c.phrases) AS p FROM said WHERE c.task = 'gcgseg')
        SELECT image_id, text[p.start + 1 : p."end"], p.phrase, a.prompt, a.area FROM phrases
        JOIN '{tmp_path}/output/annotations/*/*.parquet' AS a USING (image_id, prompt_id)
        WHERE a.category_id = p.category_id ORDER BY 1"""
    assert duckdb.sql(query).fetchall() == [("0000.png", SPOT, SPOT, SPOT, 12), ("0001.png", SPOT, SPOT, SPOT, 26)]


def test_an_image_with_an_answer_in_words_alone_is_not_empty(store: Store, tmp_path: Path) -> None:
    _label(store, write_images(tmp_path, 1), BrightPredictor(), [sentence("chat", "What is dark?")])
    image = _images(store)["0000.png"]
    assert (image["status"], image["num_annotations"], len(image["captions"])) == ("ok", 0, 1)


def test_columns_of_the_source_are_carried_to_the_row(store: Store, tmp_path: Path) -> None:
    columns = json.dumps({"site": "north", "camera": 4})
    refs = [dataclasses.replace(ref, source_columns=columns) for ref in write_images(tmp_path, 1)]
    _label(store, refs, BrightPredictor())
    assert json.loads(_images(store)["0000.png"]["source_columns"]) == {"site": "north", "camera": 4}


def test_the_model_is_asked_in_halves_until_the_culprits_stand_alone(tmp_path: Path) -> None:
    refs = write_images(tmp_path, 8)
    images = [Image(ref=ref, pixels=half_bright()) for ref in refs]
    predictor = FailingOn({"0001.png", "0006.png"}, RuntimeError("boom"))
    results = ask(images, [[text_prompt("x")]] * 8, predictor, ModelClock())
    assert [i for i, result in enumerate(results) if result.reason] == [1, 6]
    assert "boom" in (results[1].error or "")
    assert [len(call) for call in predictor.calls] == [8, 4, 2, 1, 1, 2, 4, 2, 2, 1, 1]


def test_a_file_that_cannot_be_read_to_its_end_is_given_up(tmp_path: Path) -> None:
    """A pipe that nobody writes to, as a network disk whose server is gone."""
    refs = write_images(tmp_path / "in", 6)
    os.mkfifo(tmp_path / "pipe.png")
    refs.insert(2, ImageRef(image_id="pipe.png", uri=str(tmp_path / "pipe.png")))
    store = open_store(str(tmp_path / "out"))
    _label(store, refs, BrightPredictor(), fetch_timeout_s=0.2, load_threads=1)
    rows = _images(store)
    assert (rows["pipe.png"]["reason"], rows["pipe.png"]["stage"]) == ("fetch_timeout", "fetch")
    assert rows["pipe.png"]["error"] == "not fetched after 0.2 s"
    assert [row["status"] for name, row in rows.items() if name != "pipe.png"] == ["ok"] * 6
    os.close(os.open(tmp_path / "pipe.png", os.O_WRONLY))  # lets the thread go


def test_an_image_whose_decoding_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, decode = threading.Event(), label.decode_image

    def decode_slowly(data: bytes, ref: ImageRef, limits: DecodeLimits) -> Image:
        if ref.image_id in ("0001.png", "0002.png"):
            release.wait(30)
        return decode(data, ref, limits)

    monkeypatch.setattr(label, "decode_image", decode_slowly)
    store = open_store(str(tmp_path / "out"))
    _label(store, write_images(tmp_path / "in", 6), BrightPredictor(), decode_timeout_s=0.3, load_threads=2)
    release.set()
    rows = _images(store)
    assert [row["reason"] for row in rows.values()] == [None, "decode_timeout", "decode_timeout", None, None, None]
    assert rows["0002.png"]["error"] == "not decoded after 0.3 s"


@pytest.mark.parametrize(
    "name", ["batch_size", "load_threads", "max_bytes_ahead", "fetch_timeout_s", "decode_timeout_s"]
)
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        LabelConfig(**{name: 0})
