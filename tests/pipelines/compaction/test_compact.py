"""Compaction: the rows of every committed shard in few files, whatever comes between; the table stays as it is."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.compaction import compact, newest_compacted
from pipelines.compaction.compacted import verify_compacted
from pipelines.compaction.removal import vacuum_compacted
from pipelines.errors import DamagedError, PlanError
from pipelines.forgetting import Found, forget
from pipelines.layout import KINDS, Kind
from pipelines.sources.listing import list_batches
from pipelines.storage.store import Store, open_store
from pipelines.table.leftovers import vacuum
from pipelines.table.reader import open_table
from pipelines.table.schema import SCHEMAS
from pipelines.table.stray_files import stray_files
from pipelines.table.verify import verify
from tests.reliability.dying import Death, Dying
from tests.reliability.watched_storage import watched
from tests.support.labeled import box, mask, named, write_output

BRIGHT = named("ovseg", "bright")
NAMES = ("a", "b-jane", "c", "ä", "e", "f")
SCHEMA_OUTPUTS = Path(__file__).parents[2] / "outputs"


@cache
def _written() -> dict[str, bytes]:
    """Two runs of the same images, each image with as many masks as its place says; a third that has none."""
    uri = f"memory://compacting-{secrets.token_hex(4)}"
    for number, run_id in enumerate(("b-first", "a-second", "third")):
        masks = [mask(BRIGHT[0], box(number, 1, 2, 2), 0.9), mask(BRIGHT[0], box(number, 1, 2, 3), 0.5)]
        found = {name: masks[: 0 if run_id == "third" else place % 3] for place, name in enumerate(NAMES)}
        store, _ = write_output(uri, found, common=BRIGHT, run_id=run_id)
    return state(store)


def state(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.find("")}


def fresh(held: dict[str, bytes] | None = None) -> Store:
    store = open_store(f"memory://compacting-{secrets.token_hex(4)}")
    for name, data in (_written() if held is None else held).items():
        store.write(name, data)
    return store


def by_path(store: Store, folder: str, kind: Kind) -> pa.Table:
    """What a reader sees that knows nothing but where the files are."""
    names = sorted(store.find(f"{folder}/{kind}"))
    return pa.concat_tables([pq.read_table(io.BytesIO(store.read(name))) for name in names], promote_options="default")


def in_order(rows: pa.Table, kind: Kind) -> pa.Table:
    last = "rank" if kind == "annotations" else "attempt"
    return (
        rows.select(SCHEMAS[kind].names)
        .replace_schema_metadata()
        .sort_by([(name, "ascending") for name in ("run_id", "image_id", last)])
    )


def check_same_rows(store: Store) -> None:
    held = newest_compacted(store)
    assert held is not None
    for kind in KINDS:
        expected = in_order(open_table(store, kind).to_table(), kind)
        assert in_order(by_path(store, held.folder, kind), kind).equals(expected), kind


def check_untouched(store: Store) -> None:
    held = state(store)
    assert {name: held[name] for name in _written()} == _written()


def test_the_rows_are_those_of_the_table_and_of_one_image_stand_together() -> None:
    store = fresh()
    held, is_new = compact(store)
    assert is_new
    check_untouched(store)
    check_same_rows(store)
    assert [len(held.files[kind]) for kind in KINDS] == [1, 1]
    assert held.num_shards == 9
    assert {run: (one.shards, one.images, one.annotations) for run, one in held.runs.items()} == {
        "b-first": (3, 6, 6),
        "a-second": (3, 6, 6),
        "third": (3, 6, 0),
    }
    rows = by_path(store, held.folder, "annotations")
    found = list(zip(*(rows[name].to_pylist() for name in ("image_id", "run_id", "rank")), strict=True))
    place = {run: number for number, run in enumerate(held.runs)}
    assert found == sorted(found, key=lambda one: (one[0], place[one[1]], one[2]))
    assert verify_compacted(store) == ([], [])
    assert stray_files(store) == []


def test_what_is_compacted_already_is_not_written_again_and_what_is_new_is_taken_in() -> None:
    store = fresh()
    compact(store)
    before = state(store)
    assert compact(store)[1] is False
    assert state(store) == before
    more = {name: [mask(BRIGHT[0], box(0, 0, 1, 1))] for name in ("a", "z")}
    write_output(store.uri, more, common=BRIGHT, run_id="fourth", per_shard=1, committed=1)
    (told,) = verify_compacted(store)[1]
    assert "is older than the table" in told
    held, is_new = compact(store)
    assert is_new
    assert (held.number, held.num_shards) == (2, 10)
    check_same_rows(store)


def test_rows_are_cut_into_files_where_one_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.compaction.write._MAX_ROWS", {"annotations": 5, "images": 4})
    store = fresh()
    held, _ = compact(store)
    assert [[file.rows for file in held.files[kind]] for kind in KINDS] == [[4, 3, 5], [4, 4, 4, 4, 2]]
    check_same_rows(store)
    assert verify_compacted(store) == ([], [])


def test_rows_that_are_small_files_and_large_in_memory_are_cut_into_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hundreds of categories in each image nearly all have no mask: a file of them is a hundredth of its rows."""
    prompts = named("ovseg", *(f"category number {number}" for number in range(300)))
    store = open_store(f"memory://compacting-{secrets.token_hex(4)}")
    write_output(store.uri, {f"{number:02d}": () for number in range(32)}, common=prompts, per_shard=4)
    monkeypatch.setattr("pipelines.compaction.write._MAX_MEMORY", 2**17)
    files = compact(store)[0].files["images"]
    assert [file.rows for file in files] == [8, 8, 8, 8]
    assert [pq.read_table(io.BytesIO(store.read(file.name))).nbytes < 2**17 for file in files] == [True] * 4
    check_same_rows(store)


