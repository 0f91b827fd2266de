"""Masks exported to a tool, edited there, and imported again: what becomes of each, and which rows are current."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipelines.export.formats.label_studio import brush_rle
from pipelines.export.write import Choice, export_output
from pipelines.importing.imports import ImportChoice, import_file
from pipelines.masks import rle
from pipelines.planning.plan import retries_by_run
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.leftovers import vacuum
from pipelines.table.verify import verify
from tests.support.labeled import RUN, box, mask, named, write_output

CAT, DOG, COW = named("ovseg", "cat", "dog", "cow")
(SKY,) = named("ovseg_semantic", "sky")
SIZE = (40, 60)
RING = box(10, 5, 30, 25, SIZE) & ~box(15, 10, 10, 10, SIZE)
LEFT, RIGHT, SMALL = box(0, 0, 8, 8, SIZE), box(45, 20, 12, 12, SIZE), box(30, 2, 5, 5, SIZE)
FOUND = {
    "a/1.jpg": [mask(CAT, RING, 0.9), mask(CAT, LEFT, 0.8), mask(DOG, RIGHT, 0.7), mask(DOG, SMALL, 0.3)],
    "b.jpg": [mask(CAT, RING, 0.6)],
    "c.jpg": None,
    "d.jpg": [],
}
MOVED, NEW = box(46, 21, 12, 12, SIZE), box(3, 30, 9, 6, SIZE)
FORMATS = {"coco": "instances.json", "cvat": "annotations.xml", "label-studio": "tasks.json"}


def output_in(folder: Path, **more: Any) -> Store:
    return write_output(folder, FOUND, common=[CAT, DOG, COW], sizes=dict.fromkeys(FOUND, SIZE), **more)[0]


def exported(store: Store, folder: Path, form: str, **choice: Any) -> Path:
    export_output(store, str(folder), form, Choice(**choice))
    return folder / FORMATS[form]


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    with open_database(store) as database:
        return database.sql(query).to_arrow_table().to_pylist()


def masks_of(store: Store, image_id: str) -> dict[str, dict[str, Any]]:
    """Return the current masks of an image by annotation_id."""
    found = rows(store, f"FROM annotations WHERE image_id = '{image_id}' ORDER BY score DESC")
    return {row["annotation_id"]: row for row in found}


def pixels(row: dict[str, Any]) -> np.ndarray:
    return coco_mask.decode(row["segmentation"]).astype(bool)


def files(store: Store) -> dict[str, int]:
    return store.find("")


# --- the tools: each moves the dog, deletes the left cat, makes the small dog a cow, and draws a new cat in a/1.jpg ---


def edit_coco(path: Path, ids: dict[str, str]) -> None:
    read = COCO(str(path))  # as pycocotools holds it
    document = read.dataset
    document["info"] |= {"contributor": "ann", "date_created": "2026-11-30"}
    by_id = {entry["annotation_id"]: entry for entry in document["annotations"]}
    by_id[ids["dog"]]["segmentation"] = rle.encode(MOVED).to_coco()
    names = {category["name"]: category["id"] for category in document["categories"]}
    document["categories"].append({"id": 9, "name": "cow"})
    by_id[ids["small"]]["category_id"] = 9
    document["annotations"].remove(by_id[ids["left"]])
    image_id = by_id[ids["dog"]]["image_id"]
    x, y, width, height = 3, 30, 9, 6
    polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    new = {"id": 99, "image_id": image_id, "category_id": names["cat"], "segmentation": polygon, "iscrowd": 0}
    document["annotations"].append(new)
    path.write_text(json.dumps(document))


def cvat_mask(label: str, drawn: np.ndarray) -> ElementTree.Element:
    """A mask as CVAT's own library encodes it."""
    from cvat_sdk.masks import encode_mask

    *runs, left, top, right, bottom = map(int, encode_mask(drawn))
    place = {"left": left, "top": top, "width": right - left + 1, "height": bottom - top + 1}
    attributes = {"label": label, "source": "manual", "occluded": "0", "rle": ", ".join(map(str, runs)), "z_order": "0"}
    return ElementTree.Element("mask", attributes | {name: str(value) for name, value in place.items()})


def edit_cvat(path: Path, ids: dict[str, str]) -> None:
    tree = ElementTree.parse(path)
    task = tree.find("meta/task")
    assert task is not None
    task.append(ElementTree.fromstring("<owner><username>ann</username><email></email></owner>"))
    task.append(ElementTree.fromstring("<updated>2026-11-30 10:00:00+00:00</updated>"))
    (image,) = (one for one in tree.iter("image") if one.get("name") == "a/1.jpg")
    by_id = {one.findtext("attribute[@name='annotation_id']"): one for one in image}
    moved = cvat_mask("dog", MOVED)
    moved.extend(by_id[ids["dog"]])
    image.remove(by_id[ids["dog"]])
    image.remove(by_id[ids["left"]])
    by_id[ids["small"]].set("label", "cow")
    image.extend([moved, cvat_mask("cat", NEW)])
    tree.write(path)


def edit_label_studio(path: Path, ids: dict[str, str]) -> None:
    tasks = json.loads(path.read_text())
    (task,) = (task for task in tasks if task["data"]["image_id"] == "a/1.jpg")
    (prediction,) = task["predictions"]
    regions = [one for one in prediction["result"] if one["id"] != ids["left"]]
    by_id = {one["id"]: one for one in regions}
    by_id[ids["dog"]]["value"]["rle"] = brush_rle(MOVED)
    by_id[ids["small"]]["value"]["brushlabels"] = ["cow"]
    value = {"format": "rle", "rle": brush_rle(NEW), "brushlabels": ["cat"]}
    regions.append({**regions[0], "id": "Xy_9-aB1cd", "value": value, "origin": "manual"})
    old = {"result": [], "completed_by": 1, "updated_at": "2026-11-29T10:00:00Z", "was_cancelled": False}
    new = {"result": regions, "completed_by": {"id": 2, "email": "ann"}, "updated_at": "2026-11-30", "id": 5}
    task["annotations"] = [new, old, {**new, "result": [], "was_cancelled": True, "updated_at": "2026-12-01"}]
    path.write_text(json.dumps(tasks))


