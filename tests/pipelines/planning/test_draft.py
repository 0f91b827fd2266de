from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PlanError, SourceError, StorageError
from pipelines.planning import external_sort
from pipelines.planning.draft import PlanConfig, draft_plan, plan_shards
from pipelines.sources.image_batches import file_batch, to_batches
from pipelines.sources.listing import list_images
from pipelines.types import ImageRef
from tests.support.fakes import text_prompt


def _refs(names: list[str]) -> list[ImageRef]:
    return [ImageRef(image_id=name, uri=f"/photos/{name}", num_bytes=10) for name in names]


@settings(deadline=None)  # the first is slow: Arrow imports pandas
@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 20), st.randoms())
def test_every_image_is_in_exactly_one_shard_whatever_the_listing_order(names, size, random) -> None:
    config = PlanConfig(images_per_shard=size)
    shards = plan_shards(_refs(names), config)
    assert [ref.image_id for shard in shards for ref in shard.images] == sorted(names)
    assert all(1 <= len(shard.images) <= size for shard in shards)
    random.shuffle(names)
    assert plan_shards(_refs(names), config) == shards


def test_limit_takes_the_first_ids() -> None:
    shards = plan_shards(_refs(["c", "a", "b"]), PlanConfig(limit=2))
    assert [ref.image_id for ref in shards[0].images] == ["a", "b"]


def test_one_id_for_two_images_names_both() -> None:
    twice = [ImageRef(image_id=name, uri=f"/{number}/{name}") for number, name in enumerate("abcbd")]
    with pytest.raises(PlanError, match=r"'b' stands for both /1/b and /3/b, images 2 and 4 of the source"):
        plan_shards(twice, PlanConfig(images_per_shard=2))


def test_one_id_for_two_images_is_refused_by_their_rows(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image_id,uri\nx,x.jpg\ny,y.jpg\nx,z.jpg\n")
    with pytest.raises(PlanError, match=r"'x' stands for both \S+x.jpg and \S+z.jpg, images 1 and 3 of the"):
        plan_shards(list_images(str(tmp_path / "table.csv")), PlanConfig())


def test_a_draft_counts_what_it_holds_and_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prompts = (text_prompt("cat"), text_prompt("dog"))
    refs = [*_refs(["c", "a", "d"]), ImageRef(image_id="b", uri="/photos/b", prompts=prompts)]
    with draft_plan(to_batches(refs), PlanConfig(images_per_shard=3)) as draft:
        assert (draft.num_images, draft.num_shards, draft.num_bytes, draft.num_own_prompts) == (4, 2, 30, 2)
        assert (draft.first_uri, draft.last_uri) == ("/photos/a", "/photos/d")
        assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".parquet"]
        assert next(draft.shards()).images[1].prompts == prompts
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_listing_comes_through_as_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken():
        yield from _refs(["a"])
        raise SourceError("the bucket is gone")

    with pytest.raises(SourceError, match="bucket is gone"):
        plan_shards(broken(), PlanConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run-00000.arrow", "part-00000.parquet"])
def test_a_full_disk_is_told_with_the_folder_and_what_to_do(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(external_sort, "RUN_BYTES", 500_000)
    (tmp_path / name).symlink_to("/dev/full")
    refs = _refs([f"{number:07d}" for number in range(20_000)])
    with pytest.raises(StorageError, match=rf"{tmp_path}.*No space left on device.*set TMPDIR"):
        plan_shards(refs, PlanConfig())


def test_memory_does_not_grow_with_the_collection(monkeypatch) -> None:
    monkeypatch.setattr(external_sort, "RUN_BYTES", 1 << 20)
    peaks = {}
    for count in (20_000, 20_000, 200_000):  # the first time for what is loaded once
        pa.default_memory_pool().release_unused()
        with draft_plan(_made(count, peaks), PlanConfig(images_per_shard=100)) as draft:
            assert draft.num_images == count
    assert peaks[200_000] < peaks[20_000] + 4_000_000, "the 200,000 images alone would take 20 million bytes"


def _made(count: int, peaks: dict[int, int]) -> Iterator[pa.RecordBatch]:
    """Made-up files in no order, and the most that Arrow held at any time."""
    peaks[count] = 0
    for first in range(0, count, 1000):
        names = [f"{number * 7919 % count:050d}" for number in range(first, first + 1000)]
        yield file_batch("/photos/", names, [None] * 1000, [None] * 1000)
        peaks[count] = max(peaks[count], pa.total_allocated_bytes())


@pytest.mark.parametrize("values", [{"images_per_shard": 0}, {"images_per_shard": 10**9}, {"limit": 0}])
def test_impossible_plans_are_refused(values) -> None:
    with pytest.raises(ValueError, match="must be"):
        PlanConfig(**values)
