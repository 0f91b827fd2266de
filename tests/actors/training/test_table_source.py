"""Outputs written by the pipeline itself, read back as training data."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.training.table_source import table
from pipelines.export.write import Choice, export_output
from pipelines.importing.imports import ImportChoice, import_file
from pipelines.labeling.shard import LabelConfig, LabelJob, label_shard
from pipelines.masks import rle
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import Answer, Caption, CaptionPhrase, Image, ImageRef, MaskPrediction, Prompt
from tests.support.fakes import half_bright, png, sentence, text_prompt
from tests.support.labeled import plan_run
from xsam_model import XSamProcessor
from xsam_model.training.samples.batches import BatchBuilder
from xsam_model.training.samples.samples import TrainingSample

WEIGHTS = Path(__file__).parents[3] / "xsam_model" / "weights" / "xsam-tiny"
CAT, DOG, BIRD = text_prompt("Cat"), text_prompt("dog", 1), text_prompt("bird", 2)
LEFT, FAR = sentence("refseg", "the left one"), sentence("refseg", "the far one", 1)
CAPTION = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="caption", category_id=0, category_name="caption")
SAID = "A cat sees a dog."
# Columns that each mask of the fake model covers, and its score.
SURE, UNSURE = (slice(0, 3), 0.9), (slice(8, 11), 0.3)


class Painter:
    """Finds cats and the left one surely, dogs unsurely, birds and the far one never; says SAID, grounding both."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        return [self._answer(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def _answer(self, image: Image, asked: Sequence[Prompt]) -> Answer:
        masks = [paint(image, one, *SURE) for one in asked if one in (CAT, LEFT)]
        masks += [paint(image, one, *UNSURE) for one in asked if one == DOG]
        captions = []
        if CAPTION in asked:
            phrases = [CaptionPhrase(text="A cat", start=0, end=5), CaptionPhrase(text="a dog", start=11, end=16)]
            captions = [Caption(prompt=CAPTION, text=SAID, phrases=tuple(phrases))]
            for number, (phrase, drawn) in enumerate(zip(phrases, (SURE, UNSURE), strict=True)):
                one = dataclasses.replace(CAPTION, text=phrase.text, category_name=phrase.text, category_id=number)
                masks.append(paint(image, one, *drawn))
        return Answer(masks=tuple(masks), captions=tuple(captions))

    def describe(self) -> Mapping[str, str]:
        return {"device": "fake"}


def paint(image: Image, prompt: Prompt, columns: slice, score: float) -> MaskPrediction:
    mask = np.zeros(image.size_hw, dtype=np.bool_)
    mask[:, columns] = True
    found = rle.encode(mask)
    box, area = rle.bbox_xywh(found), int(mask.sum())
    return MaskPrediction(prompt=prompt, score=score, mask_score=1.0, segmentation=found, bbox_xywh=box, area=area)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output of two images of 24 x 16 pixels and one that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png(half_bright(bright_columns=6 if name == "a.png" else 9)))
    (folder / "c.png").write_bytes(b"no image")
    refs = [ImageRef(image_id=path.name, uri=str(path)) for path in sorted(folder.iterdir())]
    store = open_store(str(tmp_path / "output"))
    _, (shard,) = plan_run(store, "run-1", refs)
    job = LabelJob(run_id="run-1", prompts=(CAT, DOG, BIRD, LEFT, FAR, CAPTION), config=LabelConfig())
    label_shard(shard, job=job, store=store, predictor=Painter(), attempt="d-0")
    return str(tmp_path / "output")


def columns(*slices: slice) -> np.ndarray:
    mask = np.zeros((16, 24), dtype=np.bool_)
    for one in slices:
        mask[:, one] = True
    return mask


def annotation(output: str, name: str, image: str = "a.png") -> str:
    """Return the id of the row of a category or phrase."""
    rows = open_table(open_store(output), "annotations").to_table().to_pylist()
    return next(row["annotation_id"] for row in rows if (row["image_id"], row["category_name"]) == (image, name))


def drawn(source, index: int = 0) -> TrainingSample:
    return source.draw(index, np.random.default_rng(0))


def correct(tmp_path: Path, *rows: Mapping[str, str]) -> str:
    path = tmp_path / "corrections.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["annotation_id", "drop", "category_name", "segmentation", "image_id"])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_names_that_were_asked_are_conditions_and_masks_are_true(output: str) -> None:
    source = table(output)
    assert (source.name, len(source), source.categories) == ("table-ovseg", 2, ("cat", "dog", "bird"))
    assert source.skipped == {"quarantined when it was labeled": ("c.png",)}
    sample = drawn(pickle.loads(pickle.dumps(source)))
    assert (sample.task, sample.conditions, sample.labels.tolist()) == ("ovseg", ("cat", "dog", "bird"), [0, 1])
    assert (sample.masks == np.stack([columns(SURE[0]), columns(UNSURE[0])])).all()
    assert (sample.image == half_bright()).all()
    assert sample.ignore is None


