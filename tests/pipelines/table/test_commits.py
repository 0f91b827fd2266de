"""The table's invariants I1-I4 and I8 (docs/reliability.md) on every kind of storage."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, SCHEMA_VERSION, commit_name, data_name, plan_name, split_data_name
from pipelines.planning.draft import PlanConfig
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import (
    commit_shard,
    committed_shards,
    inspect_commits,
    parquet_bytes,
    read_commit,
    read_commits,
)
from pipelines.table.leftovers import find_leftovers, remove_losers, vacuum
from pipelines.table.reader import open_table
from pipelines.table.repairs import due_shards
from pipelines.table.schema import ANNOTATIONS, IMAGES, annotations_table
from pipelines.table.shard_commit import ShardCommit
from pipelines.table.verify import verify
from pipelines.types import ImagePrediction, ImageRef, MaskPrediction, Reason, Rle, Shard, ShardReceipt, Status
from tests.support.documents import change_document
from tests.support.fakes import text_prompt
from tests.support.labeled import plan_run

RUN = "run-1"
CAT, DOG = text_prompt("cat"), text_prompt("dog", 1)


def _mask(prompt, score, counts="52;") -> MaskPrediction:
    return MaskPrediction(
        prompt=prompt,
        score=score,
        mask_score=0.75,
        segmentation=Rle((4, 4), counts),
        bbox_xywh=(1.0, 1.0, 1.0, 2.0),
        area=2,
    )


def _outcome(ref: ImageRef) -> ImagePrediction:
    """ids ending in 0: quarantined; in 1: empty; else two masks, the worse one first."""
    if ref.image_id.endswith("0"):
        return ImagePrediction(
            ref=ref, status=Status.QUARANTINED, reason=Reason.TRUNCATED, stage="decode", error="cut short"
        )
    masks = () if ref.image_id.endswith("1") else (_mask(CAT, 0.25), _mask(DOG, 0.5))
    return ImagePrediction(
        ref=ref,
        status=Status.OK if masks else Status.EMPTY,
        masks=masks,
        prompts=(CAT, DOG),
        size_hw=(4, 4),
        exif_orientation=1,
        attempts=1,
    )


def _planned(store: Store, images: int = 5, per_shard: int = 2) -> tuple[Plan, list[Shard]]:
    refs = [ImageRef(image_id=f"img-{n}", uri=f"/p/{n}", num_bytes=5, etag="e") for n in range(images)]
    return plan_run(store, RUN, refs, PlanConfig(images_per_shard=per_shard))


def _commit(store: Store, shard: Shard, attempt: str) -> ShardReceipt:
    return commit_shard(
        store,
        RUN,
        shard,
        [_outcome(ref) for ref in shard.images],
        attempt=attempt,
        started=time.monotonic(),
        model_s=0.5,
        predictor={"device": "fake"},
    )


def test_a_commit_makes_exactly_its_shard_visible(store: Store) -> None:
    _, shards = _planned(store)
    store.write(data_name("annotations", RUN, "shard-00002", "dead-0"), b"half a file")
    receipt = _commit(store, shards[1], "d1-0")
    assert committed_shards(store, RUN) == {"shard-00001"}
    images = open_table(store, "images").to_table()
    assert images.schema.equals(IMAGES)
    assert images["image_id"].to_pylist() == ["img-2", "img-3"]
    annotations = open_table(store, "annotations", RUN).to_table()
    assert annotations.schema.equals(ANNOTATIONS)
    assert annotations.select(["image_id", "rank", "category_name", "score"]).to_pylist()[:2] == [
        {"image_id": "img-2", "rank": 0, "category_name": "dog", "score": 0.5},
        {"image_id": "img-2", "rank": 1, "category_name": "cat", "score": 0.25},
    ]
    assert annotations["segmentation"][0].as_py() == {"size": [4, 4], "counts": "52;"}
    assert receipt == read_commit(store, RUN, "shard-00001").receipt(committed_here=True)
    assert (receipt.num_annotations, receipt.status_counts) == (4, {"ok": 2})


def test_an_empty_output_opens_as_an_empty_table_of_the_same_schema(store: Store) -> None:
    _planned(store)
    assert open_table(store, "annotations").to_table().schema.equals(ANNOTATIONS)
    assert open_table(store, "images").count_rows() == 0


def test_a_shard_without_masks_still_has_the_full_schema(store: Store) -> None:
    _, shards = _planned(store, images=2)
    _commit(store, shards[0], "d1-0")
    assert open_table(store, "annotations").to_table().schema.equals(ANNOTATIONS)
    rows = open_table(store, "images").to_table().to_pylist()
    assert [(row["status"], row["reason"], row["stage"]) for row in rows] == [
        ("quarantined", "truncated", "decode"),
        ("empty", None, None),
    ]


def test_nothing_there_differs_from_never_asked() -> None:
    store = open_store("memory://per-prompt")
    _, shards = _planned(store, images=3, per_shard=3)
    _commit(store, shards[0], "d1-0")
    per_prompt = open_table(store, "images").to_table()["per_prompt"].to_pylist()
    assert per_prompt[0] == []
    assert per_prompt[1][0] == {"prompt_id": "ovseg:cat", "n": 0, "max_score": None, "rejected": None}
    assert [(p["prompt_id"], p["n"], p["max_score"]) for p in per_prompt[2]] == [
        ("ovseg:cat", 1, 0.25),
        ("ovseg:dog", 1, 0.5),
    ]


def test_the_second_commit_of_a_shard_loses_and_takes_its_files_away(store: Store) -> None:
    _, shards = _planned(store)
    first = _commit(store, shards[0], "d1-0")
    second = _commit(store, shards[0], "d2-0")
    assert first.committed_here
    assert not second.committed_here
    assert second.attempt == "d1-0"
    assert find_leftovers(store, RUN).names == []
    assert verify(store, RUN).leftovers == []


def test_files_stay_that_an_own_commit_may_name_which_was_damaged_before_its_creation_was_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = _planned(store)
    create = Store.create

    def unanswered(self: Store, name: str, data: bytes) -> bool:
        assert create(self, name, data)
        self.write(name, data.replace(b'"attempt"', b'"attemqt"'))
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", unanswered)
        with pytest.raises(DamagedError, match="shard-00000"):
            _commit(store, shards[0], "d1-0")
    assert all(store.exists(data_name(kind, RUN, shards[0].shard_id, "d1-0")) for kind in KINDS)


def test_annotation_ids_are_unique_and_the_same_for_another_attempt() -> None:
    one, other = open_store("memory://ids-one"), open_store("memory://ids-other")
    ids = []
    for store, attempt in ((one, "d1-0"), (other, "d9-7")):
        _, shards = _planned(store)
        for shard in shards:
            _commit(store, shard, attempt)
        ids.append(open_table(store, "annotations").to_table()["annotation_id"].to_pylist())
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0])


@pytest.mark.parametrize("change", ["missing", "doubled", "foreign", "reordered"])
def test_a_shard_whose_outcomes_do_not_match_its_plan_is_never_written(change: str) -> None:
    store = open_store(f"memory://incomplete-{change}")
    _, shards = _planned(store)
    outcomes = [_outcome(ref) for ref in shards[0].images]
    wrong = {
        "missing": outcomes[:1],
        "doubled": [*outcomes, outcomes[0]],
        "foreign": [outcomes[0], _outcome(shards[1].images[0])],
        "reordered": outcomes[::-1],
    }[change]
    with pytest.raises(RuntimeError, match="shard-00000"):
        commit_shard(store, RUN, shards[0], wrong, attempt="a-0", started=0.0, model_s=0.0, predictor={})
    assert store.find("images") == store.find("annotations") == {}


def test_a_whole_table_verifies(store: Store) -> None:
    _, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    seen: list[str] = []
    report = verify(store, RUN, on_shard=seen.append)
    assert report.ok
    assert report.ledger() == {"listed": 5, "ok": 3, "empty": 1, "not_asked": 0, "quarantined": 1}
    assert dict(report.reason_counts) == {"truncated": 1}
    assert seen == [shard.shard_id for shard in shards]


def test_a_shard_that_is_committed_while_verify_looks_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = _planned(store)
    _commit(store, shards[0], "d1-0")

    def read_after_another_commit(store: Store, run_id: str, listed: dict[str, int]) -> Any:
        _commit(store, shards[1], "d1-1")
        return inspect_commits(store, run_id, listed)

    monkeypatch.setattr("pipelines.table.verify.inspect_commits", read_after_another_commit)
    report = verify(store, RUN)
    assert report.committed == 1
    assert report.problems == ["2 planned shards are not committed: shard-00001, shard-00002"]


def _rewrite(store: Store, kind: str, change) -> None:
    commit = read_commit(store, RUN, "shard-00001")
    file = getattr(commit, kind)
    table = change(pq.read_table(io.BytesIO(store.read(file.name))))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.write(file.name, buffer.getvalue())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.delete(commit_name(RUN, "shard-00001")), "1 planned shard is not committed: shard-00001"),
        (lambda s: s.delete(data_name("images", RUN, "shard-00001", "d1-0")), "shard-00001-d1-0.parquet is missing"),
        (lambda s: s.write(data_name("annotations", RUN, "shard-00001", "d1-0"), b"x"), "has 1 bytes, committed"),
        (lambda s: _rewrite(s, "images", lambda t: t.slice(1)), "does not have the committed SHA-256"),
    ],
    ids=["commit-lost", "file-lost", "file-truncated", "file-rewritten"],
)
def test_verify_names_the_damage(damage, message: str) -> None:
    store = open_store(f"memory://damage-{secrets.token_hex(4)}")
    _, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    damage(store)
    report = verify(store, RUN)
    assert not report.ok
    assert any(message in problem for problem in report.problems), report.problems


def _change_commit(store: Store, **fields: Any) -> None:
    name = commit_name(RUN, "shard-00001")

    def change(document: dict[str, Any]) -> None:
        for path, value in fields.items():
            table, _, key = path.rpartition("__")
            (document[table] if table else document)[key] = value

    change_document(store, name, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status_counts": {"ok": 1}}, "shard-00001: 2 images planned, but 1 ok + 0 empty + 0 quarantined = 1"),
        ({"status_counts": {"ok": 3}}, "shard-00001: 2 images planned, but 3 ok + 0 empty + 0 quarantined = 3"),
        ({"images__rows": 1}, "shard-00001: 1 row committed, but 2 ok + 0 empty + 0 quarantined = 2"),
        ({"reason_counts": {"corrupt": 1}}, "shard-00001: 0 images quarantined, but 1 reason counted"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_named_by_shard_without_reading_rows(
    store: Store, change: dict[str, Any], message: str
) -> None:
    _, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    assert verify(store, RUN, deep=False).ok
    _change_commit(store, **change)
    assert message in verify(store, RUN, deep=False).problems


def test_counts_that_add_up_but_are_not_those_of_the_rows_are_named(store: Store) -> None:
    _, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    _change_commit(store, status_counts={"empty": 1, "quarantined": 1}, reason_counts={"corrupt": 1})
    assert verify(store, RUN, deep=False).ok
    (statuses, reasons) = verify(store, RUN).problems
    assert "counts {'ok': 2}, committed {'empty': 1, 'quarantined': 1}" in statuses
    assert "gives reasons {}, committed {'corrupt': 1}" in reasons


def test_plans_that_do_not_say_how_many_images_a_shard_has_are_still_verified(store: Store) -> None:
    _, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    change_document(store, plan_name(RUN), lambda plan: plan.pop("images_per_shard"))
    assert verify(store, RUN).ok


def test_verify_names_rows_that_disagree_although_the_hashes_agree() -> None:
    """A wrong writer rather than a damaged file: each of two shards has the other's rows."""
    store = open_store("memory://swapped")
    _, shards = _planned(store, images=4)
    for shard in shards:
        _commit(store, shard, "d1-0")
    one, other = (read_commit(store, RUN, shard.shard_id) for shard in shards)
    contents = {file.name: store.read(file.name) for commit in (one, other) for file in commit.files()}
    for mine, theirs in ((one, other), (other, one)):
        files = {kind: replace(getattr(theirs, kind), name=getattr(mine, kind).name) for kind in KINDS}
        store.write(commit_name(RUN, mine.shard_id), replace(mine, **files).to_json())
        for file, source in zip(mine.files(), theirs.files(), strict=True):
            store.write(file.name, contents[source.name])
    problems = verify(store, RUN).problems
    assert any("does not hold exactly one row for each planned image" in problem for problem in problems)


