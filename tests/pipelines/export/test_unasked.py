"""Exports leave out, and count, images of which nothing exported was asked: they are no negatives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.export.write import FORMATS, Choice, Export, export_output
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.types import Caption
from tests.support.labeled import box, mask, named, region, write_output

CAT, DOG = named("ovseg", "cat", "dog")
(CHAT,) = named("chat", "Is it dark?")
(CAPTION,) = named("gcgseg", "caption")
POINT, OUTSIDE = region("vgdseg", "p1", "point", "cup"), region("vgdseg", "p2", "point", "cup")
(SKY,) = named("ovseg_panoptic", "sky")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run with a table of prompts: one image has a mask, one has none, and of four nothing was asked or answered."""
    found = {
        "found.jpg": [mask(POINT, box(0, 0, 2, 3), 0.9)],
        "nothing.jpg": [],
        "other.jpg": [],
        "refused.jpg": [],
        "silent.jpg": [],
        "spoken.jpg": [],
        "told.jpg": [],
    }
    own = {
        "found.jpg": [POINT],
        "nothing.jpg": [POINT],
        "refused.jpg": [OUTSIDE],
        "silent.jpg": [CHAT],
        "spoken.jpg": [CHAT],
        "told.jpg": [CAPTION],
    }
    said = {"spoken.jpg": [Caption(prompt=CHAT, text="No.")], "told.jpg": [Caption(prompt=CAPTION, text="A yard.")]}
    return write_output(
        tmp_path_factory.mktemp("unasked") / "output", found, own=own, said=said, rejected={"refused.jpg": ["p2"]}
    )[0]


def coco_images(store: Store, path: Path, **choice: object) -> tuple[list[str], Export]:
    export = export_output(store, str(path), "coco", Choice(**choice))  # type: ignore[arg-type]
    return [image["file_name"] for image in json.loads(path.read_text())["images"]], export


def test_an_image_that_was_asked_for_no_mask_has_a_status_of_its_own(output: Store) -> None:
    rows = open_database(output).execute("SELECT image_id, status, tasks FROM images ORDER BY 1").fetchall()
    assert rows == [
        ("found.jpg", "ok", ["vgdseg"]),
        ("nothing.jpg", "empty", ["vgdseg"]),
        ("other.jpg", "not_asked", []),
        ("refused.jpg", "not_asked", []),
        ("silent.jpg", "not_asked", ["chat"]),
        ("spoken.jpg", "ok", ["chat"]),
        ("told.jpg", "ok", ["gcgseg"]),
    ]
    (counts,) = open_database(output).execute("SELECT images_ok, images_empty, images_not_asked FROM runs").fetchall()
    assert counts == (3, 1, 3)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if not form.of_maps])
def test_no_format_holds_an_image_that_was_not_asked(output: Store, name: str, tmp_path: Path) -> None:
    export = export_output(output, str(tmp_path / "out"), name, Choice())
    assert (export.num_images, export.num_unasked) == ({"": 2}, 5)
    texts = "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())
    names = {path.stem for path in (tmp_path / "out").rglob("*")}
    for image in ("other", "refused", "silent", "spoken", "told"):
        assert (f"{image}.jpg" in texts, image in names) == (False, False)


def test_an_image_asked_about_other_categories_alone_is_no_negative_of_these(tmp_path: Path) -> None:
    write_output(tmp_path / "output", {"a.jpg": [], "b.jpg": [mask(CAT, box(0, 0, 2, 2))]}, common=[CAT])
    later = {"c.jpg": [mask(DOG, box(0, 0, 2, 2))], "d.jpg": []}
    store, _ = write_output(tmp_path / "output", later, common=[DOG], run_id="run-2")
    assert coco_images(store, tmp_path / "all.json")[0] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    images, export = coco_images(store, tmp_path / "dog.json", categories=("dog",))
    assert (images, export.num_unasked) == (["c.jpg", "d.jpg"], 2)
    images, export = coco_images(store, tmp_path / "cat.json", where="category_name = 'cat'")
    assert (images, export.num_unasked) == (["a.jpg", "b.jpg"], 2)


def test_an_image_asked_of_another_task_alone_has_no_void_map(tmp_path: Path) -> None:
    write_output(tmp_path / "output", {"a.jpg": [mask(CAT, box(0, 0, 2, 2))], "b.jpg": []}, common=[CAT])
    store, _ = write_output(
        tmp_path / "output", {"c.jpg": [mask(SKY, box(0, 0, 2, 2))], "d.jpg": []}, common=[SKY], run_id="run-2"
    )
    export = export_output(store, str(tmp_path / "panoptic"), "panoptic", Choice())
    assert sorted(path.stem for path in (tmp_path / "panoptic" / "panoptic").iterdir()) == ["c", "d"]
    assert export.num_unasked == 2


def test_an_image_that_a_later_run_asks_is_not_asked_no_longer(tmp_path: Path) -> None:
    write_output(tmp_path / "output", {"a.jpg": [], "b.jpg": [], "c.jpg": []}, own={"a.jpg": [POINT]})
    store, _ = write_output(tmp_path / "output", {"b.jpg": []}, common=[CAT], run_id="run-2")
    rows = open_database(store).execute("SELECT image_id, status, tasks FROM images ORDER BY 1").fetchall()
    assert rows == [("a.jpg", "empty", ["vgdseg"]), ("b.jpg", "empty", ["ovseg"]), ("c.jpg", "not_asked", [])]


def test_rows_of_earlier_versions_are_judged_by_what_they_say_was_answered(tmp_path: Path) -> None:
    """As written before there was such a status: "empty", without a word of tasks."""
    import duckdb
    import pyarrow as pa

    from pipelines.query.current_rows import rows_of_earlier_versions
    from pipelines.table.schema import IMAGES

    def row(image_id: str, per_prompt: dict[str, int | None], said: str | None = None) -> dict[str, object]:
        entries = [{"prompt_id": name, "n": n, "max_score": None, "rejected": None} for name, n in per_prompt.items()]
        captions = [{"prompt_id": said, "task": "chat", "text": "No.", "phrases": []}] if said else []
        return {"image_id": image_id, "uri": image_id, "status": "ok" if said else "empty", "attempts": 1,
                "num_annotations": 0, "per_prompt": entries, "captions": captions, "run_id": "r", "shard_id": "s",
                "attempt": "a"}  # fmt: skip

    rows = [
        row("a", {}),
        row("b", {"p1": None}),
        row("c", {"ovseg:cat": 0}),
        row("d", {"p1": 0}),
        row("e", {"q": 0}, "q"),
    ]
    rows += [row("f", {"chat:why": 0})]
    old = pa.Table.from_pylist(rows, schema=IMAGES)
    with duckdb.connect() as connection:
        connection.register("old", old)
        found = connection.sql(
            f"SELECT image_id, status, tasks FROM ({rows_of_earlier_versions('FROM old')}) ORDER BY 1"
        )
        assert [(image, status, sorted(tasks)) for image, status, tasks in found.fetchall()] == [
            ("a", "not_asked", []),
            ("b", "not_asked", []),
            ("c", "empty", ["ovseg"]),
            ("d", "empty", ["intseg", "reaseg", "refseg", "vgdseg"]),
            ("e", "ok", ["chat"]),
            ("f", "not_asked", ["chat"]),
        ]
