"""Delta tables over an output made by hand: every reader sees the current rows, whatever has replaced others."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from pipelines.compaction import compact
from pipelines.errors import DamagedError, PlanError, StorageError
from pipelines.export.write import Choice, export_output
from pipelines.forgetting import choose, forget
from pipelines.importing.imports import ImportChoice, import_file
from pipelines.lakehouse.delta_log import ForeignLogError, read_delta_log
from pipelines.lakehouse.publish import publish_delta
from pipelines.lakehouse.removal import vacuum_published
from pipelines.layout import KINDS, Kind, current_folder, delta_log_name
from pipelines.planning.erasures import begin_erasure
from pipelines.planning.plan import plan_documents
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.leftovers import vacuum
from pipelines.table.reader import open_table
from pipelines.table.schema import SCHEMAS
from pipelines.table.stray_files import stray_files
from pipelines.table.verify import verify
from tests.support.commands import command
from tests.support.labeled import RUN, box, mask, named, write_output
from tests.support.seaweed import S3Server

CAT, DOG = named("ovseg", "cat", "dog")
EARLIER = sorted((Path(__file__).parents[2] / "outputs").glob("schema-*/finished"))


def of_dataset(root: str) -> pa.Table:
    return DeltaTable(root).to_pyarrow_dataset().to_table()


def of_duckdb(root: str) -> pa.Table:
    rows = DeltaTable(root).to_pyarrow_dataset()
    with duckdb.connect() as database:
        return database.register("rows", rows).sql("FROM rows").to_arrow_table()


READERS: list[Callable[[str], pa.Table]] = [
    lambda root: DeltaTable(root).to_pyarrow_table(),
    of_dataset,
    of_duckdb,
    lambda root: pl.scan_delta(root).collect().to_arrow(),
]


def in_order(rows: pa.Table) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows.to_pylist())


def check_seen(store: Store, readers: list[Callable[[str], pa.Table]] = READERS[:1]) -> None:
    """Check that readers see the current rows."""
    with open_database(store) as database:
        for kind in KINDS:
            columns = ", ".join(SCHEMAS[kind].names)
            expected = in_order(database.sql(f"SELECT {columns} FROM {kind}").to_arrow_table())
            for reader in readers:
                assert in_order(reader(store.path(kind))) == expected, kind


def check_by_path(store: Store) -> None:
    """Check that whoever goes by the path sees the rows of all runs, and that nothing is found wrong."""
    for kind in KINDS:
        by_path = ds.dataset(sorted(Path(store.path(kind)).glob("*/*.parquet"))).to_table()
        assert in_order(by_path) == in_order(open_table(store, kind).to_table())
    assert stray_files(store) == []
    for run_id in plan_documents(store):
        report = verify(store, run_id)
        assert (report.problems, report.leftovers) == ([], [])


def versions(store: Store) -> list[int]:
    return [table.version for table in publish_delta(store)]


def label(folder: Path, images: str, run_id: str, place: int = 1, **more: Any) -> Store:
    """A run that finds in each image all that it asks, at a place of its own; "c" fails in the first run."""
    asked = more.pop("common", [CAT, DOG])
    found = {name: [mask(one, box(place, row, 2, 2), 0.9) for row, one in enumerate(asked)] for name in images}
    if run_id == RUN and "c" in found:
        found["c"] = None  # type: ignore[assignment]
    return write_output(folder / "out", found, common=asked, run_id=run_id, **more)[0]


def test_readers_see_the_current_rows_after_whatever_replaces_others(tmp_path: Path) -> None:
    def correct() -> None:
        exported = tmp_path / "exported"
        export_output(store, str(exported), "coco", Choice())
        path = exported / "instances.json"
        document = json.loads(path.read_text())
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] != 1][1:]
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps(document))
        import_file(store, str(edited), ImportChoice(format_name="coco", exported=str(path)))

    store = label(tmp_path, "abcde", RUN)
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: label(tmp_path, "fg", "new-images"),
        lambda: label(tmp_path, "abdefg", "new-prompt", common=named("ovseg", "cow")),
        lambda: label(tmp_path, "c", "retried", 2, fingerprint={"retry": {"run_id": RUN, "number": 1}}),
        correct,
        lambda: label(tmp_path, "ab", "relabeled", 3, fingerprint={"relabel": {"run_id": RUN}}),
        lambda: label(tmp_path, "de", "again", 4, fingerprint={"over_corrections": True}),
        lambda: forget(store, choose(store, images_where="image_id IN ('a', 'd')")),
    ]
    for version, step in enumerate(steps):
        step()
        if version < len(steps) - 1:  # which publishes by itself
            assert versions(store) == [version, version]
        check_seen(store, READERS)
    check_by_path(store)
    held = store.find("")
    assert versions(store) == [version, version]
    assert store.find("") == held


@pytest.mark.parametrize("earlier", EARLIER, ids=lambda path: path.parent.name)
def test_outputs_of_earlier_versions_are_published(earlier: Path, tmp_path: Path) -> None:
    shutil.copytree(earlier, tmp_path / "out")
    store = label(tmp_path, "xy", "today")
    assert versions(store) == [0, 0]
    check_seen(store)


def test_committed_files_are_named_where_they_are_with_what_they_hold(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", "Nacht 1%20ä")
    before = store.find("annotations")
    publish_delta(store)
    (name,) = before
    assert store.find("annotations").keys() - before.keys() == {delta_log_name("annotations", 0)}
    (added,) = pa.table(DeltaTable(store.path("annotations")).get_add_actions(flatten=True)).to_pylist()
    assert (added["size_bytes"], added["num_records"]) == (before[name], 4)
    assert (added["min.image_id"], added["max.image_id"]) == ("a", "b")
    assert (added["min.prompt_id"], added["max.category_id"]) == ("ovseg:cat", 1)
    check_seen(store)


def test_readers_pass_over_files_by_their_statistics(tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    publish_delta(store)
    first = min(store.find("annotations/run-1"))
    store.write(first, b"not looked into")
    root = store.path("annotations")
    assert DeltaTable(root).to_pyarrow_table(filters=[("image_id", "=", "d")]).num_rows == 2
    assert pl.scan_delta(root).filter(pl.col("image_id") >= "d").collect().height == 4


def test_tables_in_a_bucket_are_read_by_their_uri(s3: S3Server) -> None:
    store, _ = write_output("s3://bkt/published", {"a": [mask(CAT, box(1, 1, 2, 2))], "b": None}, common=[CAT])
    publish_delta(store)
    write_output("s3://bkt/published", {"a": []}, common=[CAT], run_id="again")
    assert versions(store) == [1, 1]
    options = {"AWS_ALLOW_HTTP": "true"}
    assert DeltaTable(f"{store.uri}/annotations", storage_options=options).to_pyarrow_table().num_rows == 0
    rows = pl.scan_delta(f"{store.uri}/images", storage_options=options).sort("image_id").collect()
    assert rows["status"].to_list() == ["empty", "quarantined"]


def test_compactions_are_copies_and_belong_to_no_table(tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    compact(store)
    assert versions(store) == [0, 0]
    label(tmp_path, "a", "again", 2)
    compact(store)
    assert versions(store) == [1, 1]
    check_seen(store)


@pytest.mark.parametrize("step", range(4))
def test_of_two_that_publish_at_once_each_writes_a_version_of_its_own(step: int, tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    publish_delta(store)
    label(tmp_path, "a", "second", 2)
    left = [step]

    def meanwhile(_: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            publish_delta(store)
            label(tmp_path, "b", "third", 3)

    published = publish_delta(store, on_step=meanwhile)
    assert left[0] < 0
    assert publish_delta(store)[0].version == 2
    assert [log.version for log in (read_delta_log(store, kind) for kind in KINDS)] == [2, 2]
    assert published[0].version >= 1
    for kind in KINDS:
        log = read_delta_log(store, kind)
        named_once = log.files.keys() | log.removed.keys()
        assert set(store.find(current_folder(kind))) <= named_once
    check_seen(store)


def test_a_publisher_that_dies_leaves_nothing_that_a_reader_sees(tmp_path: Path, monkeypatch: Any) -> None:
    store = label(tmp_path, "abde", RUN)
    publish_delta(store)
    seen = {kind: in_order(of_dataset(store.path(kind))) for kind in KINDS}
    label(tmp_path, "a", "second", 2)

    def dies(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.lakehouse.publish.write_version", dies)
        with pytest.raises(KeyboardInterrupt):
            publish_delta(store)
    assert {kind: in_order(of_dataset(store.path(kind))) for kind in KINDS} == seen
    (left,) = store.find(current_folder("annotations"))
    assert vacuum_published(store).kept == [left]
    assert vacuum_published(store, older_than_s=0).removed == [left]
    assert versions(store) == [1, 1]
    check_seen(store)


def test_files_that_a_version_has_removed_stay_for_its_readers_until_vacuum_finds_it_old(tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    label(tmp_path, "a", "second", 2)
    publish_delta(store)
    (first,) = store.find(current_folder("annotations"))
    label(tmp_path, "b", "third", 3)
    publish_delta(store)
    assert first in vacuum_published(store).kept
    assert first in vacuum_published(store, older_than_s=0, dry_run=True).removed
    assert store.exists(first)
    assert vacuum(store, RUN, older_than_s=0).removed == []
    assert first in command("vacuum", store.root, "--older-than", "0").out
    assert not store.exists(first)
    check_seen(store)


def test_others_may_read_the_tables_and_not_write_or_clean_them(tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    label(tmp_path, "abde", "again", 2)
    publish_delta(store)
    held = store.find("")
    table = DeltaTable(store.path("annotations"))
    with pytest.raises(CommitFailedError):
        table.delete()
    # Files of replaced rows are in the folder, and not in the log.
    with pytest.raises(CommitFailedError):
        table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
    assert store.find("") == held


def written_rows(store: Store, kind: Kind) -> list[str]:
    """The rows of all files that were written for the table, whether they belong to it or not."""
    names = store.find(current_folder(kind))
    return [row for name in names for row in in_order(pq.read_table(io.BytesIO(store.read(name))))]


def append_as_others(store: Store) -> None:
    entry = {"commitInfo": {"timestamp": 1, "operation": "WRITE", "engineInfo": "somebody/1"}}
    Path(store.path(delta_log_name("images", 1))).write_text(json.dumps(entry))


def write_as_others(store: Store) -> None:
    for file in Path(store.path("images/_delta_log")).iterdir():
        file.unlink()
    write_deltalake(store.path("images"), pa.table({"n": [1]}))


def leave_a_checkpoint(store: Store) -> None:
    Path(store.path(delta_log_name("images", 0))).rename(store.path("images/_delta_log/_last_checkpoint"))


@pytest.mark.parametrize("change", [append_as_others, write_as_others, leave_a_checkpoint])
def test_a_log_of_others_is_refused_and_nothing_is_written(change: Callable[[Store], None], tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    publish_delta(store)
    change(store)
    label(tmp_path, "a", "again", 2)
    held = store.find("")
    with pytest.raises(ForeignLogError, match=r"images/_delta_log.*others have written is left as it is.*move"):
        publish_delta(store)
    ended = command("publish", store.root, "--delta")
    assert ended.is_refusal
    assert len(ended.errors.splitlines()) == 1
    assert store.find("") == held
    assert vacuum_published(store, older_than_s=0).removed == []


def test_a_lost_or_damaged_version_is_named(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    publish_delta(store)
    label(tmp_path, "a", "again", 2)
    publish_delta(store)
    store.delete(delta_log_name("annotations", 0))
    with pytest.raises(DamagedError, match=r"0000\.json is missing; remove the folder annotations/_delta_log"):
        publish_delta(store)
    store.write(delta_log_name("annotations", 0), b"{")
    with pytest.raises(DamagedError, match="no version of a Delta log"):
        publish_delta(store)


def test_a_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    publish_delta(store)
    name = delta_log_name("annotations", 0)
    store.write(name, store.read(name).replace(b'"xsamLabel": {"format": 1}', b'"xsamLabel": {"format": 2}'))
    with pytest.raises(StorageError, match="written by a newer version; upgrade"):
        publish_delta(store)


def test_forgotten_images_leave_nothing_in_a_published_table(tmp_path: Path) -> None:
    store = label(tmp_path, ["jane", "b", "d"], RUN)  # type: ignore[arg-type]
    publish_delta(store)
    label(tmp_path, ["b", "jane"], "again", 2, common=[DOG])  # type: ignore[arg-type]
    publish_delta(store)
    assert any("jane" in row for kind in KINDS for row in written_rows(store, kind))
    erased = forget(store, choose(store, images_where="image_id = 'jane'"))
    assert (erased.left, erased.others, erased.problems) == ([], [], [])
    for kind in KINDS:
        assert not any("jane" in row for row in written_rows(store, kind))
        log = read_delta_log(store, kind)
        assert set(store.find(current_folder(kind))) <= log.files.keys()
        assert not any(b"jane" in store.read(delta_log_name(kind, one)) for one in range(log.version + 1))
        assert all(b'"minValues' not in store.read(delta_log_name(kind, one)) for one in range(log.version - 1))
    check_seen(store)


def test_a_log_that_no_listing_shows_yet_is_found_by_forgetting(tmp_path: Path, monkeypatch: Any) -> None:
    store = label(tmp_path, ["jane", "b"], RUN)  # type: ignore[arg-type]
    publish_delta(store)
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda *to: {} if "_delta_log" in to[1] else find(*to))
    forget(store, choose(store, images_where="image_id = 'jane'"))
    assert versions(store) == [1, 1]
    assert not any(b"jane" in store.read(delta_log_name(kind, 0)) for kind in KINDS)


def test_what_is_forgotten_beside_a_first_publication_is_not_in_it(tmp_path: Path) -> None:
    store = label(tmp_path, ["jane", "b"], RUN)  # type: ignore[arg-type]
    told: list[str] = []

    def meanwhile(step: str) -> None:
        told.append(step)
        if told.count("read the footer of file 1 of 1") == 1 and step.startswith("read the footer"):
            forget(store, choose(store, images_where="image_id = 'jane'"))

    publish_delta(store, on_step=meanwhile)
    assert told.count("reading the logs") == 2
    for kind in KINDS:
        assert not any("jane" in row for row in written_rows(store, kind))
        assert all(store.exists(name) for name in read_delta_log(store, kind).files)
    check_seen(store)


def test_where_create_only_writes_are_not_to_be_had_forgetting_ends_all_the_same(
    tmp_path: Path, monkeypatch: Any
) -> None:
    store = label(tmp_path, ["jane", "b"], RUN)  # type: ignore[arg-type]
    publish_delta(store)
    label(tmp_path, "b", "again", 2)
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda *to: create(*to) or "probe" in to[1])
    with pytest.raises(StorageError, match="publish a copy of the output in one"):
        publish_delta(store)
    erased = forget(store, choose(store, images_where="image_id = 'jane'"))
    assert (erased.left, erased.problems) == ([], [])


def test_vacuum_tells_what_it_has_removed_although_a_log_is_damaged(tmp_path: Path) -> None:
    store = label(tmp_path, "abde", RUN)
    label(tmp_path, "a", "second", 2)
    publish_delta(store)
    store.write(delta_log_name("annotations", 0), b"{")
    ended = command("vacuum", store.uri, "--older-than", "0")
    assert ended.code == 1
    assert "0 leftovers removed" in ended.out
    assert "no version of a Delta log" in ended.out + ended.errors


def test_forgetting_leaves_a_log_of_others_alone_and_says_so(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    label(tmp_path, "a", "again", 2)
    publish_delta(store)
    append_as_others(store)
    erased = forget(store, choose(store, images_where="image_id = 'a'"))
    assert delta_log_name("images", 1) in erased.others
    assert store.find(current_folder("images")) == {}


def test_an_output_that_was_never_published_is_not_by_forgetting(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    forget(store, choose(store, images_where="image_id = 'a'"))
    assert not any("_delta_log" in name for name in store.find(""))


def test_nothing_is_published_while_images_are_forgotten_or_nothing_is_committed(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN, committed=0)
    with pytest.raises(PlanError, match="nothing to publish"):
        publish_delta(store)
    begin_erasure(store, image_ids=["a"], uris=[], labels=[], condition="image_id = ?")
    with pytest.raises(PlanError, match="being forgotten"):
        publish_delta(store)
    assert not any("_delta_log" in name for name in store.find(""))


def test_the_command_tells_what_was_published(tmp_path: Path) -> None:
    store = label(tmp_path, "ab", RUN)
    told = command("publish", store.root, "--delta")
    assert told.code == 0
    assert "version 0 of 1 file: 1 added, 0 removed" in told.out
    assert "nothing has changed since" in command("publish", store.root, "--delta").out
    label(tmp_path, "a", "again", 2)
    document = json.loads(command("publish", store.root, "--delta", "--json").out)
    assert [table["version"] for table in document["tables"]] == [1, 1]
    assert document["tables"][0]["written"] == 1
    assert command("publish", store.root).code == 2
