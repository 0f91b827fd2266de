"""Histories: what many runs have planned, in few objects, on which nothing depends."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DamagedError, PlanError, StorageError
from pipelines.forgetting.chosen import Found, choose
from pipelines.forgetting.forget import forget
from pipelines.history import history as module
from pipelines.history.history import History, gather, history_files, newest_history
from pipelines.layout import history_number, is_ours
from pipelines.planning.draft import PlanConfig
from pipelines.planning.erasures import begin_erasure, end_erasure, read_forgotten
from pipelines.planning.plan import plan_documents, read_plan
from pipelines.planning.plan_files import PlannedImage, to_planned
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef
from tests.reliability.small_run import SmallRun, run, write_source
from tests.support.labeled import named, plan_run

(CAT,) = named("vgdseg", "cat")


def images(*names: str) -> list[ImageRef]:
    return [ImageRef(image_id=name, uri=f"/p/{name}", etag=f"tag of {name}", num_bytes=9) for name in names]


@pytest.fixture
def store() -> Iterator[Store]:
    """An output with two runs, the second of which asked one image something of its own."""
    store = open_store(f"memory://history-{secrets.token_hex(4)}")
    plan_run(store, "one", images("a", "c", "d"), PlanConfig(images_per_shard=2))
    asked_more = replace(images("c")[0], prompts=(CAT,), common=("ovseg:dog",), version=2)
    plan_run(store, "two", [*images("b"), asked_more], PlanConfig(images_per_shard=2))
    yield store
    store.fs.rm(store.root, recursive=True)


def gathered(store: Store) -> History:
    held = newest_history(store)
    assert gather(store, held, [one for run, one in plan_documents(store).items() if not (held and run in held)], {})
    found = newest_history(store)
    assert found is not None
    return found


def rows_of(history: History, store: Store) -> list[tuple[str, PlannedImage]]:
    names, rows = list(history.documents), list[tuple[str, PlannedImage]]()
    for batch in history.batches(store):
        rows += zip([names[run] for run in batch["run"].to_pylist()], to_planned(batch), strict=True)
    return rows


def one_by_one(store: Store) -> list[tuple[str, object]]:
    plans = [read_plan(store, run) for run in plan_documents(store)]
    rows = [
        (plan.run_id, image)
        for plan in plans
        if plan
        for batch in plan.planned_batches(store)
        for image in to_planned(batch)
    ]
    return sorted(rows, key=lambda row: (row[1].image_id, row[0]))


def test_it_holds_what_the_plans_of_its_runs_do(store: Store) -> None:
    assert newest_history(store) is None
    first = gathered(store)
    plan_run(store, "three", images("0", "e"), PlanConfig(images_per_shard=2))
    second = gathered(store)
    assert (list(first.documents), list(second.documents)) == (["one", "two"], ["one", "two", "three"])
    rows = rows_of(second, store)
    assert [image.image_id for _, image in rows] == sorted(image.image_id for _, image in rows)
    assert sorted(rows, key=lambda row: (row[1].image_id, row[0])) == one_by_one(store)
    assert ("three" in second, "three" in first) == (True, False)


def test_many_images_are_read_in_several_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_PART", 2)
    monkeypatch.setattr(module, "sort_batches", lambda rows, _by, _folder: sorted_in_pairs(rows))
    found = gathered(store)
    assert len(found.parts) == 3
    assert [image.image_id for _, image in rows_of(found, store)] == ["a", "b", "c", "c", "d"]


def sorted_in_pairs(batches: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    table = pa.Table.from_batches(list(batches)).sort_by("image_id")
    return table.to_batches(max_chunksize=2)


def test_two_are_kept_and_all_names_are_the_outputs_own(store: Store) -> None:
    for _ in range(4):
        plan_run(store, f"more-{secrets.token_hex(2)}", images("x"), PlanConfig())
        number = gathered(store).number
    assert number == 4
    names = [name for name in store.files("_runs") if name.startswith(".history-")]
    assert {name[:15] for name in names} == {".history-000003", ".history-000004"}
    assert all(is_ours(f"_runs/{name}") for name in names)


def of_another_version(store: Store, name: str) -> None:
    store.write(name, json.dumps({"format": 99}).encode())


def cut_off(store: Store, name: str) -> None:
    store.write(name, store.read(name)[:-9])


def flipped(store: Store, name: str) -> None:
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    store.write(name, bytes(data))


@pytest.mark.parametrize("damage", [of_another_version, cut_off, flipped, Store.delete])
def test_one_that_cannot_be_used_is_passed_over_and_the_next_takes_its_place(
    damage: Callable[[Store, str], None], store: Store
) -> None:
    older = gathered(store)
    plan_run(store, "three", images("e"), PlanConfig())
    newer = gathered(store)
    damage(store, f"_runs/.history-{newer.number:06d}")
    assert newest_history(store) == older
    assert list(gathered(store).documents) == ["one", "two", "three"]


@pytest.mark.parametrize("damage", [cut_off, Store.delete])
def test_one_whose_file_is_gone_or_cut_off_is_passed_over(damage: Callable[[Store, str], None], store: Store) -> None:
    damage(store, f"_runs/{gathered(store).parts[0].name}")
    assert newest_history(store) is None


def test_a_file_that_is_damaged_or_goes_while_it_is_read_is_named(store: Store) -> None:
    found = gathered(store)
    name = f"_runs/{found.parts[0].name}"
    flipped(store, name)
    with pytest.raises(DamagedError, match=rf"{name}: damaged; remove it"):
        rows_of(found, store)
    store.delete(name)
    with pytest.raises(PlanError, match=rf"{name}: gone while it was read; run the same command again"):
        rows_of(found, store)


def test_of_two_drivers_one_is_first_and_the_other_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, create = list(plan_documents(store).values()), Store.create

    def late(self: Store, name: str, data: bytes) -> bool:
        monkeypatch.undo()
        assert gather(store, None, documents, {})
        return create(self, name, data)

    monkeypatch.setattr(Store, "create", late)
    assert not gather(store, None, documents, {})
    found = newest_history(store)
    assert found is not None
    names = [f".history-{found.number:06d}", *(part.name for part in found.parts)]
    assert [name for name in store.files("_runs") if name.startswith(".history-")] == names


def test_none_is_made_or_used_while_images_are_being_forgotten(store: Store) -> None:
    gathered(store)
    begin_erasure(store, image_ids=["a"], uris=["/p/a"], labels=[], condition="image_id = ?")
    assert newest_history(store) is None
    assert not gather(store, None, list(plan_documents(store).values()), {})


def test_one_that_is_made_while_images_begin_to_be_forgotten_does_not_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def late(self: Store, name: str, data: bytes) -> bool:
        monkeypatch.undo()
        begin_erasure(store, image_ids=["a"], uris=["/p/a"], labels=[], condition="image_id = ?")
        return create(self, name, data)

    monkeypatch.setattr(Store, "create", late)
    assert not gather(store, None, list(plan_documents(store).values()), {})
    assert [name for name in store.files("_runs") if name.startswith(".history-")] == []


def test_forgetting_leaves_no_history_that_names_an_image(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 4), output=str(tmp_path / "out"))
    assert run(small).ok
    store = small.store()
    gathered(store)
    gone = "0002.png"
    assert any(gone.encode() in data for data in raw_histories(store))
    erased = forget(store, choose(store, image_ids=[gone]))
    assert any(name.startswith("_runs/.history-") for name in erased.removed)
    assert raw_histories(store) == []
    again = gathered(store)
    assert [image.image_id for _, image in rows_of(again, store)] == ["0000.png", "0001.png", "0003.png"]
    assert not any(gone.encode() in data for data in raw_histories(store))


def raw_histories(store: Store) -> list[bytes]:
    """Every object of a history, files as the text of their rows."""
    found = []
    for name in store.files("_runs"):
        if name.startswith(".history-"):
            data = store.read(f"_runs/{name}")
            found.append(
                str(pq.read_table(io.BytesIO(data)).to_pylist()).encode() if name.endswith("parquet") else data
            )
    return found


def test_its_objects_are_told_from_all_others_and_what_names_the_files_comes_first(store: Store) -> None:
    before = store.find("")
    found = gathered(store)
    made = history_files(store)
    assert set(made) == set(store.find("")) - set(before)
    assert made[0] == f"_runs/.history-{found.number:06d}"


def test_an_erasure_does_not_end_while_a_history_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 4), output=str(tmp_path / "out"))
    assert run(small).ok
    store = small.store()
    gathered(store)
    delete = Store.delete

    def refusing(self: Store, name: str) -> None:
        if "/.history-" in name:
            raise StorageError(f"{name}: denied")
        delete(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", refusing)
        with pytest.raises(StorageError, match="history-000001: denied"):
            forget(store, choose(store, image_ids=["0002.png"]))
    assert read_forgotten(store).unfinished
    forget(store, Found())
    assert (read_forgotten(store).unfinished, raw_histories(store)) == ([], [])


def test_none_stays_that_names_a_forgotten_image_though_it_came_late_and_was_not_removed(store: Store) -> None:
    stale = gathered(store)
    erasure = begin_erasure(store, image_ids=["a"], uris=["/p/a"], labels=[], condition="image_id = ?")
    end_erasure(store, erasure, {})
    assert newest_history(store) is None
    found = gathered(store)
    assert found.number == stale.number + 1
    assert {history_number(name) for name in history_files(store)} == {found.number}