def test_a_run_removes_losers_and_no_file_that_a_commit_on_its_way_may_name(store: Store) -> None:
    _, shards = _planned(store)
    _commit(store, shards[0], "d1-0")
    loser = data_name("images", RUN, "shard-00000", "dead-3")
    pending = [
        data_name("images", RUN, "shard-00001", "d1-1"),  # this driver's, in a thread that nobody waits for
        data_name("images", RUN, "shard-00001", "other-0"),
    ]
    for name in (loser, *pending):
        store.write(name, b"leftover")
    assert find_leftovers(store, RUN).names == sorted([loser, *pending])
    assert remove_losers(store, RUN).removed == [loser]
    assert find_leftovers(store, RUN).names == pending


def test_files_beside_a_broken_commit_are_no_losers(store: Store) -> None:
    """They may be the repair's, whose commit is on its way."""
    _, shards = _planned(store)
    receipt = _commit(store, shards[0], "d1-0")
    repair = data_name("images", RUN, "shard-00000", "d2-0")
    store.write(repair, b"repair")
    store.delete(data_name("annotations", RUN, "shard-00000", receipt.attempt))
    assert remove_losers(store, RUN).removed == []
    assert store.exists(repair)


def test_vacuum_removes_what_nothing_names_and_nothing_else(store: Store) -> None:
    plan, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    before = store.find("")
    planted = [
        data_name("annotations", RUN, "shard-00001", "dead-0"),
        data_name("images", RUN, "shard-00009", "dead-0"),
        f"_runs/{RUN}/plan-dead-00000.parquet",
    ]
    for name in planted:
        store.write(name, b"leftover")
    assert sorted(vacuum(store, RUN, older_than_s=0, dry_run=True).removed) == sorted(planted)
    assert set(store.find("")) == set(before) | set(planted)
    vacuum(store, RUN, older_than_s=0)
    assert store.find("") == before
    assert verify(store, RUN).ok
    assert list(plan.shards(store)) == shards


