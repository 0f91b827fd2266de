"""Iceberg tables of a catalog that is a file: the current rows, in the files that the Delta logs name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from pipelines.errors import StorageError, UserError
from pipelines.forgetting import choose, forget
from pipelines.lakehouse.iceberg import open_catalog, publish_iceberg
from pipelines.layout import KINDS, Kind
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS
from tests.support.commands import command
from tests.support.labeled import RUN, box, mask, named, write_output

CAT, DOG = PROMPTS = named("ovseg", "cat", "dog")


@pytest.fixture
def catalog(tmp_path: Path) -> SqlCatalog:
    (tmp_path / "warehouse").mkdir()
    where = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    return SqlCatalog("ours", **where)


def label(folder: Path, images: str, run_id: str, place: int = 1, asked: Any = PROMPTS) -> Store:
    found = {name: [mask(one, box(place, row, 2, 2), 0.9) for row, one in enumerate(asked)] for name in images}
    return write_output(folder / "out", found, common=asked, run_id=run_id)[0]


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    # pyiceberg reads a null list of structs as an empty one.
    return sorted(json.dumps({name: row[name] or None for name in sorted(row)}, sort_keys=True) for row in rows)


def check_seen(store: Store, catalog: SqlCatalog) -> None:
    with open_database(store) as database:
        for kind in KINDS:
            expected = database.sql(f"SELECT {', '.join(SCHEMAS[kind].names)} FROM {kind}").to_arrow_table()
            assert in_order(seen(catalog, kind)) == in_order(expected.to_pylist()), kind


def seen(catalog: SqlCatalog, kind: Kind) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.load_table(f"labels.{kind}").scan().to_arrow().to_pylist()
    return rows


def test_tables_follow_what_is_current(tmp_path: Path, catalog: SqlCatalog) -> None:
    store = label(tmp_path, "abde", RUN)
    assert [table.is_new for table in publish_iceberg(store, catalog, "labels")] == [True, True]
    assert [table.is_new for table in publish_iceberg(store, catalog, "labels")] == [False, False]
    check_seen(store, catalog)
    label(tmp_path, "ax", "again", 2, PROMPTS[:1])
    (told, _) = publish_iceberg(store, catalog, "labels")
    assert (told.version, told.num_files, told.added, told.removed, told.written) == (1, 3, 2, 1, 1)
    check_seen(store, catalog)
    forget(store, choose(store, images_where="image_id = 'a'"))
    publish_iceberg(store, catalog, "labels")
    check_seen(store, catalog)


def test_of_two_that_publish_at_once_none_adds_what_the_other_has(
    tmp_path: Path, catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = label(tmp_path, "ab", RUN)
    others = SqlCatalog("ours", **catalog.properties)
    left = [1]

    def meanwhile(step: str) -> None:
        if step.startswith("adding") and left[0]:
            left[0] -= 1
            publish_iceberg(store, others, "labels")

    publish_iceberg(store, catalog, "labels", on_step=meanwhile)
    assert left == [0]
    check_seen(store, catalog)


def test_tables_that_are_not_of_this_output_are_left_alone(tmp_path: Path, catalog: SqlCatalog) -> None:
    store = label(tmp_path, "ab", RUN)
    catalog.create_namespace("labels")
    theirs = catalog.create_table("labels.images", SCHEMAS["images"])
    with pytest.raises(StorageError, match=r"labels\.images was not made by xsam-label.*another namespace"):
        publish_iceberg(store, catalog, "labels")
    assert theirs.refresh().snapshots() == []
    publish_iceberg(store, catalog, "ours")
    other = write_output(tmp_path / "other", {"a": []}, common=PROMPTS)[0]
    with pytest.raises(StorageError, match=r"ours\.annotations is of the output file://.*/out"):
        publish_iceberg(other, catalog, "ours")


def test_a_table_to_which_others_have_added_rows_is_left_alone(tmp_path: Path, catalog: SqlCatalog) -> None:
    store = label(tmp_path, "ab", RUN)
    publish_iceberg(store, catalog, "labels")
    table = catalog.load_table("labels.annotations")
    table.append(table.scan().to_arrow())
    held = len(table.snapshots())
    label(tmp_path, "x", "more")
    with pytest.raises(StorageError, match="holds files of others"):
        publish_iceberg(store, catalog, "labels")
    assert len(table.refresh().snapshots()) == held


def test_the_command_publishes_to_a_catalog_of_the_configuration(
    tmp_path: Path, catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = label(tmp_path, "ab", RUN)
    ended = command("publish", store.root, "--iceberg", "nowhere.labels")
    assert ended.is_refusal
    assert "the Iceberg catalog nowhere: " in ended.errors
    assert "name a catalog and a namespace" in command("publish", store.root, "--iceberg", "nowhere").errors
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", lambda _: catalog)
    ended = command("publish", store.root, "--iceberg", "ours.labels")
    assert (ended.code, ended.errors) == (0, "")
    assert "ours.labels.annotations" in ended.out
    check_seen(store, catalog)


def test_without_pyiceberg_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyiceberg.catalog", None)
    with pytest.raises(UserError, match=r"pip install 'xsam-label\[iceberg\]'"):
        open_catalog("ours")