def test_of_an_image_that_has_changed_only_its_newest_version_is_used(output: str) -> None:
    path = Path(output).parent / "photos" / "a.png"
    path.write_bytes(png(half_bright(bright_columns=12)))
    store = open_store(output)
    _, (shard,) = plan_run(store, "update-2", [ImageRef(image_id="a.png", uri=str(path), version=2)])
    job = LabelJob(run_id="update-2", prompts=(DOG,), config=LabelConfig())
    label_shard(shard, job=job, store=store, predictor=Painter(), attempt="d-0")
    source = table(output)
    assert len(source) == 2
    sample = next(one for one in (drawn(source, 0), drawn(source, 1)) if one.conditions == ("dog",))
    assert (sample.image == half_bright(bright_columns=12)).all()


def test_uncertain_masks_are_ignored(output: str) -> None:
    sample = drawn(table(output, min_score=0.5))
    assert (sample.conditions, sample.labels.tolist()) == (("cat", "dog", "bird"), [0])
    assert (sample.ignore == columns(UNSURE[0])).all()


def test_a_mask_whose_score_is_the_threshold_is_certain(output: str) -> None:
    """The table holds float32: its 0.9 is less than Python's."""
    assert SURE[1] == 0.9
    assert drawn(table(output, min_score=0.9)).labels.tolist() == [0]


def test_phrases_are_asked_with_their_masks_or_without(output: str) -> None:
    source = table(output, task="refseg")
    sample = drawn(source)
    assert (sample.conditions, sample.labels.tolist()) == (("the left one", "the far one"), [0])
    assert source.categories == ()
    # A phrase that only uncertain masks have says nothing.
    assert drawn(table(output, task="refseg", min_score=0.95)).conditions == ("the far one",)
    with pytest.raises(ValueError, match="nothing annotated: 2"):
        table(output, task="reaseg")


def test_captions_are_answers_with_the_phrases_that_have_masks(output: str) -> None:
    sample = drawn(table(output, task="gcgseg"))
    assert sample.answer == "<p>A cat</p> sees <p>a dog</p>. <SEG>"
    assert (sample.masks == np.stack([columns(SURE[0]), columns(UNSURE[0])])).all()
    assert drawn(table(output, task="gcgseg", min_score=0.5)).answer == "<p>A cat</p> sees a dog. <SEG>"


def test_masks_are_dropped_renamed_redrawn_confirmed_and_added(output: str, tmp_path: Path) -> None:
    square = [[4, 0, 8, 0, 8, 16, 4, 16]]
    path = correct(
        tmp_path,
        {"annotation_id": annotation(output, "Cat"), "category_name": "Horse", "segmentation": json.dumps(square)},
        {"annotation_id": annotation(output, "dog")},
        {"annotation_id": annotation(output, "dog", "b.png"), "drop": "true"},
        {"image_id": "a.png", "category_name": "bird", "segmentation": json.dumps(square)},
    )
    source = table(output, min_score=0.5, corrections=path)
    assert source.categories == ("cat", "dog", "bird", "horse")
    first, second = drawn(source, 0), drawn(source, 1)
    assert [first.conditions[label] for label in first.labels] == ["horse", "dog", "bird"]
    assert (first.masks == np.stack([columns(slice(4, 8)), columns(UNSURE[0]), columns(slice(4, 8))])).all()
    assert first.ignore is None
    # A dropped mask is wrong: its category is absent there.
    assert [second.conditions[label] for label in second.labels] == ["cat"]
    assert second.ignore is None


def test_what_people_have_imported_is_read_by_itself(output: str, tmp_path: Path) -> None:
    path = tmp_path / "edited.json"
    export_output(open_store(output), str(path), "coco", Choice(tasks=("ovseg",)))
    document = json.loads(path.read_text())
    images = {image["file_name"]: image["id"] for image in document["images"]}
    cat_a, dog_a, cat_b, dog_b = document["annotations"]
    assert [entry["image_id"] for entry in (cat_a, dog_b)] == [images["a.png"], images["b.png"]]
    cat_a["segmentation"] = rle.encode(columns(slice(4, 8))).to_coco()
    document["annotations"] = [cat_a, dog_a, cat_b]
    path.write_text(json.dumps(document))
    import_file(open_store(output), str(path), ImportChoice(format_name="coco"))
    first, second = (drawn(table(output, min_score=0.95), number) for number in (0, 1))
    assert [first.conditions[label] for label in first.labels] == ["cat", "dog"]  # an unsure one that was confirmed
    assert (first.masks == np.stack([columns(slice(4, 8)), columns(UNSURE[0])])).all()
    # A mask that was deleted is wrong: its category is absent there.
    assert sorted(second.conditions) == ["bird", "cat", "dog"]
    assert ([second.conditions[label] for label in second.labels], second.ignore) == (["cat"], None)
    assert (drawn(table(output, run_id="run-1")).masks[0] == columns(SURE[0])).all()


