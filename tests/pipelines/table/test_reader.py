"""Opening an output as a pyarrow dataset: the rows of some images out of the few files that may hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from pipelines.errors import DamagedError
from pipelines.forgetting.chosen import choose
from pipelines.forgetting.forget import forget
from pipelines.planning import draft
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import commit_shard
from pipelines.table.image_lookup import ImageIndex
from pipelines.table.reader import open_table
from pipelines.table.repairs import due_shards
from pipelines.types import ImagePrediction, Status
from tests.support.labeled import box, mask, named, write_output

NAMES = [f"{number:03}ä.jpg" for number in range(0, 64, 2)]
OTHERS = ["", "0", "001ä.jpg", "0999", "061ä.jpg", "zzz", "\U0001f600"]


def cut_small(batches: Iterable[pa.RecordBatch], sizes: Iterable[tuple[int | None, int]]) -> Iterator[Any]:
    """One shard at a time, so that few images make many plan files."""
    images, ((_, size),) = pa.Table.from_batches(list(batches)), sizes
    return ((images.slice(first, size), size) for first in range(0, images.num_rows, size))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two runs of the same 32 images in 16 shards, in plan files of 2 shards; of the second only 4 are committed."""
    prompts = named("ovseg", "cup")
    output: Path = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(draft, "SHARDS_PER_PART", 2)
        patched.setattr(draft, "cut", cut_small)
        for run_id, committed in (("one", 16), ("two", 4)):
            found = {name: [mask(prompts[0], box(0, 0, 2, 2))] * (number % 3) for number, name in enumerate(NAMES)}
            store, plan = write_output(output, found, common=prompts, run_id=run_id, committed=committed)
            assert len(plan.parts) == 8
    return store


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_the_rows_of_some_images_are_those_of_the_whole_table(store: Store, kind: str) -> None:
    asked = [[], *([name] for name in (*NAMES[::7], NAMES[-1], *OTHERS)), NAMES[5:30:8], [*NAMES, *OTHERS]]
    everything = open_table(store, kind)
    for image_ids in asked:
        expected = everything.to_table(filter=ds.field("image_id").isin(pa.array(image_ids, pa.string())))
        rows = open_table(store, kind, image_ids=image_ids)
        order = [("image_id", "ascending"), ("run_id", "ascending")]
        assert rows.to_table().sort_by(order).equals(expected.sort_by(order))
        assert rows.count_rows() == expected.num_rows


def test_one_image_is_found_with_few_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sized = list[str](), list[str]()
    reading, sizing = Store.read, Store.size
    monkeypatch.setattr(Store, "read", lambda self, name: (read.append(name), reading(self, name))[1])
    monkeypatch.setattr(Store, "size", lambda self, name: (sized.append(name), sizing(self, name))[1])
    rows = open_table(store, "annotations", "one", image_ids=[NAMES[20]])
    assert len(rows.files) == 1
    assert set(rows.to_table()["image_id"].to_pylist()) == {NAMES[20]}
    of_plan = [name for name in read if "/plan-" in name]
    assert 1 <= len(of_plan) <= 4, "a binary search among eight"
    assert len(of_plan) == len(set(of_plan))
    assert len(read) == len(of_plan) + 2, "plan.json and one commit"
    assert len(sized) <= 2


