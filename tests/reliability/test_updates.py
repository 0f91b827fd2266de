"""An update that dies anywhere, or meets another one: no image is asked a prompt twice, none is left out."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from duckdb import DuckDBPyConnection

from flows.config import RunConfig, parse_config
from flows.run import updates
from pipelines.planning.plan import plan_documents
from pipelines.query.database import open_database
from pipelines.table.verify import verify
from tests.reliability.dying import die_here, effects_of
from tests.reliability.pausing import Pausing
from tests.reliability.small_run import LONG, RUN, SmallRun, remove_from_memory, run, state
from tests.reliability.watched_storage import watched
from tests.support.fakes import BrightPredictor, half_bright, png, write_images

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class SmallUpdate(SmallRun):
    """A run of what is left to ask."""

    def config(self) -> RunConfig:
        values = super().config().to_dict()
        return parse_config({**values, "output": {"uri": self.output}, "incremental": True})


@pytest.fixture(autouse=True)
def gathers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every update gathers the runs before it, so that its side effects are among those that are tried."""
    monkeypatch.setattr(updates, "GATHERED_AFTER", 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four images: one of them is broken."""
    write_images(tmp_path / "images", 4)
    (tmp_path / "images" / "0001.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def evening(source: Path) -> dict[str, bytes]:
    """The output of a run that died before its last commit; since then an image has changed and one has come."""
    began = SmallRun(source=str(source), output=f"memory://{secrets.token_hex(4)}", images_per_shard=2)
    names = effects_of(replace(began, output=f"memory://{secrets.token_hex(4)}"))
    last_commit = max(at for at, name in enumerate(names) if name.startswith("create") and "/commits/" in name)
    assert die_here(began, last_commit, after=False)
    (source / "0000.png").write_bytes(png(half_bright(width=40, bright_columns=20)))
    (source / "0009.png").write_bytes(png(half_bright(bright_columns=3)))
    return state(began.store())


def update_of(evening: Mapping[str, bytes], source: Path, output: str, *more: str) -> SmallUpdate:
    """Lay out what the evening left; that night other names are asked."""
    small = SmallUpdate(
        source=str(source), output=output, images_per_shard=2, categories=("bright", "light", *(more or ("dark",)))
    )
    for name, data in evening.items():
        small.store().write(name, data)
    return small


def current(database: DuckDBPyConnection) -> dict[str, list[tuple[Any, ...]]]:
    """What readers see, but for what tells one try from another."""
    annotations = "SELECT image_id, prompt_id, score, segmentation.counts FROM annotations ORDER BY ALL"
    coverage = "SELECT image_id, prompt_id, n, status, reason, image_version FROM coverage ORDER BY ALL"
    return {query: database.sql(query).fetchall() for query in (annotations, coverage)}


def asked_twice(database: DuckDBPyConnection) -> list[Any]:
    """Return prompts that more than one committed row says were asked of one version of an image."""
    entries = "SELECT *, unnest(per_prompt) AS entry FROM all_images"
    query = f"SELECT image_id, image_version, entry.prompt_id FROM ({entries}) GROUP BY ALL HAVING count(*) > 1"
    return database.sql(query).fetchall()


def check(small: SmallUpdate, expected: dict[str, list[tuple[Any, ...]]]) -> None:
    """As if nothing had ever happened to it; and with nothing left to ask, nothing is asked or written."""
    store = small.store()
    database = open_database(store)  # for both questions: it takes longer than they do
    assert current(database) == expected
    assert asked_twice(database) == []
    assert list(plan_documents(store)) == [RUN, "update-2"]
    for run_id in (RUN, "update-2"):
        report = verify(store, run_id)
        assert (report.problems, report.leftovers) == ([], [])
    before, predictor = state(store), BrightPredictor()
    assert run(small, predictor).ok
    assert predictor.calls == []
    assert state(store) == before


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_an_update_that_dies_at_any_side_effect_ends_in_the_rows_of_an_unbroken_one(
    kind: str, evening: dict[str, bytes], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fresh() -> SmallUpdate:
        name = secrets.token_hex(4)
        return update_of(evening, source, str(tmp_path / name) if kind == "local" else f"memory://{name}")

    unbroken = fresh()
    effects = effects_of(unbroken)
    assert [name for name in effects if name.startswith("create") and "plan.json" in name]
    expected = current(open_database(unbroken.store()))
    names = {(image, prompt) for image, prompt, *_ in expected[list(expected)[1]]}
    assert len(names) == 5 * 3, "five images, each asked three names"
    check(unbroken, expected)
    assert [name for name in effects if name.startswith("create") and "/.history-" in name]
    points = [(at, after) for at in range(len(effects)) for after in (False, True)]
    points = points[:: 1 if LONG else 7]
    for at, after in points:
        broken = fresh()
        assert die_here(broken, at, after=after), f"it did not get to {effects[at]}"
        assert run(broken).ok
        check(broken, expected)
        remove_from_memory(broken)
    with capsys.disabled():
        print(f"\n{kind}: {len(points)} points of an update survived, of {2 * len(effects)}")


def test_an_update_that_pauses_anywhere_while_another_one_does_it_all_repeats_nothing(
    evening: dict[str, bytes], source: Path
) -> None:
    unbroken = update_of(evening, source, f"memory://{secrets.token_hex(4)}")
    effects = effects_of(unbroken)
    expected = current(open_database(unbroken.store()))
    for at in range(0, len(effects), 1 if LONG else 5):
        paused = update_of(evening, source, f"memory://{secrets.token_hex(4)}")
        with watched(paused.output, Pausing(at, after=at % 2 == 0, meanwhile=partial(run, paused))):
            assert run(paused).ok
        check(paused, expected)
        remove_from_memory(paused)
