"""What a person's edits of an image come to beside what the person was not shown, and what has happened since."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import PlanError, SourceError, StorageError
from pipelines.export.write import Choice, export_output
from pipelines.forgetting.chosen import choose
from pipelines.forgetting.forget import forget
from pipelines.importing import imports
from pipelines.importing.imports import ImportChoice, Imported, import_file
from pipelines.masks import rle
from pipelines.planning.draft import PlanConfig
from pipelines.planning.erasures import begin_erasure
from pipelines.planning.plan import plan_documents
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.commits import commit_shard, committed_shards
from pipelines.table.correction_checks import untrue_corrections
from pipelines.table.verify import verify
from pipelines.types import Caption, CaptionPhrase, ImagePrediction, ImageRef, Prompt, Status
from tests.support.labeled import box, mask, named, plan_run, region, write_output

CAT, DOG = named("ovseg", "cat", "dog")
SKY, SEA = named("ovseg_semantic", "sky", "sea")
A, B, C = box(0, 0, 4, 4), box(5, 5, 4, 4), box(0, 6, 3, 3)


class Edited:
    """A COCO file as it was exported from an output, and is edited."""

    def __init__(self, store: Store, path: Path, **choice: Any) -> None:
        self.store, self.path = store, path
        export_output(store, str(path), "coco", Choice(**choice))
        self.document: dict[str, Any] = json.loads(path.read_text())

    def entry(self, number: int = 0) -> dict[str, Any]:
        """An annotation, the best of the first image first."""
        found: dict[str, Any] = self.document["annotations"][number]
        return found

    def add(self, name: str, pixels: np.ndarray, image_id: str = "a", **more: Any) -> None:
        numbers = {one["file_name"]: one["id"] for one in self.document["images"]}
        categories = {one["name"]: one["id"] for one in self.document["categories"]}
        if name not in categories:
            categories[name] = len(categories) + 100
            self.document["categories"].append({"id": categories[name], "name": name})
        new = {"id": len(self.document["annotations"]) + 1000, "segmentation": rle.encode(pixels).to_coco()}
        new |= {"image_id": numbers[image_id], "category_id": categories[name], **more}
        self.document["annotations"].append(new)

    def imported(self, **choice: Any) -> Imported:
        self.path.write_text(json.dumps(self.document))
        return import_file(self.store, str(self.path), ImportChoice(format_name="coco", **choice))


def read_table(store: Store, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(name)))


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    with open_database(store) as database:
        return database.execute(query).fetchall()


def current(store: Store, image_id: str = "a") -> Counter[tuple[str, str]]:
    """Count the current masks of an image by category and source."""
    found = rows(store, f"SELECT category_name, source FROM annotations WHERE image_id = '{image_id}'")
    return Counter((name, source) for name, source in found)


def test_masks_that_were_not_exported_stay_as_the_model_has_left_them(tmp_path: Path) -> None:
    store, _ = write_output(
        tmp_path / "o", {"a": [mask(CAT, A, 0.9), mask(CAT, B, 0.2), mask(DOG, C)]}, common=[CAT, DOG]
    )
    edited = Edited(store, tmp_path / "e.json", where="score >= 0.8")
    edited.document["annotations"].clear()
    assert edited.imported().changes == {"deleted": 1}
    assert current(store) == {("cat", "model"): 1, ("dog", "model"): 1}
    ((score, run_id),) = rows(store, "SELECT score, run_id FROM annotations WHERE category_name = 'cat'")
    assert (round(score, 2), run_id.startswith("import-")) == (0.2, True)  # a part of the person's answer
    assert rows(store, "SELECT run_id FROM annotations WHERE category_name = 'dog'") == [("run-1",)]


def test_a_copy_of_a_mask_is_a_new_mask_though_it_has_the_id_of_the_first(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.add("cat", B, annotation_id=edited.entry()["annotation_id"])
    assert edited.imported().changes == {"confirmed": 1, "added": 1}
    ids = [row[0] for row in rows(store, "SELECT annotation_id FROM annotations")]
    assert len(set(ids)) == 2


def test_without_ids_masks_are_told_by_their_shapes_and_names(tmp_path: Path) -> None:
    near = box(0, 0, 4, 3)
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A), mask(DOG, A), mask(CAT, B)]}, common=[CAT, DOG])
    edited = Edited(store, tmp_path / "e.json")
    for entry in edited.document["annotations"]:
        del entry["annotation_id"]
    moved = next(one for one in edited.document["annotations"] if one["category_id"] == 2)
    moved["segmentation"] = rle.encode(near).to_coco()  # as near to the cat in the same place as to the dog
    assert edited.imported().changes == {"confirmed": 2, "moved": 1}
    assert rows(store, "SELECT category_name, iou FROM corrections WHERE change = 'moved'") == [("dog", 0.75)]


def test_a_tool_that_loses_what_was_exported_is_told_by_the_exported_file(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A, 0.9), mask(CAT, B, 0.1)]}, common=[CAT])
    original, edited = tmp_path / "x.xml", Edited(store, tmp_path / "e.json")
    export_output(store, str(original), "cvat", Choice(where="score > 0.5"))
    edited.document["annotations"].clear()
    for image in edited.document["images"]:
        del image["annotation_ids"]
    with pytest.raises(
        SourceError, match=r"2 masks of the output are not in it.*--exported FILE.*Nothing was imported"
    ):
        edited.imported()
    assert len(plan_documents(store)) == 1
    assert edited.imported(exported=str(original)).changes == {"deleted": 1}
    assert current(store) == {("cat", "model"): 1}


def test_images_without_a_change_count_as_looked_at_where_that_is_said(tmp_path: Path) -> None:
    found = {"a": [mask(CAT, A)], "b": [], "c": [mask(DOG, B)]}
    store, _ = write_output(tmp_path / "o", found, common=[CAT, DOG])
    edited = Edited(store, tmp_path / "e.json")
    nothing = edited.imported()
    assert (nothing.plan, nothing.num_images, nothing.num_unreviewed) == (None, 0, 3)
    looked_at = edited.imported(is_reviewed=True)
    assert (looked_at.num_images, looked_at.changes) == (3, {"confirmed": 2})
    # A person has seen that there is no cat in b.
    said = rows(store, "SELECT prompt_id, n FROM coverage WHERE image_id = 'b' AND run_id LIKE 'import-%' ORDER BY 1")
    assert said == [("ovseg:cat", 0), ("ovseg:dog", 0)]
    again = Edited(store, tmp_path / "again.json").imported(is_reviewed=True)
    assert (again.plan, again.num_known) == (None, 3)


def test_small_changes_of_a_tool_that_redraws_are_no_changes_where_that_is_said(tmp_path: Path) -> None:
    redrawn = A.copy()
    redrawn[0, 0] = False
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A), mask(CAT, B)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.entry()["segmentation"] = rle.encode(redrawn).to_coco()
    assert edited.imported(unchanged_iou=0.9).plan is None
    assert edited.imported(unchanged_iou=0.9, is_reviewed=True).changes == {"confirmed": 2}
    areas = rows(store, "SELECT area FROM annotations WHERE source = 'human'")
    assert areas == [(16,), (16,)]


def test_all_categories_of_a_map_are_answered_together(tmp_path: Path) -> None:
    found = {"a": [mask(SKY, A, 0.9), mask(SEA, B, 0.8), mask(CAT, C)]}
    store, _ = write_output(tmp_path / "o", found, common=[SKY, SEA, CAT])
    edited = Edited(store, tmp_path / "e.json", tasks=("ovseg_semantic",), categories=("sky",))
    edited.entry()["segmentation"] = rle.encode(box(0, 0, 4, 3)).to_coco()
    assert edited.imported().changes == {"moved": 1}
    assert current(store) == {("sky", "human"): 1, ("sea", "model"): 1, ("cat", "model"): 1}
    runs = dict(rows(store, "SELECT prompt_id, run_id LIKE 'import-%' FROM coverage"))
    assert runs == {"ovseg_semantic:sky": True, "ovseg_semantic:sea": True, "ovseg:cat": False}


def test_what_is_stuff_in_the_output_stays_stuff(tmp_path: Path) -> None:
    cat, sky = (replace(one, is_thing=one.text == "cat") for one in named("ovseg_panoptic", "cat", "sky"))
    found = {"a": [mask(cat, A, 0.9), mask(sky, B, 0.8)]}
    store, _ = write_output(tmp_path / "o", found, common=[cat, sky], config={"stuff": ["sky"]})
    edited = Edited(store, tmp_path / "e.json", tasks=("ovseg_panoptic",))
    edited.entry()["category_id"], name = edited.entry(1)["category_id"], edited.entry()["annotation_id"]
    edited.add("sky", C, task="ovseg_panoptic")
    edited.add("hat", box(9, 9, 1, 1), task="ovseg_panoptic")
    assert edited.imported().changes == {"confirmed": 1, "relabeled": 1, "added": 2}
    assert rows(store, "SELECT DISTINCT category_name, is_thing FROM annotations ORDER BY 1") == [
        ("hat", True), ("sky", False)
    ]  # fmt: skip
    assert rows(store, f"SELECT category_name FROM annotations WHERE annotation_id = '{name}'") == [("sky",)]


def test_regions_and_phrases_keep_what_was_asked_and_captions_stay(tmp_path: Path) -> None:
    point = region("intseg", "p1", "point", label="cup")
    caption = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="caption", category_id=0, category_name="caption")
    phrase = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="a cup", category_id=0, category_name="a cup")
    said = Caption(prompt=caption, text="there is a cup", phrases=(CaptionPhrase(text="a cup", start=9, end=14),))
    found = {"a": [mask(point, A, 0.9), mask(phrase, B, 0.8)]}
    store, _ = write_output(tmp_path / "o", found, common=[caption], own={"a": [point]}, said={"a": [said]})
    edited = Edited(store, tmp_path / "e.json")
    edited.document["categories"][0]["name"], edited.document["categories"][1]["name"] = "a red cup", "bowl"
    assert edited.imported().changes == {"relabeled": 2}
    now = rows(store, "SELECT prompt_id, prompt, category_name, category_id FROM annotations ORDER BY 1")
    assert [row[:3] for row in now] == [("gcgseg:caption", "a cup", "a red cup"), ("p1", "point 1,1", "bowl")]
    assert now[0][3] == 0  # the phrase's number in the caption
    ((captions,),) = rows(store, "SELECT captions FROM images")
    assert [(one["text"], one["phrases"][0]["phrase"]) for one in captions] == [("there is a cup", "a cup")]


def test_names_that_cvat_cuts_are_read_whole(tmp_path: Path) -> None:
    long = "a person who " + "walks " * 12
    prompts = [*named("ovseg", f"{long}left"), region("vgdseg", "p1", "point", label=f"{long}right")]
    found = {"a": [mask(prompts[0], A, 0.9), mask(prompts[1], B, 0.8)]}
    store, _ = write_output(tmp_path / "o", found, common=prompts[:1], own={"a": prompts[1:]})
    export_output(store, str(tmp_path / "e"), "cvat", Choice())
    choice = ImportChoice(format_name="cvat", is_reviewed=True)
    imported = import_file(store, str(tmp_path / "e" / "annotations.xml"), choice)
    assert imported.changes == {"confirmed": 2}
    names = rows(store, "SELECT category_name FROM annotations WHERE source = 'human' ORDER BY 1")
    assert names == [(f"{long}left",), (f"{long}right",)]


def test_a_deleted_mask_that_comes_back_has_its_id_again(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A), mask(CAT, B)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    deleted = edited.document["annotations"].pop(0)
    edited.imported()
    edited.document["annotations"].append(deleted)
    assert edited.imported().changes == {"confirmed": 1, "added": 1}
    ids = {row[0] for row in rows(store, "SELECT annotation_id FROM annotations WHERE source = 'human'")}
    assert deleted["annotation_id"] in ids
    assert rows(store, "SELECT count(*) FROM corrections") == [(4,)]  # what was done before stays told


def test_a_mask_that_another_file_has_deleted_is_drawn_again_and_is_no_other_in_its_place(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A), mask(DOG, A)]}, common=[CAT, DOG])
    first, second = (Edited(store, tmp_path / name) for name in ("first.json", "second.json"))
    ids = {one: name for name, one in rows(store, "SELECT category_name, annotation_id FROM annotations")}
    names = {one["id"]: one["name"] for one in first.document["categories"]}
    for edited, deleted in ((first, "cat"), (second, "dog")):
        left = [one for one in edited.document["annotations"] if names[one["category_id"]] != deleted]
        edited.document["annotations"] = left
        edited.imported()
    assert current(store) == {("cat", "human"): 1}
    changes = "SELECT annotation_id, change FROM corrections ORDER BY run_id = '{}', change"
    made = rows(store, changes.format(list(plan_documents(store))[-1]))[-2:]
    assert [(ids[one], change) for one, change in made] == [("cat", "added"), ("dog", "deleted")]


def relabeled(store: Store, found: list[Any], version: int = 1) -> None:
    """Have another model label the image, or its changed picture."""
    ref = ImageRef(image_id="a", uri="/p/a", version=version, etag="new")
    _, (shard,) = plan_run(store, "update-2", [ref])
    one = ImagePrediction(ref=ref, status=Status.OK, masks=tuple(found), prompts=(CAT,), size_hw=(10, 10))
    ids: dict[str, Any] = {"attempt": "d1-0", "started": 0.0, "model_s": 0.0, "predictor": {}}
    commit_shard(store, "update-2", shard, [one], **ids)


def test_edits_are_of_what_was_exported_though_a_model_has_labeled_it_anew_since(tmp_path: Path) -> None:
    new_a, new_b = box(0, 0, 4, 3), box(5, 5, 4, 3)
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A, 0.9), mask(CAT, B, 0.8)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    relabeled(store, [mask(CAT, new_a, 0.7), mask(CAT, new_b, 0.6), mask(CAT, C, 0.5)])
    untouched = edited.imported()
    assert (untouched.plan, untouched.num_unreviewed) == (None, 1)  # that another model draws otherwise is no edit
    edited.document["annotations"].pop(0)
    assert edited.imported().changes == {"deleted": 1, "moved": 1}
    now = rows(store, "SELECT source, area FROM annotations ORDER BY 1")
    assert now == [("human", 16), ("model", 9)]  # what stands where the deleted one stood has gone with it


def test_edits_of_a_picture_that_has_changed_since_are_left_out(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)], "b": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    relabeled(store, [mask(CAT, B)], version=2)
    for entry in edited.document["annotations"]:
        entry["segmentation"] = rle.encode(C).to_coco()
    imported = edited.imported()
    assert [(row["image"], row["reason"].partition(":")[0]) for row in imported.left_out] == [
        ("a", "has changed since it was exported")
    ]
    assert current(store) == {("cat", "model"): 1}


def test_an_image_that_has_changed_since_is_answered_by_the_model_again(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.document["annotations"].clear()
    edited.imported()
    assert current(store) == {}
    relabeled(store, [mask(CAT, B)], version=2)
    assert current(store) == {("cat", "model"): 1}
    assert rows(store, "SELECT change FROM corrections") == [("deleted",)]  # what was done to the picture before


# --- a crash, damage, an erasure ---


def many(tmp_path: Path) -> Edited:
    """Images of which each has a mask that was moved."""
    found = {name: [mask(CAT, A)] for name in "abc"}
    store, _ = write_output(tmp_path / "o", found, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    for entry in edited.document["annotations"]:
        entry["segmentation"] = rle.encode(B).to_coco()
    return edited


def test_a_killed_import_goes_on_by_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited, created = many(tmp_path), Store.create

    def killed(store: Store, name: str, data: bytes) -> bool:
        if name.endswith("shard-00001.json"):
            raise StorageError("the network is gone")
        return created(store, name, data)

    monkeypatch.setattr(imports, "PlanConfig", partial(PlanConfig, images_per_shard=2))
    monkeypatch.setattr(Store, "create", killed)
    with pytest.raises(StorageError, match="the network is gone"):
        edited.imported()
    monkeypatch.undo()
    (run_id,) = (run for run in plan_documents(edited.store) if run.startswith("import-"))
    assert committed_shards(edited.store, run_id) == {"shard-00000"}
    # A night between: new rows do not matter to what was planned.
    write_output(edited.store.root, {"c": [mask(DOG, A)]}, common=[DOG], run_id="run-2")
    imported = edited.imported()
    assert (imported.run_id, imported.committed_before) == (run_id, 1)
    assert not verify(edited.store, run_id).problems
    assert rows(edited.store, "SELECT source, count(*) FROM annotations GROUP BY 1 ORDER BY 1") == [
        ("human", 3), ("model", 1)
    ]  # fmt: skip


def test_a_killed_import_of_images_that_have_all_changed_since_ends_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.document["annotations"][0]["segmentation"] = rle.encode(C).to_coco()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imports, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        edited.imported()
    monkeypatch.undo()
    relabeled(store, [mask(CAT, B)], version=2)
    imported = (
        edited.imported()
    )  # a new file would be refused, but this run is planned, and must not stay without an end
    assert (imported.num_images, len(imported.left_out)) == (0, 1)
    assert not verify(store, imported.run_id).problems
    assert current(store) == {("cat", "model"): 1}


def test_of_two_imports_at_once_none_loses_what_the_other_has_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A), mask(CAT, B)]}, common=[CAT])
    first, second, plan = Edited(store, tmp_path / "e.json"), Edited(store, tmp_path / "f.json"), imports._planned
    first.entry()["segmentation"] = rle.encode(box(9, 9, 1, 1)).to_coco()
    second.add("cat", C)

    def planned(*given: Any) -> Any:
        monkeypatch.undo()
        second.imported()
        return plan(*given)

    monkeypatch.setattr(imports, "_planned", planned)
    with pytest.raises(PlanError, match=r"another import, import-\w{12}, was at work meanwhile"):
        first.imported()
    assert first.imported().changes["moved"] == 1  # the same command goes on
    assert sorted(rows(store, "SELECT area, source FROM annotations")) == [(1, "human"), (9, "human"), (16, "human")]
    assert not [problem for run in store.folders("_runs") for problem in verify(store, run).problems]


def test_a_lost_file_of_an_import_is_mended_by_the_same_file(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.entry()["segmentation"] = rle.encode(B).to_coco()
    run_id = edited.imported().run_id
    before = rows(store, "SELECT * EXCLUDE (attempt) FROM annotations")
    (name,) = store.find(f"annotations/{run_id}")
    store.delete(name)
    assert verify(store, run_id).problems
    edited.imported()
    assert not verify(store, run_id).problems
    assert rows(store, "SELECT * EXCLUDE (attempt) FROM annotations") == before


def test_verify_finds_corrections_that_are_not_those_of_the_rows(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)], "b": [mask(CAT, A)]}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.document["annotations"].pop(0)
    edited.entry()["segmentation"] = rle.encode(B).to_coco()
    run_id = edited.imported().run_id
    images, annotations = (
        read_table(store, next(iter(store.find(f"{kind}/{run_id}")))) for kind in ("images", "annotations")
    )
    assert untrue_corrections(images, annotations) == []
    assert untrue_corrections(images, annotations.slice(0, 0)) == ["b"]


def test_an_import_knows_how_images_are_fetched_and_asks_of_no_source_itself(tmp_path: Path) -> None:
    config = {"source": {"uri": "s3://b", "storage_options": {"endpoint_url": "http://s"}, "same_collection": True}}
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)]}, common=[CAT], config=config)
    edited = Edited(store, tmp_path / "e.json")
    edited.document["annotations"].clear()
    plan = edited.imported().plan
    assert plan is not None
    assert plan.facts["config"] == {"source": {"storage_options": {"endpoint_url": "http://s"}}}
    assert (plan.sequence, plan.lists_source, plan.is_import) == (2, False, True)


def test_forgotten_images_leave_nothing_in_an_import(tmp_path: Path) -> None:
    found = {"jane.png": [mask(CAT, A)], "b": [mask(CAT, A)]}
    store, _ = write_output(tmp_path / "o", found, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    for entry in edited.document["annotations"]:
        entry["segmentation"] = rle.encode(B).to_coco()
    edited.add("jane's hat", C, "jane.png")
    run_id = edited.imported().run_id
    forget(store, choose(store, image_ids=["jane.png"]), threads=1)
    assert not verify(store, run_id).problems
    left = b"".join(path.read_bytes() for path in Path(store.root).rglob("*") if path.is_file())
    assert b"jane" not in left
    assert current(store, "b") == {("cat", "human"): 1}
    assert edited.imported().committed_before == 1  # it is known, and written no more
    edited.document["info"] = {}
    again = edited.imported()
    assert [row["reason"] for row in again.left_out] == ["was forgotten on request"]


def test_nothing_is_imported_while_images_are_being_forgotten(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", {"a": [mask(CAT, A)], "b": []}, common=[CAT])
    edited = Edited(store, tmp_path / "e.json")
    edited.document["annotations"].clear()
    begin_erasure(store, image_ids=["b"], uris=[], labels=[], condition="?")
    with pytest.raises(PlanError, match="being forgotten"):
        edited.imported()
