from __future__ import annotations

import itertools

import pytest

from pipelines.errors import PlanError
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.fingerprint import check_fingerprint, fingerprint_digest
from pipelines.planning.plan import planned_runs, read_plan, write_plan
from pipelines.sources.image_batches import to_batches
from pipelines.storage.content_hash import content_hash
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef, Prompt, Region, Rle
from tests.support.documents import change_document
from tests.support.fakes import sentence
from tests.support.labeled import plan_run


def _refs(names: list[str]) -> list[ImageRef]:
    return [ImageRef(image_id=name, uri=f"/photos/{name}", num_bytes=10) for name in names]


def _plan(store: Store, names: list[str], driver: str, fingerprint: dict | None = None):
    fingerprint = fingerprint or {"model": "m"}
    config, facts = PlanConfig(images_per_shard=2), {"note": "ü"}
    plan, shards = plan_run(
        store, "run-1", _refs(names), config, fingerprint=fingerprint, facts=facts, driver_id=driver
    )
    return shards, plan


def test_a_plan_reads_back_whole(store: Store) -> None:
    shards, plan = _plan(store, [f"{number:03d}" for number in range(7)], "d1")
    again = read_plan(store, "run-1")
    assert again == plan
    assert (plan.num_images, plan.num_shards, plan.num_bytes) == (7, 4, 70)
    assert list(plan.shards(store)) == shards
    assert list(plan.shards(store, ["shard-00002"])) == [shards[2]]
    assert planned_runs(store) == ["run-1"]


@pytest.mark.parametrize("driver", ["d1", "d2"])
def test_whoever_plans_second_gets_the_first_ones_plan_and_leaves_it_whole(store: Store, driver: str) -> None:
    shards, first = _plan(store, ["a", "b", "c"], "d1")
    names = store.find("_runs")
    _, second = _plan(store, ["a", "b", "c"], driver)
    assert second == first
    assert list(second.shards(store)) == shards
    assert store.find("_runs") == names


def test_a_plan_of_other_images_is_not_taken_for_ones_own(store: Store) -> None:
    shards, first = _plan(store, ["a", "b", "c"], "d1")
    names = store.find("_runs")
    with pytest.raises(PlanError, match=r"run 'run-1' with other images: 3 .*, here 4 .*The same command goes on"):
        _plan(store, ["a", "b", "c", "new"], "d2")
    with pytest.raises(PlanError, match="other images"):
        _plan(store, ["a", "b", "d"], "d2")
    assert store.find("_runs") == names
    assert list(first.shards(store)) == shards


def test_of_a_plan_without_a_digest_images_and_bytes_are_compared(store: Store) -> None:
    _plan(store, ["a", "b", "c"], "d1")
    change_document(store, "_runs/run-1/plan.json", lambda plan: plan.pop("images_sha256"))
    _plan(store, ["a", "b", "c"], "d2")
    with pytest.raises(PlanError, match="other images"):
        _plan(store, ["a", "b"], "d2")


def test_a_driver_that_plans_second_with_another_fingerprint_is_told_what_differs(store: Store) -> None:
    _plan(store, ["a", "b", "c"], "d1", {"model": "m"})
    with pytest.raises(PlanError, match='model: planned "m", now "other"'):
        _plan(store, ["a", "b", "new"], "d2", {"model": "other"})


def test_a_plan_takes_its_place_behind_one_that_no_listing_shows_yet(store: Store) -> None:
    with draft_plan(to_batches(_refs(["a"])), PlanConfig()) as draft:
        plan = write_plan(store, "later", draft, fingerprint={}, facts={}, driver_id="d1", before={"unlisted": 7})
        assert plan.sequence == 8
        assert write_plan(store, "last", draft, fingerprint={}, facts={}, driver_id="d1").sequence == 9


@pytest.mark.slow
def test_shards_are_found_across_the_parts_of_a_large_plan() -> None:
    store = open_store("memory://large-plan")
    plan, shards = plan_run(
        store, "run-1", _refs([f"{number:05d}" for number in range(18_000)]), PlanConfig(images_per_shard=30)
    )
    assert len(plan.parts) == 3
    assert list(plan.shards(store)) == shards
    edges = itertools.accumulate(part.num_shards for part in plan.parts)
    wanted = [f"shard-{number:05d}" for edge in edges for number in (edge - 1, edge) if number < len(shards)]
    assert len(wanted) == 5
    assert list(plan.shards(store, reversed(wanted))) == [shard for shard in shards if shard.shard_id in wanted]


def test_prompts_of_single_images_and_source_columns_survive_the_plan() -> None:
    store = open_store("memory://regions")
    box = Region(kind="box", coordinates=(1.0, 2.0, 3.5, 4.0))
    mask = Region(kind="mask", mask=Rle((4, 4), "52;"))
    regions = tuple(
        Prompt(prompt_id=f"p{i}", task=task, text="t", category_id=i, category_name="cat", region=region, source_row=i)
        for i, (task, region) in enumerate([("vgdseg", box), ("intseg", mask)])
    )
    sentences = (sentence("refseg", "the dog", 2, source_row=7), sentence("reaseg", "Why?", 3, explain=True))
    prompts = (*regions, *sentences)
    ref = ImageRef(image_id="a", uri="/a", etag="e", source_columns='{"site": "north"}', prompts=prompts)
    plan, _ = plan_run(store, "r", [ref])
    assert next(plan.shards(store)).images == (ref,)


@pytest.mark.parametrize(("number", "words"), [(99, "newer version"), (1, "older version.*stay readable")])
def test_a_plan_of_another_version_is_refused(number: int, words: str) -> None:
    store = open_store(f"memory://format-{number}")
    store.write("_runs/r/plan.json", b'{"format": %d}' % number)
    with pytest.raises(PlanError, match=words):
        read_plan(store, "r")


def test_another_fingerprint_names_the_fields_that_differ() -> None:
    check_fingerprint("r", {"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": 1})
    with pytest.raises(PlanError, match=r"b: planned \[1, 2\], now \[1, 3\]\n  c: planned null, now 5") as caught:
        check_fingerprint("r", {"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3], "c": 5})
    assert "a:" not in str(caught.value)


def test_of_a_long_list_what_was_added_and_removed_is_named() -> None:
    planned, now = ([f"category {number}" for number in range(100)] + last for last in (["car"], ["house"]))
    with pytest.raises(PlanError, match=r'categories: planned 101, now 101: added \["house"\], removed \["car"\]\n'):
        check_fingerprint("r", {"categories": planned}, {"categories": now})


@pytest.mark.parametrize(
    ("names", "told"),
    [(("m", None), 'planned "m", now null'), (("m", "m"), '"m" as planned, but its content has changed')],
)
def test_what_is_hashed_is_told_by_its_name(names: tuple[str | None, str | None], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_fingerprint("r", {"model": "1f"}, {"model": "2e"}, names={"model": names})
    assert f"model: {told}\n" in str(caught.value)


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    assert fingerprint_digest({"a": 1, "b": 2}) == fingerprint_digest({"b": 2, "a": 1}) != fingerprint_digest({"a": 1})


def test_a_folders_hash_follows_contents_and_names(tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub" / "weights").write_bytes(b"123")
    before = content_hash(str(tmp_path))
    assert content_hash(str(tmp_path)) == before
    (tmp_path / "sub" / "weights").write_bytes(b"124")
    changed = content_hash(str(tmp_path))
    assert changed != before
    (tmp_path / "sub" / "weights").rename(tmp_path / "sub" / "other")
    assert content_hash(str(tmp_path)) != changed