def test_vacuum_leaves_uncommitted_files_until_they_are_old_by_the_stores_own_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = _planned(store)
    _commit(store, shards[0], "d1-0")
    loser = data_name("images", RUN, "shard-00000", "dead-3")
    young = data_name("images", RUN, "shard-00001", "other-0")
    for name in (loser, young):
        store.write(name, b"leftover")
    before = vacuum(store, RUN)
    assert (before.removed, before.kept) == ([loser], [young])
    written = Store.modified_at

    def a_day_earlier(self: Store, name: str) -> float | None:
        found = written(self, name)
        return found - 24 * 3600 - 1 if name == young and found is not None else found

    monkeypatch.setattr(Store, "modified_at", a_day_earlier)
    assert vacuum(store, RUN).removed == [young]


def test_a_commit_that_lands_after_vacuum_took_its_files_writes_them_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = _planned(store)
    for shard in shards[1:]:
        _commit(store, shard, "d1-0")
    create = Store.create

    def beside_vacuum(self: Store, name: str, data: bytes) -> bool:
        if "/commits/" in name:
            assert len(vacuum(store, RUN, older_than_s=0).removed) == len(KINDS)
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", beside_vacuum)
        assert _commit(store, shards[0], "d1-0").committed_here
    assert verify(store, RUN).problems == []


