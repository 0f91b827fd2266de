"""A whole run in milliseconds: real listing, plan, labeling, commits, verify and summary; the model is a visible fake.

Every call of `run` stands for a process of its own: it has its own driver id, as a process would. docs/reliability.md
defines the invariants I1 to I8.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from actors.pool import dispatch
from actors.pool.config import PoolConfig
from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ShardRunner
from actors.predictor.labeler import RunLabeler
from flows.config import RunConfig, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.summary import RunSummary
from pipelines.errors import PlanError
from pipelines.layout import KINDS
from pipelines.planning.plan import read_plan
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import read_commits
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from pipelines.types import Predictor, Prompt
from tests.support.drivers import comparable
from tests.support.fakes import BrightPredictor, write_images

RUN = "run-1"
CHAOS = int(os.environ.get("XSAM_CHAOS") or 0)
"""How long simulated lives go on in the long form (make chaos); 0 in the short one."""
LONG = bool(CHAOS)
"""Whether to try everything (make chaos), or a part of what takes long."""
_DRIVER_MODULES = (dispatch, planning)


@dataclass(frozen=True)
class SmallRun:
    """What a run labels, and where to.

    Attributes:
        source: folder of images; one of them is broken.
        output: of the table.
        images_per_shard: of the plan.
        categories: asked of every image.
        max_attempts: tries of each shard.
        limits: of the circuit breaker.
    """

    source: str
    output: str
    images_per_shard: int = 3
    categories: tuple[str, ...] = ("bright", "light")
    max_attempts: int = 3
    limits: Mapping[str, float] = field(default_factory=dict)

    def config(self) -> RunConfig:
        return parse_config(
            {
                "source": self.source,
                "output": {"uri": self.output, "run_id": RUN},
                "model": {"path": "fake"},
                "categories": list(self.categories),
                "plan": {"images_per_shard": self.images_per_shard},
                "label": {"batch_size": 2, "load_threads": 1},
                "pool": {
                    "runner": "in_process",
                    "shards_in_flight_per_replica": 1,
                    "max_attempts_per_shard": self.max_attempts,
                },
                "limits": dict(self.limits),
            }
        )

    def store(self) -> Store:
        return open_store(self.output)


def write_source(folder: Path, count: int = 5) -> str:
    """Write images, the second of them broken."""
    write_images(folder, count)
    (folder / "0001.png").write_bytes(b"no image")
    return str(folder)


def as_driver(predictor: Predictor) -> AbstractContextManager[None]:
    """Be a process of its own, with a model that is a fake."""

    def open_runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> InProcessRunner:
        job = planning.label_job(config, run_id, prompts)
        pool: PoolConfig = config.pool
        return InProcessRunner(lambda: RunLabeler(predictor, job, config.output.uri), pool)

    return as_driver_of(open_runner)


@contextmanager
def as_driver_of(open_runner: Callable[[RunConfig, str, tuple[Prompt, ...]], ShardRunner]) -> Iterator[None]:
    """Be a process of its own, without a model's folder, whose shards are labeled where it is told."""
    driver_id = secrets.token_hex(4)
    with pytest.MonkeyPatch.context() as patch:
        for module in _DRIVER_MODULES:
            patch.setattr(module, "DRIVER_ID", driver_id)
        patch.setattr(planning, "open_run_runner", open_runner)
        patch.setattr(planning, "check_model", lambda _config, own: own)
        patch.setattr(
            planning,
            "run_fingerprint",
            lambda config, _held: config.fingerprint(model_sha256="0" * 64, prompts_sha256=None),
        )
        yield


def run(small: SmallRun, predictor: Predictor | None = None) -> RunSummary:
    """Run, or go on with a run that stopped, as a new process."""
    with as_driver(predictor or BrightPredictor()):
        return engine.run_directly(small.config(), Silent())


def rows(store: Store) -> dict[str, Any]:
    """Return the committed rows of both tables, without what differs between two runs that label the same."""
    return {kind: comparable(open_table(store, kind, RUN).to_table(), kind) for kind in KINDS}


def raw_rows(store: Store) -> dict[str, Any]:
    """Return every row of every file of the run's folders, as a glob of a query engine reads them."""
    found = {}
    for kind in KINDS:
        paths = [store.path(name) for name in sorted(store.find(f"{kind}/{RUN}"))]
        found[kind] = comparable(ds.dataset(paths, filesystem=store.fs, format="parquet").to_table(), kind)
    return found


def check_readable(store: Store) -> None:
    """I2, I3: whatever has happened, what the commits name is there and whole, and each shard is there once."""
    if read_plan(store, RUN) is None:
        return
    problems = [text for text in verify(store, RUN).problems if " not committed: " not in text]
    assert problems == []
    named = [commit.shard_id for commit in read_commits(store, RUN)]
    assert len(named) == len(set(named))


def check_ended(small: SmallRun, expected: dict[str, Any]) -> None:
    """I1 to I7 of a run that has ended: as if nothing had ever happened to it."""
    store = small.store()
    report = verify(store, RUN)
    assert report.problems == []
    ledger = report.ledger()
    assert 2 * ledger["listed"] == sum(ledger.values())
    assert rows(store) == expected
    assert raw_rows(store) == expected
    assert report.leftovers == []
    check_no_op(small)


def check_no_op(small: SmallRun) -> None:
    """I6: running it again asks the model nothing and writes nothing; I7: another configuration is refused by name."""
    store, predictor = small.store(), BrightPredictor()
    before = state(store)
    again = run(small, predictor)
    assert again.ok
    assert predictor.calls == []
    assert state(store) == before
    with pytest.raises(PlanError, match="categories"):
        run(replace(small, categories=("dark",)), predictor)
    assert state(store) == before


def remove_from_memory(small: SmallRun) -> None:
    """Remove the output of a run if it is in memory, where whatever is asked takes longer the more there is."""
    if small.output.startswith("memory://"):
        store = small.store()
        store.fs.rm(store.root, recursive=True)


def state(store: Store) -> dict[str, bytes]:
    """Return every object of an output with its bytes."""
    return {name: store.read(name) for name in store.find("")}
