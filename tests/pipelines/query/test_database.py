"""An output as an SQL database."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.query.database import VIEWS, open_arrow, open_database, open_polars
from pipelines.query.user_select import check_select, first_rows
from pipelines.storage.store import Store, open_store
from pipelines.table.schema import ANNOTATIONS
from tests.support.labeled import RUN, box, mask, named, write_output
from tests.support.seaweed import S3Server

ODD = "it's [a-z]*?ü date=2026 %41+#&"

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
    assert all(database.sql(f"FROM {view}").fetchall() for view in VIEWS if view not in ("corrections", "conflicts"))


def test_the_same_views_are_there_for_arrow_and_polars(store: Store) -> None:
    import polars

    found = {"a": [mask(CAT, box(0, 0, 2, 2), 0.9), mask(DOG, box(1, 1, 2, 2), 0.4)], "b": []}
    write_output(store.uri, found, common=[CAT, DOG])
    table = open_arrow(store).read_all()
    assert sorted(table.cast(ANNOTATIONS).column("category_name").to_pylist()) == ["cat", "dog"]
    frame = open_polars(store, "FROM coverage").filter(polars.col("n") > 0).select("image_id", "prompt_id").collect()
    assert sorted(frame.rows()) == [("a", "ovseg:cat"), ("a", "ovseg:dog")]


@pytest.mark.parametrize("where", ["folder", "memory", "s3"])
def test_names_are_never_taken_for_patterns(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if where == "s3":
        request.getfixturevalue("s3")
    roots = {"folder": str(tmp_path), "memory": "memory://patterns", "s3": f"s3://bkt/{secrets.token_hex(4)}"}
    uri = f"{roots[where]}/{ODD}"
    for run_id, name in ((ODD, "one.png"), ("it's a date=2026", "two.png")):
        write_output(uri, {name: [mask(CAT, box(0, 0, 2, 2))]}, common=[CAT], run_id=run_id)
    database = open_database(open_store(uri))
    assert database.sql("SELECT image_id, run_id FROM annotations ORDER BY 1").fetchall() == [
        ("one.png", ODD),
        ("two.png", "it's a date=2026"),
    ]
    assert "date" not in database.sql("FROM annotations").columns


def test_a_leftover_or_a_file_half_written_is_not_shown(store: Store) -> None:
    write_output(store.uri, {name: [mask(CAT, box(0, 0, 2, 2))] for name in "abcd"}, common=[CAT], committed=1)
    (name, *_) = store.find(f"annotations/{RUN}")
    store.write(name.replace("shard-00000", "shard-00001"), store.read(name))
    store.write(f"annotations/{RUN}/shard-00002-d1-0.parquet", b"PAR1")
    assert open_database(store).sql("SELECT image_id FROM annotations ORDER BY 1").fetchall() == [("a",), ("b",)]


_MANY_READS = """
import sys
from pipelines.query import open_database
from pipelines.storage import open_store
database = open_database(open_store(sys.argv[1]))
for _ in range(3):
    print(database.sql("SELECT count(*), sum(area), max(len(segmentation.counts)) FROM annotations").fetchall())
"""


def test_many_objects_are_read_at_once_and_nothing_is_left_to_say(s3: S3Server) -> None:
    uri = f"s3://bkt/{secrets.token_hex(4)}"
    found = {f"{number:03d}.png": [mask(CAT, box(0, 0, 2, 2))] for number in range(40)}
    write_output(uri, found, common=[CAT], per_shard=1)
    command = [sys.executable, "-c", _MANY_READS, uri]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout.splitlines() == ["[(40, 160, 6)]"] * 3


def test_an_object_that_is_gone_is_named(s3: S3Server) -> None:
    uri = f"s3://bkt/{secrets.token_hex(4)}"
    store, _ = write_output(uri, {"a.png": [mask(CAT, box(0, 0, 2, 2))]}, common=[CAT])
    database = open_database(store)
    (name,) = store.find(f"annotations/{RUN}")
    store.delete(name)
    with pytest.raises((OSError, ValueError), match="shard-00000"):
        first_rows(database, check_select(database, "FROM annotations"), 1)