@pytest.mark.parametrize("whole_bytes", [0, 8 << 20])
@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_an_index_reads_the_same_rows_again_and_again(
    store: Store, kind: Any, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of files that are too large to be read as a whole."""
    monkeypatch.setattr("pipelines.table.image_lookup._READ_WHOLE_BYTES", whole_bytes)
    index = ImageIndex(store)
    order = [("image_id", "ascending"), ("run_id", "ascending")]
    for image_ids in ([], *([name] for name in (*NAMES[::7], *OTHERS)), NAMES[5:30:8], [*NAMES, *OTHERS]):
        expected = open_table(store, kind, image_ids=image_ids).to_table()
        rows = index.read(kind, image_ids)
        assert rows.schema.equals(expected.schema)
        assert rows.sort_by(order).equals(expected.sort_by(order))
    of_one = ImageIndex(store, "two").read(kind, NAMES)
    assert set(of_one["run_id"].to_pylist()) == {"two"}


def test_an_index_that_knows_the_plan_takes_three_requests_for_an_image(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, asked = ImageIndex(store, "one"), list[str]()
    assert index.read("annotations", NAMES).num_rows == 31
    for verb in ("_read", "_info", "_files", "_level", "exists"):
        real = getattr(Store, verb)
        monkeypatch.setattr(
            Store, verb, lambda self, name, real=real, verb=verb: (asked.append(verb), real(self, name))[1]
        )
    for name in NAMES[1:9:3]:
        assert set(index.read("annotations", [name])["image_id"].to_pylist()) == {name}
        assert asked == ["_info", "_read", "_read"], "is it repaired, the commit, the file"
        asked.clear()


def test_an_index_sees_what_was_committed_again_and_names_what_is_damaged(tmp_path: Path) -> None:
    prompts = named("ovseg", "cup")
    store, plan = write_output(tmp_path, {name: [] for name in NAMES}, common=prompts, committed=15)
    index, name = ImageIndex(store), NAMES[4]
    (row,) = index.read("images", [name]).to_pylist()
    data = tmp_path / "images" / plan.run_id / f"{row['shard_id']}-{row['attempt']}.parquet"
    whole = data.read_bytes()
    data.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(DamagedError, match=f"{data.name} does not have the committed SHA-256"):
        index.read("images", [name])
    data.unlink()
    with pytest.raises(DamagedError, match=f"{data.name} is missing; verify names all"):
        index.read("images", [name])
    assert due_shards(store, plan).commits == {row["shard_id"]: 1, "shard-00015": 0}
    assert index.read("images", [NAMES[31]]).num_rows == 0
    (shard,) = plan.shards(store, [row["shard_id"]])
    outcomes = [ImagePrediction(ref=ref, status=Status.EMPTY) for ref in shard.images]
    again = replace(shard, repair=1)
    commit_shard(store, plan.run_id, again, outcomes, attempt="d2-0", started=0.0, model_s=0.0, predictor={})
    assert index.read("images", [name])["attempt"].to_pylist() == ["d2-0"]


def test_a_damaged_plan_file_is_named(tmp_path: Path) -> None:
    store, plan = write_output(tmp_path, {"a.jpg": [], "b.jpg": []}, run_id="one")
    part = tmp_path / "_runs/one" / plan.parts[0].name
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=plan.parts[0].name):
        open_table(store, "images", image_ids=["a.jpg"])


def test_images_beside_shards_that_are_forgotten_whole_are_found(tmp_path: Path) -> None:
    prompts = named("ovseg", "cup")
    names = [f"{number:02}.jpg" for number in range(12)]
    found = {name: [mask(prompts[0], box(0, 0, 2, 2))] for name in names}
    store, _ = write_output(tmp_path, found, common=prompts, per_shard=2)
    for gone in (["04.jpg", "05.jpg"], ["00.jpg", "01.jpg", "06.jpg", "07.jpg", "10.jpg", "11.jpg"]):
        forget(store, choose(store, image_ids=gone))
        everything = open_table(store, "images").to_table()
        for name in names:
            rows = open_table(store, "images", image_ids=[name]).to_table()
            assert rows.equals(everything.filter(pc.field("image_id") == name)), name


def test_some_images_of_an_output_of_the_first_version_are_found() -> None:
    store = open_store(str(Path(__file__).parents[2] / "outputs" / "schema-1" / "finished"))
    everything = open_table(store, "images").to_table()
    name = everything["image_id"][3].as_py()
    rows = open_table(store, "images", image_ids=[name]).to_table()
    assert rows.num_rows == 1
    assert rows["uri"].to_pylist() == everything.filter(pc.field("image_id") == name)["uri"].to_pylist()