def test_vacuum_tells_of_a_commit_that_landed_while_it_removed_its_files(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = _planned(store)
    for shard in shards[1:]:
        _commit(store, shard, "d1-0")
    late = open_store(f"memory://late-{secrets.token_hex(4)}")
    _commit(late, shards[0], "d1-0")
    for kind in KINDS:
        name = data_name(kind, RUN, "shard-00000", "d1-0")
        store.write(name, late.read(name))
    delete = Store.delete

    def beside_commit(self: Store, name: str) -> None:
        commit = commit_name(RUN, "shard-00000")
        store.create(commit, late.read(commit))
        delete(self, name)

    monkeypatch.setattr(Store, "delete", beside_commit)
    assert vacuum(store, RUN, older_than_s=0).broken == ["shard-00000"]


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda s, c: s.delete(c.images.name), "is missing"),
        (lambda s, c: s.write(c.annotations.name, b"short"), "has 5 bytes, committed"),
        (lambda s, c: s.write(commit_name(RUN, c.shard_id), b"{}"), "no commit of shard-00001 (it lacks 'format')"),
        (lambda s, c: s.write(commit_name(RUN, c.shard_id), b'{"format": 1'), "no whole JSON document"),
        (lambda s, c: s.write(commit_name(RUN, c.shard_id), b"[]"), "(it holds a list, not a JSON object)"),
        (lambda s, c: s.write(commit_name(RUN, c.shard_id), b"7"), "(it holds a number, not a JSON object)"),
        (lambda s, c: s.write(commit_name(RUN, c.shard_id), b"null"), "(it holds null, not a JSON object)"),
    ],
)
def test_a_broken_shard_is_due_again_and_its_repair_takes_the_place_of_its_commit(
    store: Store, harm: Callable[[Store, ShardCommit], None], problem: str
) -> None:
    plan, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    expected = {kind: open_table(store, kind, RUN).to_table().drop_columns(["attempt"]) for kind in KINDS}
    harm(store, read_commit(store, RUN, "shard-00001"))
    due = due_shards(store, plan)
    assert due.commits == {"shard-00001": 1}
    assert problem in due.broken[0].problem
    _commit(store, replace(shards[1], repair=1), "d2-0")
    remove_losers(store, RUN)
    assert due_shards(store, plan).commits == {}
    assert verify(store, RUN).problems == []
    assert verify(store, RUN).leftovers == []
    again = {kind: open_table(store, kind, RUN).to_table().drop_columns(["attempt"]) for kind in KINDS}
    assert again == expected


