"""An output as an SQL database."""

from __future__ import annotations

import pytest

from pipelines.query import VIEWS, open_database
from tests.labelled import RUN, box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_every_view_of_an_output_can_be_queried(where: str, tmp_path) -> None:
    found = {"a": [mask(CAT, box(0, 0, 2, 2), 0.9), mask(DOG, box(1, 1, 2, 2), 0.4)], "b": [], "c": None}
    uri = tmp_path / "it's out" if where == "folder" else "memory://test-query"
    store, _ = write_output(uri, found, common=[CAT, DOG])
    database = open_database(store)
    assert database.sql("SELECT image_id, category_name FROM annotations ORDER BY score").fetchall() == [
        ("a", "dog"),
        ("a", "cat"),
    ]
    assert database.sql("SELECT image_id, status FROM images ORDER BY 1").fetchall() == [
        ("a", "ok"),
        ("b", "empty"),
        ("c", "quarantined"),
    ]
    assert database.sql("SELECT image_id, prompt_id, n FROM coverage ORDER BY 1, 2").fetchall() == [
        ("a", "ovseg:cat", 1),
        ("a", "ovseg:dog", 1),
        ("b", "ovseg:cat", 0),
        ("b", "ovseg:dog", 0),
    ]
    assert database.sql("SELECT run_id, images, images_ok, annotations FROM runs").fetchall() == [(RUN, 3, 1, 2)]
    assert all(database.sql(f"FROM {view}").fetchall() for view in VIEWS)
