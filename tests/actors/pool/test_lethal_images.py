"""Images that end the whole process of a replica: each is found and quarantined, its neighbors not."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import tests.support.fakes
from actors.pool import dispatch
from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from actors.pool.runner import PoolEvent, ShardFailure
from actors.predictor.labeler import RunLabeler
from pipelines.labeling.shard import LabelConfig, LabelJob
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import Answer, Image, Prompt, ReplicaUnusable, Shard, ShardReceipt
from tests.support.fakes import BrightPredictor, text_prompt, write_images

pytestmark = pytest.mark.timeout(120)

RUN = "run-1"


class LethalPredictor(BrightPredictor):
    """Ends its process, in the way given, when it is asked about certain images."""

    def __init__(self, ways: Mapping[str, str]) -> None:
        super().__init__()
        self._ways = ways

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        for image in images:
            way = self._ways.get(image.ref.image_id)
            if way == "SIGSEGV":
                ctypes.string_at(0)
            elif way == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            elif way == "hang":
                time.sleep(1000)
            elif way == "sticky error":
                raise ReplicaUnusable("CUDA error: an illegal memory access was encountered")
        return super().predict(images, prompts)


@pytest.fixture(params=["processes", "ray"], autouse=True)
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Workers cannot import the tests: send what is defined in them by value. No other machine may have been lost."""
    if request.param == "ray":
        request.getfixturevalue("ray")
    by_name = {"ray": "ray.cloudpickle", "processes": "cloudpickle"}[request.param]
    for module in (sys.modules[__name__], tests.support.fakes):
        importlib.import_module(by_name).register_pickle_by_value(module)
    monkeypatch.setattr(dispatch, "_LOOK_AROUND_S", 0.01)
    return request.param


def label(
    folder: Path, ways: Mapping[str, str], *, batch_size: int = 4, **settings: object
) -> tuple[list[ShardReceipt | ShardFailure], Counter[str]]:
    """Label two shards of twelve images; return what became of them, and how often each thing happened to replicas."""
    refs = write_images(folder / "images", 24)
    shards = [Shard(shard_id=f"shard-{n:05}", images=tuple(refs[12 * n : 12 * n + 12])) for n in range(2)]
    job = LabelJob(run_id=RUN, prompts=(text_prompt("bright"),), config=LabelConfig(batch_size=batch_size))
    output = str(folder / "out")

    def factory() -> RunLabeler:
        return RunLabeler(LethalPredictor(ways), job, output)

    factory.preload = ("pipelines.table.commits", "tests.support.fakes")  # once for all that are forked
    events: list[PoolEvent] = []
    config = PoolConfig(num_cpus_per_replica=0.5, **settings)  # type: ignore[arg-type]
    with open_runner(factory, config) as runner:
        outcomes = list(runner.map(shards, events.append))
    return outcomes, Counter(event.kind for event in events)


def images_by_reason(folder: Path) -> dict[str | None, list[str]]:
    rows = open_table(open_store(str(folder / "out")), "images", RUN).to_table().to_pylist()
    assert len(rows) == len({row["image_id"] for row in rows})
    found: dict[str | None, list[str]] = {}
    for row in rows:
        found.setdefault(row["reason"], []).append(row["image_id"])
    return {reason: sorted(ids) for reason, ids in found.items()}


@pytest.mark.parametrize("way", ["SIGSEGV", "sticky error"])
def test_an_image_that_ends_its_replica_is_quarantined_alone(tmp_path: Path, way: str, runner: str) -> None:
    outcomes, happened = label(tmp_path, {"0005.png": way}, runner=runner)
    assert all(isinstance(outcome, ShardReceipt) for outcome in outcomes)
    found = images_by_reason(tmp_path)
    assert found.pop("replica_died") == ["0005.png"]
    assert len(found[None]) == 23
    # Once by surprise, once in its batch, once alone.
    assert happened["replica_died"] == 3


def test_several_such_images_of_a_shard_are_each_found(tmp_path: Path, runner: str) -> None:
    fatal = {"0000.png": "SIGSEGV", "0005.png": "SIGKILL", "0006.png": "SIGSEGV", "0023.png": "SIGKILL"}
    label(tmp_path, fatal, runner=runner, replicas=2)
    found = images_by_reason(tmp_path)
    assert found["replica_died"] == sorted(fatal)
    assert len(found[None]) == 20


def test_an_image_that_hangs_its_replica_is_quarantined_alone(tmp_path: Path, runner: str) -> None:
    _, happened = label(tmp_path, {"0007.png": "hang"}, runner=runner, shard_timeout_s=3)
    found = images_by_reason(tmp_path)
    assert found["replica_hung"] == ["0007.png"]
    assert len(found[None]) == 23
    assert happened["replica_hung"] == 3


def test_a_shard_of_which_every_image_ends_its_replica_is_given_up(
    tmp_path: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_LETHAL_IMAGES", 1)
    every = {f"{number:04}.png": "SIGKILL" for number in range(12)}
    outcomes, happened = label(tmp_path, every, runner=runner, batch_size=12)
    failures = [outcome for outcome in outcomes if isinstance(outcome, ShardFailure)]
    assert [(failure.shard_id, failure.kind) for failure in failures] == [("shard-00000", "replica_died")]
    assert happened["replica_died"] <= 6
    assert len(images_by_reason(tmp_path)[None]) == 12