def test_names_that_others_give_are_no_commits_and_no_data(store: Store) -> None:
    plan, shards = _planned(store)
    for shard in shards:
        _commit(store, shard, "d1-0")
    report = verify(store, RUN)
    for folder in (f"_runs/{RUN}/commits", f"images/{RUN}", f"annotations/{RUN}"):
        for name in (".DS_Store", "_SUCCESS", "part-0.parquet", "._shard-00000.json", "shard-00000.json.bak"):
            store.write(f"{folder}/{name}", b"foreign")
    assert committed_shards(store, RUN) == {shard.shard_id for shard in shards}
    assert find_leftovers(store, RUN).names == []
    assert due_shards(store, plan).commits == {}
    again = verify(store, RUN)
    assert (again.problems, again.num_annotations) == ([], report.num_annotations)
    assert vacuum(store, RUN, older_than_s=0).removed == []


def test_the_files_hold_what_readers_need_to_be_quick() -> None:
    store = open_store("memory://layout")
    _, shards = _planned(store, images=2, per_shard=2)
    _commit(store, shards[0], "d1-0")
    commit = next(read_commits(store, RUN))
    file = pq.ParquetFile(io.BytesIO(store.read(commit.images.name)))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    facts = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert facts["xsam_label.schema_version"] == str(SCHEMA_VERSION)
    assert facts["xsam_label.run_id"] == RUN
    assert facts["xsam_label.device"] == "fake"


