"""Many images compared at once are left as those that are looked at one by one, wherever their batches are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.history.history import gather, newest_history
from pipelines.planning import plan_files
from pipelines.planning.coverage import Coverage, CoveringRun, UpdateCounts
from pipelines.planning.draft import PlanConfig
from pipelines.planning.earlier import planned_groups
from pipelines.planning.earlier.side_by_side import PLACED, between_ids, side_by_side
from pipelines.planning.plan import plan_documents
from pipelines.sources.image_batches import LISTED, to_batches, to_refs
from pipelines.storage.store import open_store
from pipelines.types import ImageRef, Prompt, Region
from tests.support.labeled import named, plan_run

CATEGORIES = named("ovseg", "cat", "dog", "cow")
OWN = [
    Prompt(
        prompt_id=f"p{number}",
        task="vgdseg",
        text=f"point {number},1",
        category_id=0,
        category_name="spot",
        region=Region(kind="point", coordinates=(float(number), 1.0)),
    )
    for number in range(2)
]


def listing_of(rng: random.Random) -> list[ImageRef]:
    return [
        ImageRef(
            image_id=f"{number:02d}",
            uri=f"/p/{number:02d}",
            etag=rng.choice(["e1", "e1", "e1", "e2", None]),
            num_bytes=rng.choice([1, 1, 1, 2, None]),
            prompts=tuple(rng.sample(OWN, rng.choice([0, 0, 0, 1, 2]))),
        )
        for number in sorted(rng.sample(range(24), rng.choice([0, 3, 12, 20])))
    ]


def cut(refs: list[ImageRef], size: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(refs), size):
        yield from to_batches(refs[start : start + size])


def compared(
    coverage: Coverage, listing: list[ImageRef], size: int, monkeypatch: pytest.MonkeyPatch, max_runs: int
) -> tuple[list[ImageRef], UpdateCounts, list[str]]:
    with monkeypatch.context() as patched:
        patched.setattr(planned_groups, "MAX_RUNS", max_runs)  # 0: all are looked at one by one
        left = list(to_refs(coverage.left(cut(listing, size))))
    return left, coverage.counts, coverage.unlisted.table()["image_id"].to_pylist()


@pytest.mark.parametrize("seed", range(2))
def test_what_is_left_is_what_one_by_one_is_left(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng, store, runs = random.Random(seed), open_store(f"memory://many-at-once-{seed}"), list[CoveringRun]()
    monkeypatch.setattr(plan_files, "BATCH_SIZE", 7)
    for night in range(6):
        prompts = tuple(rng.sample(CATEGORIES, rng.choice([1, 2, 3])))
        listing = listing_of(rng)

        found = []
        for size, max_runs, is_gathered in (
            (100, 0, False),
            (100, 4, False),
            (1, 4, False),
            (5, 2, True),
            (5, 0, True),
        ):
            gathered = newest_history(store) if is_gathered else None
            coverage = Coverage(store=store, prompts=prompts, runs=runs, gathered=gathered)
            found.append(compared(coverage, listing, size, monkeypatch, max_runs))
        left, counts, gone = found[0]
        assert found == [found[0]] * len(found)
        assert counts.gone == len(gone)
        assert (
            len(listing) == len(left) + counts.covered == counts.new + counts.changed + counts.extended + counts.covered
        )
        if left:
            plan, _ = plan_run(store, f"run-{night}", left, PlanConfig(images_per_shard=3))
            runs.append(CoveringRun(plan=plan, prompts=prompts, same_model=rng.random() < 0.8))
        if night == 3:
            assert gather(store, None, list(plan_documents(store).values()), {})


def test_images_of_a_folder_are_left_with_all_columns() -> None:
    store = open_store("memory://many-at-once-columns")
    refs = [ImageRef(image_id=name, uri=f"/{name}", source_columns="{}") for name in "abc"]
    plan, _ = plan_run(store, "run-1", refs[:1], PlanConfig())
    coverage = Coverage(store=store, prompts=CATEGORIES, runs=[CoveringRun(plan=plan, prompts=(), same_model=True)])
    assert list(to_refs(coverage.left(to_batches(refs, LISTED)))) == refs
    assert coverage.counts == UpdateCounts(new=2, extended=1, added_prompts=tuple(p.prompt_id for p in CATEGORIES))


def rows(*names: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"place": 0, "image_id": name} for name in names], PLACED)


def test_streams_are_read_side_by_side_with_one_batch_of_each_in_memory() -> None:
    taken = list[str]()

    def stream(name: str, *batches: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            taken.append(name)
            yield batch

    listed = stream("listed", rows("a", "c"), rows("d"), rows("z"))
    planned = [stream("one", rows("b", "c", "e"), rows("f"), rows("y")), stream("other", rows("c"))]
    found = [
        (None if images is None else images["image_id"].to_pylist(), sorted(some["image_id"].to_pylist()))
        for images, some in side_by_side(listed, planned)
    ]
    assert found == [
        (["a", "c"], ["b", "c", "c"]),
        (["d"], []),
        (None, ["e"]),
        (None, ["f"]),
        (None, ["y"]),
        (["z"], []),
    ]
    assert taken[:3] == ["listed", "one", "other"]


def test_batches_are_cut_anew_between_ids() -> None:
    batches = [rows("a", "b", "b"), rows("b"), rows(), rows("b", "c"), rows("d")]
    found = [batch["image_id"].to_pylist() for batch in between_ids(batches)]
    assert found == [["a"], ["b", "b", "b", "b"], ["c"], ["d"]]