@pytest.mark.parametrize("counts", [[16 * 4, 16 * 4, 16 * 16], rle.encode(columns(slice(4, 8))).counts.encode()])
def test_corrections_may_be_parquet_with_run_lengths(output: str, tmp_path: Path, counts: list[int] | bytes) -> None:
    shape = {"size": [16, 24], "counts": counts}
    path = tmp_path / "corrections.parquet"
    rows = [{"annotation_id": annotation(output, "Cat"), "drop": False, "segmentation": shape}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert (drawn(table(output, corrections=str(path))).masks[0] == columns(slice(4, 8))).all()


def test_corrections_that_say_nothing_clear_are_left_out(output: str, tmp_path: Path) -> None:
    cat, dog = annotation(output, "Cat"), annotation(output, "dog")
    path = correct(
        tmp_path,
        {"annotation_id": cat, "drop": "perhaps"},
        {"annotation_id": "nowhere", "drop": "yes"},
        {"image_id": "a.png", "category_name": "bird"},
        {"annotation_id": dog, "segmentation": '{"size": [2, 2], "counts": [4]}'},
        {"annotation_id": annotation(output, "the left one"), "drop": "yes"},
    )
    source = table(output, corrections=path)
    assert source.skipped == {
        "malformed annotation": ("correction in row 0", "correction in row 2"),
        "image of another size": (f"correction of {dog}",),
        "correction of no annotation": ("nowhere",),
        "quarantined when it was labeled": ("c.png",),
    }
    # The dog is somewhere there, so that nothing is learned about the place.
    assert (drawn(source).ignore == columns(UNSURE[0])).all()
    (tmp_path / "corrections.csv").write_text("id,drop\n1,yes\n")
    with pytest.raises(ValueError, match="corrections need a column annotation_id"):
        table(output, corrections=path)
    with pytest.raises(ValueError, match=r"none\.csv"):
        table(output, corrections=str(tmp_path / "none.csv"))


def test_images_that_are_gone_or_have_changed_are_replaced(output: str, tmp_path: Path) -> None:
    source = table(output)
    (tmp_path / "photos" / "a.png").write_bytes(png(half_bright(bright_columns=1)))
    assert (drawn(source).image == half_bright(bright_columns=9)).all()
    assert source.skipped["image changed since it was labeled"] == ("a.png",)
    (tmp_path / "photos" / "b.png").unlink()
    with pytest.raises(ValueError, match="none of 100 records"):
        drawn(source)
    assert source.skipped["image missing"] == ("b.png",)


def test_wrong_settings_and_outputs_are_errors_that_say_so(output: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task must be one of ovseg, genseg, refseg, reaseg, gcgseg"):
        table(output, task="chat")
    with pytest.raises(ValueError, match="min_score 0 to 1"):
        table(output, min_score=50)
    with pytest.raises(ValueError, match="no committed shard of any run; check the path"):
        table(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no committed shard"):
        table(output, run_id="run-2")


@pytest.mark.parametrize("task", ["ovseg", "genseg", "refseg", "gcgseg"])
def test_a_table_makes_a_training_batch(output: str, task: str) -> None:
    source = table(output, task=task)
    randoms = [np.random.default_rng(place) for place in range(2)]
    samples = [source.draw(place, random) for place, random in enumerate(randoms)]
    builder = BatchBuilder(processor=XSamProcessor.from_pretrained(WEIGHTS), classes=source.categories)
    batch = builder.build(samples, randoms)
    assert len(batch.targets.masks) == (2 if task == "refseg" else 4)


@pytest.mark.parametrize("damage", [b"", None, b"PAR1"])
def test_a_table_with_a_damaged_file_is_refused_and_the_file_is_named(output: str, damage: bytes | None) -> None:
    store = open_store(output)
    (name,) = store.find("annotations")
    if damage is None:
        store.delete(name)
    else:
        store.write(name, damage)
    with pytest.raises(ValueError, match=name.rpartition("/")[2]):
        table(output)


def test_a_table_whose_rows_cannot_be_read_is_refused(output: str) -> None:
    store = open_store(output)
    (name,) = store.find("images")
    store.write(name, bytes(store.size(name) or 0))
    with pytest.raises(ValueError, match="its rows cannot be read"):
        table(output)