def test_ranks_and_ids_do_not_depend_on_the_order_in_which_masks_come() -> None:
    phrases = [replace(CAT, text=f"phrase {number}", category_id=number) for number in range(3)]
    masks = [*(_mask(phrase, 0.5) for phrase in phrases), _mask(CAT, 0.5, "43:"), _mask(DOG, 0.5), _mask(DOG, 0.75)]
    ref = ImageRef(image_id="a", uri="/a")

    def rows(masks: list[MaskPrediction]) -> list[dict]:
        outcome = ImagePrediction(ref=ref, status=Status.OK, masks=tuple(masks), size_hw=(4, 4))
        return annotations_table([outcome], run_id=RUN, shard_id="shard-00000", attempt="a").to_pylist()

    assert rows(masks) == rows(masks[::-1]) == rows(masks[3:] + masks[:3])
    assert [row["rank"] for row in rows(masks)] == list(range(6))
    assert len({row["annotation_id"] for row in rows(masks)}) == 6


def test_rows_of_schema_version_1_are_read_beside_newer_ones_with_nulls_where_they_say_nothing() -> None:
    store = open_store("memory://version-1")
    _, shards = _planned(store, images=6, per_shard=3)
    for shard in shards:
        _commit(store, shard, "d1-0")
    commit = read_commit(store, RUN, "shard-00000")
    for file, added in ((commit.annotations, "is_thing"), (commit.images, "captions")):
        buffer = io.BytesIO()
        pq.write_table(pq.read_table(io.BytesIO(store.read(file.name))).drop_columns([added]), buffer)
        store.write(file.name, buffer.getvalue())
    annotations, images = (open_table(store, kind).to_table() for kind in KINDS)
    assert annotations.schema.equals(ANNOTATIONS)
    assert images.schema.equals(IMAGES)
    assert annotations["is_thing"].null_count == annotations.num_rows == 8
    assert images["captions"].to_pylist() == [None] * 3 + [[]] * 3


def test_names_split_into_shard_and_attempt() -> None:
    assert split_data_name("images/run-1/shard-00042-ab12cd34-7.parquet") == ("shard-00042", "ab12cd34-7")


def test_the_schema_is_pinned() -> None:
    """Changing a column is a new SCHEMA_VERSION and a line in CHANGELOG.md."""
    f32, i32, i64 = pa.float32(), pa.int32(), pa.int64()
    assert [(field.name, field.type) for field in ANNOTATIONS if field.type != pa.string()] == [
        ("category_id", i32),
        ("score", f32),
        ("mask_score", f32),
        ("is_thing", pa.bool_()),
        ("rank", pa.int16()),
        ("bbox_x", f32),
        ("bbox_y", f32),
        ("bbox_w", f32),
        ("bbox_h", f32),
        ("area", i64),
        ("segmentation", pa.struct([("size", pa.list_(i32)), ("counts", pa.string())])),
    ]
    assert " ".join(ANNOTATIONS.names) == (
        "image_id annotation_id image_uri task prompt_id prompt category_name category_id score mask_score is_thing "
        "rank bbox_x bbox_y bbox_w bbox_h area segmentation run_id shard_id attempt source"
    )
    phrase = pa.struct([("phrase", pa.string()), ("start", i32), ("end", i32), ("category_id", i32)])
    words = [("prompt_id", pa.string()), ("task", pa.string()), ("text", pa.string()), ("phrases", pa.list_(phrase))]
    assert IMAGES.field("captions").type == pa.list_(pa.struct(words))
    assert " ".join(IMAGES.names) == (
        "image_id uri width height exif_orientation pixel_notes num_bytes etag content_sha256 image_version "
        "source_columns status reason stage "
        "error attempts num_annotations per_prompt tasks captions corrections decode_ms model_ms run_id shard_id "
        "attempt"
    )


def test_a_shard_without_masks_is_a_file_without_row_groups() -> None:
    """A row group of no rows is valid, and ends the load of all other files in Hugging Face's datasets."""
    data = parquet_bytes(ANNOTATIONS.empty_table(), "annotations", {})
    file = pq.ParquetFile(io.BytesIO(data))
    assert (file.num_row_groups, file.read().num_rows) == (0, 0)
    assert file.schema_arrow.remove_metadata() == ANNOTATIONS