def test_an_output_without_masks_has_a_file_of_each_table_and_one_without_commits_is_refused() -> None:
    store = open_store(f"memory://compacting-{secrets.token_hex(4)}")
    write_output(store.uri, dict.fromkeys(NAMES, ()), common=BRIGHT, committed=0)
    with pytest.raises(PlanError, match="no shard is committed"):
        compact(store)
    write_output(store.uri, dict.fromkeys(NAMES, ()), common=BRIGHT, run_id="other")
    held, _ = compact(store)
    assert [[file.rows for file in held.files[kind]] for kind in KINDS] == [[0], [6]]
    assert by_path(store, held.folder, "annotations").schema.names == SCHEMAS["annotations"].names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_rows_of_earlier_schema_versions_keep_their_columns(version: int) -> None:
    folder = SCHEMA_OUTPUTS / f"schema-{version}" / "finished"
    store = fresh(
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    )
    held, _ = compact(store)
    for kind in KINDS:
        names = sorted(store.find(kind))
        expected = pa.concat_tables([pq.read_table(io.BytesIO(store.read(name))) for name in names])
        rows = by_path(store, held.folder, kind)
        assert rows.schema.equals(expected.schema.remove_metadata().with_metadata(rows.schema.metadata))
        order = [("image_id", "ascending"), *([("rank", "ascending")] if kind == "annotations" else [])]
        assert rows.replace_schema_metadata().sort_by(order).equals(expected.replace_schema_metadata().sort_by(order))
    assert verify_compacted(store) == ([], [])


