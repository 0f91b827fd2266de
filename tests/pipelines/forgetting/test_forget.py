"""Erasing images from an output made by hand: who else is at work, what is damaged, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipelines.errors import DamagedError, PlanError, SourceError, StorageError
from pipelines.forgetting import Found, choose, forget
from pipelines.planning.erasures import begin_erasure, read_forgotten
from pipelines.planning.plan import require_plan
from pipelines.query.database import open_database
from pipelines.query.files import query_errors
from pipelines.query.select_text import without_values
from pipelines.storage.store import Store
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.support.labeled import RUN, box, mask, named, write_output

BRIGHT = named("ovseg", "bright")
IMAGES = ("a", "b", "c", "d")


def output(folder: Path, committed: int | None = None) -> Store:
    """A run of two shards of two images, each with a mask."""
    found = {name: [mask(BRIGHT[0], box(1, 1, 2, 2))] for name in IMAGES}
    return write_output(folder / "output", found, common=BRIGHT, committed=committed)[0]


def of(*names: str) -> Found:
    """What a condition finds that these images fit."""
    return Found(image_ids=names, uris=tuple(f"/p/{name}" for name in names))


def images(store: Store) -> list[str]:
    return sorted(open_table(store, "images").to_table(columns=["image_id"])["image_id"].to_pylist())


def left(store: Store) -> list[str]:
    return [name for name in images(store) if not name.startswith("forgotten-")]


def state(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.find("")}


def test_an_output_whose_run_is_not_finished_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = output(tmp_path, committed=1)
    before = state(store)
    with pytest.raises(PlanError, match=r"run run-1 is not finished \(1 of 2 shards\).*Nothing was changed"):
        choose(store, images_where="image_id = 'a'")
    with pytest.raises(PlanError, match="not finished"):
        forget(store, of("a"))
    assert state(store) == before


@pytest.mark.parametrize("step", range(4))
def test_two_that_forget_at_once_both_end_well(step: int, tmp_path: Path) -> None:
    store = output(tmp_path)
    one, other = of("a"), of("b")
    steps = [step]

    def meanwhile(_: str) -> None:
        steps[0] -= 1
        if steps[0] == -1:
            forget(store, other, threads=1)

    forget(store, one, on_step=meanwhile, threads=1)
    assert steps[0] < 0
    forget(store, Found())
    assert left(store) == ["c", "d"]
    assert read_forgotten(store).unfinished == []
    report = verify(store, RUN)
    assert (report.problems, report.leftovers, report.status_counts["forgotten"]) == ([], [], 2)


def test_a_tombstone_keeps_its_place_in_the_shard_and_nothing_that_tells_of_a_name(tmp_path: Path) -> None:
    store = output(tmp_path)
    forget(store, of("a", "d"))
    (kept_first, first), (kept_last, last) = [
        ids for _, ids in require_plan(store, RUN).image_ids(store, require_plan(store, RUN).parts[0])
    ]
    # Those that stay come first: between its neighbors a tombstone would tell how its name begins.
    assert (kept_first, kept_last) == ("b", "c")
    assert first != last
    assert [name for name in images(store) if name not in "bc"] == sorted((first, last))
    (row,) = open_table(store, "images").to_table(filter=ds.field("image_id") == first).to_pylist()
    told = {name: value for name, value in row.items() if value not in (None, [], 0)}
    assert told.keys() == {"image_id", "uri", "image_version", "status", "run_id", "shard_id", "attempt"}
    assert (told["uri"], told["status"]) == ("", "forgotten")
    # The same image has the same tombstone in every run; another output has another salt.
    other = output(tmp_path / "other")
    forget(other, of("a"))
    assert first not in images(other)


def flip(store: Store, name: str) -> bytes:
    data = store.read(name)
    store.write(name, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    return data


def test_damage_is_not_committed_again_and_once_it_is_mended_the_erasure_is_completed(tmp_path: Path) -> None:
    store = output(tmp_path)
    (name,) = (name for name in store.find("annotations") if "shard-00001" in name)
    chosen, data = of("a", "d"), flip(store, name)
    with pytest.raises(DamagedError, match=f"{name} does not have the committed SHA-256"):
        forget(store, chosen, threads=1)
    assert verify(store, RUN).problems == [
        f"shard-00001: {name} does not have the committed SHA-256; `run --check` labels it again (of a retry `retry "
        "--check`, of an import `import` of its file)"
    ]
    store.write(name, data)
    assert verify(store, RUN).ok  # though shard-00001 holds what its plan does not any more
    assert forget(store, Found()).images == 2
    assert left(store) == ["b", "c"]
    assert verify(store, RUN).ok


def test_a_run_that_is_being_planned_keeps_the_erasure_from_ending(tmp_path: Path) -> None:
    store = output(tmp_path)
    store.write("_runs/next/plan-d2-00000.parquet", b"a")
    store.write("exported/coco.json", b"a")
    erased = forget(store, of("a"))
    assert ["less than a day ago" in text for text in erased.left] == [True]
    assert erased.others == ["exported/coco.json"]
    assert len(read_forgotten(store).unfinished) == 1
    store.delete("_runs/next/plan-d2-00000.parquet")
    assert forget(store, Found()).left == []
    assert read_forgotten(store).unfinished == []


def _query(database: object, store: Store) -> None:
    with query_errors(store):
        database.execute("SELECT sum(area), sum(len(segmentation.counts)) FROM annotations").fetchall()  # type: ignore[attr-defined]


def test_who_reads_meanwhile_is_told_to_ask_again(tmp_path: Path) -> None:
    store = output(tmp_path)
    plan, database = require_plan(store, RUN), open_database(store)
    forget(store, of("a"))
    reads: dict[str, Callable[[], object]] = {
        "images were forgotten while it was read; run the same command again": lambda: list(plan.shards(store)),
        "files were replaced while they were read": lambda: _query(database, store),
    }
    for message, read in reads.items():
        with pytest.raises((PlanError, StorageError), match=message):
            read()


def test_a_damaged_note_of_an_erasure_is_named(tmp_path: Path) -> None:
    store = output(tmp_path)
    begin_erasure(store, image_ids=["a"], uris=["/p/a"], labels=[], condition="image_id = ?")
    flip(store, "_runs/.erasure-000001")
    with pytest.raises(DamagedError, match=r"\.erasure-000001.*restore it from a copy"):
        read_forgotten(store)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("image_id = 'jane.jpg'", "image_id = ?"),
        ('naïve < 3.5e3 AND "uri" LIKE $$jane$$ -- jane', 'naïve < ? AND "uri" LIKE ?'),
        ("image_id IN ('ü', E'a\\'b') /* jane */ OR n>-7", "image_id IN (? , ? ) OR n>-?"),
        ("image_id IN (SELECT column0 FROM 'jane.csv')", "image_id IN (SELECT column0 FROM ? )"),
    ],
)
def test_of_a_condition_no_value_and_no_comment_is_kept(condition: str, kept: str) -> None:
    assert without_values(condition) == kept


@pytest.mark.parametrize("condition", ["true) UNION SELECT image_id FROM all_images WHERE (true", "no_such = 1"])
def test_what_is_no_condition_on_images_is_refused(condition: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--images-where is no SQL condition"):
        choose(output(tmp_path), images_where=condition)
