"""What the latest run does not ask any more: current by default, and left out where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.export.write import Choice, export_output
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from tests.support.labeled import box, mask, named, region, write_output

CUP, MOON = named("ovseg", "cup", "moon")
POINT = region("vgdseg", "p1", "point", "star")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run of two categories and a prompt of one image, then one of another image and one of the categories."""
    uri = tmp_path_factory.mktemp("removed") / "output"
    first = {
        "both.jpg": [mask(CUP, box(0, 0, 2, 2)), mask(MOON, box(4, 4, 2, 2))],
        "moon.jpg": [mask(MOON, box(4, 4, 2, 2))],
        "star.jpg": [mask(POINT, box(4, 4, 2, 2)), mask(MOON, box(0, 0, 2, 2))],
    }
    write_output(uri, first, common=[CUP, MOON], own={"star.jpg": [POINT]})
    write_output(uri, {"early.jpg": []}, common=[MOON], run_id="run-2")
    return write_output(uri, {"late.jpg": [mask(CUP, box(0, 0, 2, 2))]}, common=[CUP], run_id="run-3")[0]


def test_a_view_tells_which_prompts_the_latest_run_asks(output: Store) -> None:
    rows = open_database(output).execute("FROM prompts ORDER BY prompt_id").fetchall()
    assert rows == [
        ("ovseg:cup", "ovseg", "cup", "run-1", "run-3", True),
        ("ovseg:moon", "ovseg", "moon", "run-1", "run-2", False),
    ]


def test_removed_prompts_stay_current_unless_they_are_dropped(output: Store) -> None:
    query = "SELECT image_id, category_name FROM annotations ORDER BY ALL"
    assert len(open_database(output).execute(query).fetchall()) == 6
    dropped = open_database(output, drop_removed=True)
    assert dropped.execute(query).fetchall() == [("both.jpg", "cup"), ("late.jpg", "cup"), ("star.jpg", "star")]
    assert dropped.execute("SELECT DISTINCT prompt_id FROM coverage ORDER BY 1").fetchall() == [
        ("ovseg:cup",),
        ("p1",),
    ]
    rows = dropped.execute("SELECT image_id, status, num_annotations, tasks FROM images ORDER BY 1").fetchall()
    assert [(image, status, number, sorted(tasks)) for image, status, number, tasks in rows] == [
        ("both.jpg", "ok", 1, ["ovseg"]),
        ("early.jpg", "not_asked", 0, []),
        ("late.jpg", "ok", 1, ["ovseg"]),
        ("moon.jpg", "empty", 0, ["ovseg"]),
        ("star.jpg", "ok", 1, ["ovseg", "vgdseg"]),
    ]


def test_an_export_without_removed_prompts_has_neither_their_masks_nor_their_names(
    output: Store, tmp_path: Path
) -> None:
    export = export_output(output, str(tmp_path / "coco.json"), "coco", Choice(drop_removed=True))
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [category["name"] for category in document["categories"]] == ["cup", "star"]
    assert [image["file_name"] for image in document["images"]] == ["both.jpg", "late.jpg", "moon.jpg", "star.jpg"]
    assert (export.num_masks, export.num_unasked) == ({"": 3}, 1)