def flip(store: Store, name: str, place: int = 40) -> None:
    data = store.read(name)
    store.write(name, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_damage_is_named_and_never_compacted() -> None:
    store = fresh()
    name = next(name for name in store.find("annotations") if "b-first/shard-00001" in name)
    flip(store, name)
    before = state(store)
    with pytest.raises(DamagedError, match=f"{name} does not have the committed SHA-256"):
        compact(store)
    assert state(store) == before
    store.delete(name)
    with pytest.raises(DamagedError, match=f"{name} is missing"):
        compact(store)


def test_damage_of_a_compaction_is_named_with_what_mends_it() -> None:
    store = fresh()
    first, _ = compact(store)
    whole, (file, *_), note = state(store), first.files["annotations"], "_runs/.compacted-000001"
    flip(store, file.name)
    assert verify_compacted(store, deep=False) == ([], [])
    ((told,), _) = verify_compacted(store)
    assert f"{file.name} does not have" in told
    assert f"remove {store.uri}/{note}, and `compact` writes it anew" in told
    store.delete(note)
    assert compact(store)[1]
    assert verify_compacted(store) == ([], [])
    damages: list[Callable[[Store], None]] = [lambda one: one.delete(file.name), lambda one: flip(one, note)]
    for damage in damages:
        store = fresh(whole)
        damage(store)
        ((told,), _) = verify_compacted(store, deep=False)
        assert told.endswith("`compact` writes it anew")
        assert newest_compacted(store) is None
        assert compact(store)[0].number == 2
        assert verify_compacted(store) == ([], [])
        check_same_rows(store)


def test_a_note_that_counts_other_rows_than_its_files_have_is_told() -> None:
    store = fresh()
    held, _ = compact(store)
    runs = {**held.runs, "b-first": replace(held.runs["b-first"], annotations=7)}
    store.write("_runs/.compacted-000001", replace(held, runs=runs).to_json())
    ((told,), _) = verify_compacted(store)
    assert "/annotations has 6 rows of run b-first, its note says 7; remove" in told


def once(do: Callable[[], Any]) -> Callable[[str], None]:
    steps = iter([do])
    return lambda _: next(steps, lambda: None)()


def test_of_two_at_once_one_is_kept_and_the_other_leaves_nothing() -> None:
    store = fresh()
    with pytest.raises(PlanError, match="another compaction has just ended"):
        compact(store, on_file=once(lambda: compact(store)))
    assert len(store.find("compacted")) == 2
    check_same_rows(store)
    assert verify_compacted(store) == ([], [])
    check_untouched(store)


def names_jane(store: Store) -> list[str]:
    return [name for name, data in state(store).items() if b"jane" in data]


def test_forgetting_removes_a_compaction_with_the_rows_that_it_holds() -> None:
    store = fresh()
    compact(store)
    jane = Found(image_ids=("b-jane",), uris=("/p/b-jane",))
    erased = forget(store, jane)
    assert (erased.left, erased.others, erased.problems) == ([], [], [])
    assert newest_compacted(store) is None
    assert names_jane(store) == []
    held, _ = compact(store)
    assert held.erasures == 1
    check_same_rows(store)
    assert names_jane(store) == []


def test_who_compacts_while_images_are_forgotten_leaves_none_of_their_rows() -> None:
    store, jane = fresh(), Found(image_ids=("b-jane",), uris=("/p/b-jane",))
    with pytest.raises(PlanError, match="run the same command again"):
        compact(store, on_file=once(lambda: forget(store, jane)))
    assert names_jane(store) == []
    assert store.find("compacted") == {}
    compact(store)
    check_same_rows(store)


def test_a_note_from_before_an_erasure_is_passed_over_and_removed_at_once() -> None:
    store = fresh()
    compact(store)
    late = {name: data for name, data in state(store).items() if "compacted" in name}
    forget(store, Found(image_ids=("b-jane",), uris=("/p/b-jane",)))
    for name, data in late.items():  # a delayed put that lands after all
        store.write(name, data)
    assert newest_compacted(store) is None
    ((), (told,)) = verify_compacted(store)
    assert "from before images were forgotten" in told
    assert sorted(vacuum_compacted(store).removed) == sorted(late)
    assert names_jane(store) == []


def test_an_erasure_that_has_not_ended_is_waited_for() -> None:
    from pipelines.planning.erasures import begin_erasure

    store = fresh()
    begin_erasure(store, image_ids=["a"], uris=["/p/a"], labels=[], condition="image_id = ?")
    with pytest.raises(PlanError, match="images are being forgotten"):
        compact(store)


def test_a_vacuum_that_takes_its_files_for_abandoned_makes_it_fail_whole() -> None:
    store = fresh()
    with pytest.raises(PlanError, match="removed meanwhile, as if abandoned"):
        compact(store, on_file=once(lambda: vacuum_compacted(store, older_than_s=0)))
    assert store.find("compacted") == {}
    assert newest_compacted(store) is None
    with pytest.MonkeyPatch.context():
        compact(store, on_file=once(lambda: vacuum_compacted(store)))
    check_same_rows(store)


def test_what_is_replaced_stays_until_the_newer_one_is_old_enough() -> None:
    store = fresh()
    first, _ = compact(store)
    write_output(store.uri, {"z": ()}, common=BRIGHT, run_id="fourth")
    compact(store)
    removal = vacuum_compacted(store)
    assert (removal.removed, removal.kept) == ([], ["_runs/.compacted-000001"])
    before = state(store)
    names = ["_runs/.compacted-000001", *sorted(file.name for file in first.all_files)]
    assert vacuum_compacted(store, older_than_s=0, dry_run=True).removed == names
    assert state(store) == before
    assert vacuum_compacted(store, older_than_s=0).removed == names
    check_same_rows(store)


def _die(store: Store, at: int, *, after: bool, act: Callable[[Store], Any]) -> bool:
    with watched(store.uri, Dying(at=at, after=after)):
        try:
            act(open_store(store.uri))
        except Death:
            return True
    return False


def _again() -> Store:
    """An output with a compaction that is not up to date."""
    store = fresh()
    compact(store)
    write_output(store.uri, {"z": ()}, common=BRIGHT, run_id="fourth")
    return store


def _points(store: Store, act: Callable[[Store], Any]) -> Iterator[tuple[int, bool]]:
    watcher = Dying()
    with watched(store.uri, watcher):
        act(open_store(store.uri))
    return ((at, after) for at in range(len(watcher.seen)) for after in (False, True))


def test_a_compaction_that_dies_at_any_side_effect_leaves_a_whole_table_and_is_made_again() -> None:
    held = state(_again())
    expected = [in_order(open_table(fresh(held), kind).to_table(), kind) for kind in KINDS]
    points = list(_points(fresh(held), compact))
    assert len(points) == 2 * 3
    for at, after in points:
        store = fresh(held)
        assert _die(store, at, after=after, act=compact)
        assert [in_order(open_table(store, kind).to_table(), kind) for kind in KINDS] == expected
        assert all(verify(store, run).ok for run in ("b-first", "a-second", "third", "fourth"))
        is_noted = (at, after) == points[-1]
        assert newest_compacted(store).number == 1 + is_noted  # type: ignore[union-attr]
        assert verify_compacted(store)[0] == []
        assert vacuum_compacted(store).removed == []
        vacuum_compacted(store, older_than_s=0)
        assert len(store.find("compacted")) == 2
        compact(store)
        check_same_rows(store)


def test_a_vacuum_that_dies_at_any_side_effect_leaves_the_newest_compaction_whole() -> None:
    store = _again()
    compact(store)
    held = state(store)
    for at, after in _points(fresh(held), lambda one: vacuum_compacted(one, older_than_s=0)):
        store = fresh(held)
        assert _die(store, at, after=after, act=lambda one: vacuum_compacted(one, older_than_s=0))
        assert verify_compacted(store) == ([], [])
        vacuum_compacted(store, older_than_s=0)
        vacuum(store, "third", older_than_s=0)
        assert {name for name in store.find("") if "compacted" in name} == {
            "_runs/.compacted-000002",
            *(file.name for file in newest_compacted(store).all_files),  # type: ignore[union-attr]
        }
        check_same_rows(store)


def test_its_files_are_no_images_of_a_source_around_the_output(tmp_path: Path) -> None:
    table = pa.table({"image_id": ["x"], "uri": ["/p/x.png"]})
    pq.write_table(table, tmp_path / "images.parquet")
    store, _ = write_output(tmp_path / "labels", {"a": [mask(BRIGHT[0], box(0, 0, 2, 2))]}, common=BRIGHT)
    compact(store)
    listed = [row["image_id"] for batch in list_batches(str(tmp_path)) for row in batch.to_pylist()]
    assert listed == ["x"]
