"""What is left to ask of a listing: against a plain model of the rule, and case by case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PlanError
from pipelines.history.history import History, gather, newest_history
from pipelines.planning.coverage import Coverage, CoveringRun, UpdateCounts
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import plan_documents
from pipelines.sources.image_batches import to_batches, to_refs
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef, Prompt, Region
from tests.support.labeled import named, plan_run

CAT, DOG, COW = named("ovseg", "cat", "dog", "cow")
POINT = Prompt(
    prompt_id="p1",
    task="vgdseg",
    text="point 1,1",
    category_id=0,
    category_name="spot",
    region=Region(kind="point", coordinates=(1.0, 1.0)),
)


def ref(name: str, etag: str | None = "e1", size: int | None = 10, **fields: object) -> ImageRef:
    return replace(ImageRef(image_id=name, uri=f"/p/{name}", etag=etag, num_bytes=size), **fields)


@pytest.fixture
def store() -> Iterator[Store]:
    store = open_store("memory://coverage")
    yield store
    if store.fs.exists(store.root):
        store.fs.rm(store.root, recursive=True)


def covering(store: Store, refs: Sequence[ImageRef], *prompts: Prompt, same_model: bool = True) -> CoveringRun:
    number = len(store.folders("_runs")) + 1
    plan, _ = plan_run(store, f"run-{number}", refs, PlanConfig(images_per_shard=2))
    return CoveringRun(plan=plan, prompts=prompts, same_model=same_model)


def left(
    store: Store,
    refs: Sequence[ImageRef],
    prompts: Sequence[Prompt],
    *runs: CoveringRun,
    gathered: History | None = None,
) -> tuple[list[ImageRef], UpdateCounts]:
    coverage = Coverage(store=store, prompts=tuple(prompts), runs=runs, gathered=gathered)
    listing = to_batches(sorted(refs, key=lambda one: one.image_id))
    return list(to_refs(coverage.left(listing))), coverage.counts


def test_only_new_images_are_left_where_nothing_else_has_changed(store: Store) -> None:
    run = covering(store, [ref("b"), ref("d")], CAT)
    found, counts = left(store, [ref("a"), ref("b"), ref("c"), ref("e")], [CAT], run)
    assert found == [ref("a"), ref("c"), ref("e")]
    assert counts == UpdateCounts(new=3, covered=1, gone=1)


@pytest.mark.parametrize(
    ("before", "now", "is_same"),
    [
        (("e1", 10), ("e2", 10), False),
        (("e1", 10), ("e1", 11), True),  # the tag decides
        (("e1", 10), (None, 11), False),
        ((None, 10), ("e1", 10), True),
        ((None, None), (None, 10), True),
        (("e1", None), (None, None), True),
    ],
)
def test_an_image_has_changed_by_its_tag_or_else_its_size(
    before: tuple[str | None, int | None], now: tuple[str | None, int | None], is_same: bool, store: Store
) -> None:
    run = covering(store, [ref("a", *before)], CAT)
    found, counts = left(store, [ref("a", *now)], [CAT], run)
    assert found == ([] if is_same else [ref("a", *now, version=2)])
    assert (counts.covered, counts.changed) == (int(is_same), int(not is_same))


def test_a_prompt_that_is_new_is_all_that_known_images_are_asked(store: Store) -> None:
    run = covering(store, [ref("a"), ref("b")], CAT, DOG)
    found, counts = left(store, [ref("a"), ref("b"), ref("c")], [DOG, COW, CAT], run)
    assert [(one.image_id, one.common) for one in found] == [
        ("a", (COW.prompt_id,)),
        ("b", (COW.prompt_id,)),
        ("c", None),
    ]
    assert counts == UpdateCounts(new=1, extended=2, added_prompts=(COW.prompt_id,))
    assert found[0].asked([DOG, COW, CAT]) == (COW,)


def test_answers_of_several_runs_count_together(store: Store) -> None:
    first = covering(store, [ref("a"), ref("b")], CAT)
    second = covering(store, [ref("a", common=(DOG.prompt_id,)), ref("c")], CAT, DOG)
    found, _ = left(store, [ref("a"), ref("b"), ref("c")], [CAT, DOG], first, second)
    assert [(one.image_id, one.common) for one in found] == [("b", (DOG.prompt_id,))]


def test_what_was_asked_of_an_image_before_it_changed_does_not_count(store: Store) -> None:
    first = covering(store, [ref("a", "e1")], CAT, DOG)
    second = covering(store, [ref("a", "e2", version=2)], CAT)
    found, _ = left(store, [ref("a", "e2")], [CAT, DOG], first, second)
    assert [(one.version, one.common) for one in found] == [(2, (DOG.prompt_id,))]
    found, _ = left(store, [ref("a", "e1")], [CAT, DOG], first, second)  # changed back: its bytes are asked anew
    assert [(one.version, one.common) for one in found] == [(3, None)]


def test_another_model_has_everything_to_answer(store: Store) -> None:
    run = covering(store, [ref("a", prompts=(POINT,))], CAT, same_model=False)
    found, counts = left(store, [ref("a", prompts=(POINT,))], [CAT], run)
    assert found == [ref("a", prompts=(POINT,))]
    assert counts.extended == 1


def test_a_longer_list_of_a_panoptic_task_is_asked_as_a_whole(store: Store) -> None:
    sky, road, tree = named("ovseg_panoptic", "sky", "road", "tree")
    run = covering(store, [ref("a")], CAT, sky, road)
    found, _ = left(store, [ref("a")], [CAT, sky, road, tree], run)
    assert found[0].common == (sky.prompt_id, road.prompt_id, tree.prompt_id)
    stuff = replace(sky, is_thing=False)
    found, _ = left(store, [ref("a")], [CAT, stuff, road], run)
    assert found[0].common == (sky.prompt_id, road.prompt_id)
    assert left(store, [ref("a")], [CAT, sky, road], run)[0] == []


def test_prompts_of_single_images_are_asked_once_and_again_when_they_have_moved(store: Store) -> None:
    run = covering(store, [ref("a", prompts=(POINT,))], CAT)
    moved = replace(POINT, region=Region(kind="point", coordinates=(2.0, 2.0)))
    assert left(store, [ref("a", prompts=(replace(POINT, source_row=7),))], [CAT], run)[0] == []
    found, _ = left(store, [ref("a", prompts=(moved,))], [CAT], run)
    assert found == [ref("a", prompts=(moved,), common=())]
    assert found[0].asked([CAT]) == (moved,)


def test_a_plan_of_what_is_left_says_so_when_it_is_read_again(store: Store) -> None:
    run = covering(store, [ref("a"), ref("b", "e0")], CAT)
    coverage = Coverage(store=store, prompts=(CAT, DOG), runs=[run])
    listing = [ref("c"), ref("b"), ref("a", prompts=(POINT,))]
    plan, _ = plan_run(store, "update-2", listing, PlanConfig(images_per_shard=2), left=coverage.left)
    images = [image for shard in plan.shards(store) for image in shard.images]
    assert images == [ref("a", prompts=(POINT,), common=(DOG.prompt_id,)), ref("b", version=2), ref("c")]
    assert (plan.num_images, plan.sequence) == (3, 2)


def test_two_images_of_one_id_are_refused_though_nothing_is_left_to_ask_of_it(store: Store) -> None:
    run = covering(store, [ref("a")], CAT)
    coverage = Coverage(store=store, prompts=(CAT,), runs=[run])
    with (
        pytest.raises(PlanError, match="'a' stands for both /p/a and /elsewhere"),
        draft_plan(to_batches([ref("a"), replace(ref("a"), uri="/elsewhere")]), PlanConfig(), coverage.left),
    ):
        pass


@dataclass
class Memory:
    """The rule by hand: what was asked of each version of each image."""

    asked: dict[str, set[str]]
    tags: dict[str, str]
    version: dict[str, int]

    def update(self, listing: dict[str, str], names: Sequence[str]) -> dict[str, tuple[int, set[str]]]:
        todo = {}
        for image, tag in listing.items():
            if self.tags.get(image, tag) != tag:
                self.asked[image] = set()
                self.version[image] += 1
            self.tags[image] = tag
            self.version.setdefault(image, 1)
            if missing := set(names) - self.asked.setdefault(image, set()):
                todo[image] = (self.version[image], missing)
                self.asked[image] |= missing
        return todo


LISTINGS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["e1", "e2"]), min_size=1)
NIGHTS = st.lists(st.tuples(LISTINGS, st.sets(st.sampled_from([0, 1, 2]), min_size=1)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(NIGHTS)
@pytest.mark.slow
def test_night_after_night_each_version_of_an_image_is_asked_each_prompt_once(nights) -> None:
    """With earlier runs read one by one, and with some of them gathered."""
    store = open_store("memory://coverage-nights")
    memory, runs = Memory({}, {}, {}), list[CoveringRun]()
    try:
        for listing, numbers in nights:
            prompts = [(CAT, DOG, COW)[number] for number in sorted(numbers)]
            refs = [ref(image, tag) for image, tag in sorted(listing.items())]
            found, counts = left(store, refs, prompts, *runs)
            # Now and then, so that there are runs beside those that are gathered.
            if len(runs) % 2:
                held = newest_history(store)
                documents = plan_documents(store)
                assert gather(store, held, [one for run, one in documents.items() if not (held and run in held)], {})
            gathered = newest_history(store)
            assert left(store, refs, prompts, *runs, gathered=gathered) == (found, counts)
            planned = {one.image_id: (one.version, {p.text for p in one.asked(prompts)}) for one in found}
            assert planned == memory.update(listing, [prompt.text for prompt in prompts])
            assert counts.new + counts.changed + counts.extended == len(found)
            assert counts.covered == len(listing) - len(found)
            if found:
                runs.append(covering(store, found, *prompts))
    finally:
        if store.fs.exists(store.root):
            store.fs.rm(store.root, recursive=True)