EDITS: dict[str, Callable[[Path, dict[str, str]], None]] = {
    "coco": edit_coco,
    "cvat": edit_cvat,
    "label-studio": edit_label_studio,
}


def ids_of(store: Store) -> dict[str, str]:
    found = {row["category_name"] + str(row["area"]): row for row in masks_of(store, "a/1.jpg").values()}
    names = {"cat650": "ring", "cat64": "left", "dog144": "dog", "dog25": "small"}
    return {names[key]: row["annotation_id"] for key, row in found.items()}


@pytest.fixture(scope="module", params=list(FORMATS))
def edited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An output, the ids that its masks had, and the file that was imported."""
    folder = tmp_path_factory.mktemp("edited")
    store, form = output_in(folder / "output"), request.param
    ids, path = ids_of(store), exported(store, folder / "export", form)
    EDITS[form](path, ids)
    return store, ids, path, import_file(store, str(path), ImportChoice(format_name=form))


def test_each_mask_is_added_moved_relabeled_confirmed_or_deleted_and_a_deletion_is_a_row(edited: Any) -> None:
    store, ids, _, imported = edited
    assert imported.changes == {"confirmed": 1, "moved": 1, "relabeled": 1, "deleted": 1, "added": 1}
    assert imported.num_images == 1
    told = {row["change"]: row for row in rows(store, "FROM corrections")}
    assert {change: row["annotation_id"] for change, row in told.items() if change != "added"} == {
        "confirmed": ids["ring"], "moved": ids["dog"], "relabeled": ids["small"], "deleted": ids["left"]
    }  # fmt: skip
    assert (told["relabeled"]["was"], told["relabeled"]["prompt_id"]) == ("dog", "ovseg:cow")
    assert told["moved"]["iou"] == pytest.approx(121 / 167)
    assert {row["author"] for row in told.values()} == {"ann"}
    assert all(row["edited_at"].startswith("2026-11-30") for row in told.values())
    assert {row["run_id"] for row in told.values()} == {imported.run_id}


def test_what_a_person_made_is_current_with_the_ids_that_it_had(edited: Any) -> None:
    store, ids, _, _ = edited
    now = masks_of(store, "a/1.jpg")
    assert {row["source"] for row in now.values()} == {"human"}
    assert {row["score"] for row in now.values()} == {1.0}
    by_id = {name: now.get(annotation_id) for name, annotation_id in ids.items()}
    assert by_id.pop("left") is None
    assert [row["category_name"] for row in by_id.values()] == ["cat", "dog", "cow"]
    for row, shape in zip(by_id.values(), (RING, MOVED, SMALL), strict=True):
        assert np.array_equal(pixels(row), shape)
        assert row["area"] == shape.sum()
    (added,) = (row for annotation_id, row in now.items() if annotation_id not in ids.values())
    assert (added["category_name"], added["prompt_id"]) == ("cat", "ovseg:cat")
    assert np.array_equal(pixels(added), NEW)
    (image,) = rows(store, "FROM images WHERE image_id = 'a/1.jpg'")
    assert (image["status"], image["num_annotations"], image["width"]) == ("ok", 4, 60)
    counts = {entry["prompt_id"]: entry["n"] for entry in image["per_prompt"]}
    assert counts == {"ovseg:cat": 2, "ovseg:dog": 1, "ovseg:cow": 1}


def test_images_that_nobody_touched_are_left_alone(edited: Any) -> None:
    store, _, _, imported = edited
    assert imported.num_unreviewed == 2
    assert {row["source"] for row in masks_of(store, "b.jpg").values()} == {"model"}


def test_the_run_is_whole_and_the_same_file_again_writes_nothing(edited: Any) -> None:
    store, _, path, imported = edited
    form = next(form for form, name in FORMATS.items() if name == path.name)
    assert verify(store, imported.run_id).problems == []
    before = files(store)
    again = import_file(store, str(path), ImportChoice(format_name=form))
    assert (again.run_id, again.changes) == (imported.run_id, imported.changes)
    path.write_bytes(path.read_bytes() + b"\n")  # another file that says nothing new
    assert import_file(store, str(path), ImportChoice(format_name=form)).plan is None
    assert vacuum(store, imported.run_id, older_than_s=0).removed == []
    assert files(store) == before


def test_no_run_of_a_model_replaces_what_a_person_answered_unless_it_is_asked_to(edited: Any) -> None:
    store, _, _, _ = edited
    found = {"a/1.jpg": [mask(CAT, LEFT, 0.99), mask(COW, RIGHT, 0.9), mask(SKY, RING, 0.5)]}
    late = {"common": [CAT, DOG, COW, SKY], "sizes": {"a/1.jpg": SIZE}}
    write_output(store.root, found, run_id="run-2", **late)
    now = masks_of(store, "a/1.jpg")
    assert sorted(row["source"] for row in now.values()) == ["human"] * 4 + [
        "model"
    ]  # only the new prompt's is current
    assert list(retries_by_run(store)) == [RUN, "run-2"]
    asked = [row["prompt_id"] for row in rows(store, "FROM prompts WHERE is_asked")]
    assert sorted(asked) == ["ovseg:cat", "ovseg:cow", "ovseg:dog", "ovseg_semantic:sky"]
