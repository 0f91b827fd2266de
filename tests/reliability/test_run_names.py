"""Which run a command means, whatever a listing shows and whoever else plans."""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands.launch import launch
from flows.config import ConfigError, RunConfig, merge, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.retry import retry_configs
from flows.run.summary import RunSummary
from pipelines.errors import DamagedError, PlanError
from pipelines.layout import plan_name, registered_name, run_folder
from pipelines.planning.plan import plan_documents, planned_runs, read_plan
from pipelines.planning.registered_runs import register_run, registered_runs
from pipelines.query.database import open_database
from pipelines.storage.store import Store, open_store
from pipelines.table.verify import verify
from tests.reliability.small_run import SmallRun, as_driver, state
from tests.reliability.watched_storage import watched
from tests.support.documents import change_document, document_bytes
from tests.support.fakes import BrightPredictor, half_bright, png, write_images


@dataclass
class LateListing:
    """A Watcher of a store that takes a while to list what was created since; what is asked by name is there.

    Attributes:
        is_late: whether it still takes.
        created: what was created so far.
    """

    is_late: bool = True
    created: list[str] = field(default_factory=list)

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        verb, _, path = name.partition(" ")
        answer = do()
        if verb in {"create", "write"}:
            self.created.append(path)
        return answer

    def reading(self, name: str, do: Callable[[], Any]) -> Any:
        verb, _, path = name.partition(" ")
        answer = do()
        if not self.is_late or verb != "ls" or not path.endswith("_runs"):
            return answer
        return [entry for entry in answer if not any(self._is_within(entry, created) for created in self.created)]

    @staticmethod
    def _is_within(entry: Mapping[str, Any], created: str) -> bool:
        return created.strip("/").startswith(entry["name"].strip("/") + "/")


@dataclass(frozen=True)
class Nightly:
    """What is labeled night after night."""

    small: SmallRun

    @property
    def store(self) -> Store:
        return self.small.store()

    def config(self, **values: Any) -> RunConfig:
        given = {**self.small.config().to_dict(), "output": {"uri": self.small.output}, "incremental": True}
        return parse_config(merge(given, values))

    def run(self, predictor: BrightPredictor | None = None, **values: Any) -> RunSummary:
        """Run as a new process."""
        with as_driver(predictor or BrightPredictor()):
            return engine.run_directly(self.config(**values), Silent())

    def launch(self, predictor: BrightPredictor, **values: Any) -> RunSummary:
        """Run as a new process, by the command line's way."""
        with as_driver(predictor):
            return launch(self.config(**values), Console(file=StringIO()), prefect=False)

    def add_image(self, name: str) -> None:
        (Path(self.small.source) / name).write_bytes(png(half_bright(bright_columns=5)))

    def labeled(self) -> list[str]:
        rows = open_database(self.store).sql("SELECT image_id FROM images ORDER BY 1").fetchall()
        return [image_id for (image_id,) in rows]


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    write_images(tmp_path / "images", 4)
    output = f"memory://{secrets.token_hex(4)}"
    return Nightly(SmallRun(source=str(tmp_path / "images"), output=output, images_per_shard=2))


NAMES = ["0000.png", "0001.png", "0002.png", "0003.png"]


def asked(predictor: BrightPredictor) -> Counter[str]:
    return Counter(name for call in predictor.calls for name in call)


class SteppingClock(datetime):
    """A clock that is a minute later whenever it is looked at."""

    looked = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> SteppingClock:
        SteppingClock.looked += 1
        return cls(2026, 1, 1, tzinfo=tz) + timedelta(minutes=SteppingClock.looked)


@pytest.mark.parametrize("incremental", [True, False])
def test_a_command_plans_once_though_no_listing_shows_its_plan(
    nightly: Nightly, incremental: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "datetime", SteppingClock)
    predictor = BrightPredictor()
    with watched(nightly.small.output, LateListing()):
        summary = nightly.launch(predictor, incremental=incremental)
    assert summary.ok
    assert asked(predictor) == dict.fromkeys(NAMES, 1)
    assert list(plan_documents(nightly.store)) == [summary.run_id]
    report = verify(nightly.store, summary.run_id)
    assert (report.problems, report.leftovers) == ([], [])


def test_the_next_command_resumes_a_run_that_no_listing_shows_yet(nightly: Nightly) -> None:
    with watched(nightly.small.output, LateListing()):
        stopped = nightly.run(incremental=False, pool={"budget_s": 1e-9})
        assert not stopped.ok
        predictor = BrightPredictor()
        assert nightly.run(predictor, incremental=False).ok
        assert nightly.run(predictor, incremental=False).labelled_now == 0
    assert list(plan_documents(nightly.store)) == [stopped.run_id]
    assert asked(predictor) <= Counter(NAMES)


def test_an_update_follows_runs_that_no_listing_shows_yet(nightly: Nightly) -> None:
    with watched(nightly.small.output, LateListing()):
        first = nightly.run()
        nightly.add_image("0007.png")
        second = nightly.run()
        nightly.add_image("0008.png")
        predictor = BrightPredictor()
        third = nightly.run(predictor)
    assert [first.ledger["listed"], second.ledger["listed"], third.ledger["listed"]] == [4, 1, 1]
    assert asked(predictor) == {"0008.png": 1}
    plans = plan_documents(nightly.store)
    assert list(plans) == [first.run_id, "update-2", "update-3"]
    assert [plan["sequence"] for plan in plans.values()] == [1, 2, 3]


@pytest.mark.parametrize("first", [{"output": {"run_id": "spring"}}, {}], ids=["a name of its own", "another config"])
def test_an_update_follows_a_run_whose_name_it_cannot_know_and_that_no_listing_shows_yet(
    nightly: Nightly, first: dict[str, Any]
) -> None:
    """Neither the number of an update nor its own configuration leads to that name: it asked all of it again."""
    predictor = BrightPredictor()
    with watched(nightly.small.output, LateListing()):
        assert nightly.run(**first).ok
        nightly.add_image("0007.png")
        second = nightly.run(predictor, categories=["light"])
        nightly.add_image("0008.png")
        third = nightly.run(predictor, categories=["light"])
    assert [second.run_id, third.run_id] == ["update-2", "update-3"]
    assert asked(predictor) == {"0007.png": 1, "0008.png": 1}
    assert [plan["sequence"] for plan in plan_documents(nightly.store).values()] == [1, 2, 3]


def test_the_one_run_of_an_output_is_resumed_though_no_listing_shows_it_and_it_has_a_name_of_its_own(
    nightly: Nightly,
) -> None:
    with watched(nightly.small.output, LateListing()):
        assert not nightly.run(output={"run_id": "spring"}, incremental=False, pool={"budget_s": 1e-9}).ok
        assert nightly.run(incremental=False).run_id == "spring"
    assert list(plan_documents(nightly.store)) == ["spring"]


def test_another_source_is_refused_though_no_listing_shows_the_run_of_the_first(nightly: Nightly, moved: Path) -> None:
    with watched(nightly.small.output, LateListing()):
        nightly.run(output={"run_id": "spring"})
        with pytest.raises(PlanError, match="run 'spring' of another source"):
            nightly.run(source={"uri": str(moved)}, output={"run_id": "summer"}, incremental=False)


def test_a_run_of_a_name_of_its_own_is_retried_though_no_listing_shows_it(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(nightly.small.source) / "0001.png").write_bytes(b"no image")
    assert nightly.run(output={"run_id": "spring"}).ledger["quarantined"] == 1
    monkeypatch.setattr(Store, "folders", lambda _store, _prefix: [])
    (config,) = retry_configs(nightly.small.output, None, [], {})
    assert config.output.run_id == "spring-retry-1"


def test_a_name_that_was_taken_by_a_driver_that_died_before_its_plan_stands_for_no_run(nightly: Nightly) -> None:
    store = nightly.store
    register_run(store, "dead")
    for _ in range(2):
        register_run(store, "spring")
    assert list(registered_runs(store)) == ["dead", "spring"]
    assert planned_runs(store, by_name=True) == []
    assert nightly.run(output={"run_id": "spring"}, incremental=False).ok
    assert nightly.run().run_id == "spring"
    assert list(registered_runs(store)) == ["dead", "spring"]


@pytest.mark.parametrize("held", ["", '{"run_id": "spr', '{"run_id": "../spring"}', '{"run_id": 3}', "[]"])
def test_a_name_that_cannot_be_read_is_told_of_and_not_passed_over(nightly: Nightly, held: str) -> None:
    nightly.run(output={"run_id": "spring"})
    nightly.store.write(registered_name(1), held.encode())
    with pytest.raises(DamagedError, match=rf"{registered_name(1)}: .*restore it from a copy, or write "):
        nightly.run()


def test_an_update_follows_one_that_a_listing_shows_later_than_the_next(
    nightly: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    nightly.run()
    for name in ("0007.png", "0008.png"):
        nightly.add_image(name)
        nightly.run()
    nightly.add_image("0009.png")
    predictor, folders = BrightPredictor(), Store.folders
    with monkeypatch.context() as patch:
        patch.setattr(Store, "folders", lambda store, prefix: [n for n in folders(store, prefix) if n != "update-2"])
        assert nightly.run(predictor).run_id == "update-4"
    assert asked(predictor) == {"0009.png": 1}


def test_a_retry_follows_one_that_no_listing_shows_yet(nightly: Nightly, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(nightly.small.source) / "0001.png").write_bytes(b"no image")
    first = nightly.run()
    with as_driver(BrightPredictor()), monkeypatch.context() as patch:
        patch.setattr(Store, "folders", lambda _store, _prefix: [first.run_id])
        for number in (1, 2):
            (config,) = retry_configs(nightly.small.output, None, [], {})
            assert config.output.run_id == f"{first.run_id}-retry-{number}"
            assert engine.run_directly(config, Silent()).labelled_now == 1
    assert [plan["sequence"] for plan in plan_documents(nightly.store).values()] == [1, 2, 3]


@pytest.mark.parametrize("name", ["update-2", "update-17", "Update-2", "run-1-retry-1", "a-retry-1-retry-12"])
def test_names_of_updates_and_retries_are_not_given_to_other_runs(nightly: Nightly, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"run id '{name}'.*give another, or leave it out"):
        nightly.run(output={"run_id": name})
    assert nightly.store.find("") == {}
    assert nightly.run(output={"run_id": "update-2024-spring"}).ok


def test_a_retry_made_by_hand_has_the_name_of_its_own_run_only(nightly: Nightly) -> None:
    (Path(nightly.small.source) / "0001.png").write_bytes(b"no image")
    first = nightly.run()
    retry = {"run_id": first.run_id, "reasons": []}
    with pytest.raises(ConfigError, match="those of `xsam-label retry`"):
        nightly.run(output={"run_id": "other-retry-1"}, retry=retry, incremental=False)
    assert nightly.run(output={"run_id": f"{first.run_id}-retry-1"}, retry=retry, incremental=False).ok


def as_planned_before(nightly: Nightly, name: str, **values: Any) -> RunSummary:
    """Label a run of a name that earlier versions let anybody give, and leave it as they did."""
    whole = nightly.run(output={"run_id": "any"}, incremental=False, **values)
    store = nightly.store
    document = store.read_json(plan_name("any"))
    del document["images_sha256"]
    for found in [name for name in store.find("") if "any" in name and not name.startswith(run_folder("any"))]:
        store.delete(found)
    for part in document["parts"]:
        store.write(f"{run_folder(name)}/{part['name']}", store.read(f"{run_folder('any')}/{part['name']}"))
    store.write(plan_name(name), document_bytes({**document, "run_id": name}))
    for found in store.find(run_folder("any")):
        store.delete(found)
    assert whole.ok
    return nightly.run(output={"run_id": name}, incremental=False, **values)


def test_a_run_that_has_an_updates_name_can_be_resumed_and_does_not_stand_for_the_update(nightly: Nightly) -> None:
    assert as_planned_before(nightly, "update-2").ok
    assert nightly.run(output={"run_id": "update-2"}).labelled_now == 0
    nightly.add_image("0007.png")
    predictor = BrightPredictor()
    update = nightly.run(predictor)
    assert (update.run_id, update.ledger["listed"]) == ("update-3", 1)
    assert asked(predictor) == {"0007.png": 1}
    assert nightly.labeled() == [*NAMES, "0007.png"]


def test_a_run_that_has_a_retrys_name_does_not_keep_the_other_run_from_being_retried(nightly: Nightly) -> None:
    broken = Path(nightly.small.source) / "0001.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert nightly.run(output={"run_id": "r"}, incremental=False).ledger["quarantined"] == 1
    other = as_planned_before(nightly, "r-retry-1", categories=["other"])
    broken.write_bytes(whole)
    with as_driver(BrightPredictor()):
        configs = retry_configs(nightly.small.output, "r", [], {})
        assert [config.output.run_id for config in configs] == ["r-retry-2"]
        assert engine.run_directly(configs[0], Silent()).ledger["ok"] == 1
        assert retry_configs(nightly.small.output, "r", [], {}) == []
        (again,) = retry_configs(nightly.small.output, other.run_id, [], {})
        assert engine.run_directly(again, Silent()).run_id == "r-retry-1-retry-1"


def test_a_driver_that_loses_its_update_to_one_of_other_images_is_told_so_and_goes_on_by_the_same_command(
    nightly: Nightly,
) -> None:
    nightly.run()
    nightly.add_image("0007.png")
    with as_driver(BrightPredictor()), planning.draft_run(nightly.config()) as one:
        nightly.add_image("0008.png")
        with planning.draft_run(nightly.config()) as other:
            planning.freeze_plan(nightly.config(), one)
            with pytest.raises(PlanError, match=r"planned run 'update-2' with other images: 1 .*, here 2 "):
                planning.freeze_plan(nightly.config(), other)
    predictor = BrightPredictor()
    assert nightly.run(predictor).run_id == "update-3"
    assert asked(predictor) == {"0007.png": 1, "0008.png": 1}
    assert nightly.labeled() == [*NAMES, "0007.png", "0008.png"]


def test_an_update_that_is_planned_while_another_looks_for_earlier_runs_is_not_passed_over(nightly: Nightly) -> None:
    """A name is only taken by an update that knows of all before it: else images would be asked twice."""
    nightly.run()
    nightly.add_image("0007.png")
    predictor, others = BrightPredictor(), [nightly.run]
    with as_driver(predictor), pytest.MonkeyPatch.context() as patch:
        real = planning.run_fingerprint

        def meanwhile(config: RunConfig, held: Any) -> dict[str, Any]:
            if others:
                assert others.pop()().run_id == "update-2"
            return real(config, held)

        patch.setattr(planning, "run_fingerprint", meanwhile)
        assert engine.run_directly(nightly.config(), Silent()).run_id == "update-2"
    assert predictor.calls == []
    assert list(plan_documents(nightly.store))[1:] == ["update-2"]


def test_two_drivers_that_plan_one_run_of_the_same_images_share_its_plan(nightly: Nightly) -> None:
    config, other_config = nightly.config(), nightly.config(plan={"images_per_shard": 3})
    with (
        as_driver(BrightPredictor()),
        planning.draft_run(config) as one,
        planning.draft_run(other_config) as other,
    ):
        plan = planning.freeze_plan(config, one)
        assert planning.freeze_plan(other_config, other) == plan
    assert read_plan(open_store(nightly.small.output), plan.run_id) == plan


@pytest.fixture
def moved(nightly: Nightly, tmp_path: Path) -> Path:
    """Another folder with the same pictures under the same names, as a copy that keeps times makes it."""
    return Path(shutil.copytree(nightly.small.source, tmp_path / "moved"))


@pytest.mark.parametrize("given", [{}, {"output": {"run_id": "other"}, "incremental": False}], ids=["update", "named"])
def test_another_source_is_not_taken_for_the_same_collection(nightly: Nightly, moved: Path, given: Any) -> None:
    first = nightly.run()
    before = state(nightly.store)
    with pytest.raises(PlanError) as refused:
        nightly.run(source={"uri": str(moved)}, **given)
    told = str(refused.value)
    for word in (first.run_id, nightly.small.source, str(moved), "another output", "--same-collection"):
        assert word in told
    assert state(nightly.store) == before


def test_a_collection_that_is_said_to_have_moved_is_gone_on_with(nightly: Nightly, moved: Path) -> None:
    first = nightly.run()
    there = {"uri": str(moved)}
    predictor = BrightPredictor()
    assert nightly.run(predictor, source={**there, "same_collection": True}).run_id == first.run_id
    assert predictor.calls == []
    (moved / "0007.png").write_bytes(png(half_bright(bright_columns=5)))
    assert nightly.run(predictor, source={**there, "same_collection": True}).run_id == "update-2"
    (moved / "0008.png").write_bytes(png(half_bright(bright_columns=5)))
    assert nightly.run(predictor, source=there).run_id == "update-3", "it has been said once"
    assert asked(predictor) == {"0007.png": 1, "0008.png": 1}
    assert nightly.labeled() == [*NAMES, "0007.png", "0008.png"]
    with pytest.raises(PlanError, match="of another source"):
        nightly.run()
    assert nightly.run(output={"run_id": first.run_id}).labelled_now == 0, "a run that is planned is resumed as it is"


def test_the_same_table_with_other_columns_or_another_folder_is_another_source(
    nightly: Nightly, moved: Path, tmp_path: Path
) -> None:
    table = tmp_path / "images.csv"
    table.write_text("image_id,other,uri\n" + "".join(f"{n},{3 - n},000{n}.png\n" for n in range(4)))
    source = {"uri": str(table), "image_root": nightly.small.source}
    nightly.run(source=source)
    with pytest.raises(PlanError, match=rf"source.image_root: there '{nightly.small.source}', now '{moved}'"):
        nightly.run(source={**source, "image_root": str(moved)})
    with pytest.raises(PlanError, match=r"source.image_id_column: there None, now 'other'"):
        nightly.run(source={**source, "image_id_column": "other"})
    assert nightly.run(source=source).labelled_now == 0


def test_an_update_of_an_output_that_holds_two_sources_already_is_refused(nightly: Nightly, moved: Path) -> None:
    there = {"uri": str(moved), "same_collection": True}
    nightly.run(output={"run_id": "one"})
    nightly.run(output={"run_id": "other"}, source=there)
    store = nightly.store
    # As earlier versions planned it.
    change_document(store, plan_name("other"), lambda plan: plan["facts"]["config"]["source"].pop("same_collection"))
    with pytest.raises(PlanError, match="holds run 'one' of another source"):
        nightly.run(source={"uri": str(moved)})


def test_an_update_that_names_its_run_says_that_nothing_new_is_looked_for(tmp_path: Path) -> None:
    small = SmallRun(source=str(tmp_path / "images"), output=str(tmp_path / "out"))
    write_images(tmp_path / "images", 2)
    told = StringIO()
    with as_driver(BrightPredictor()):
        for incremental in (False, True):
            config = merge(small.config().to_dict(), {"incremental": incremental})
            launch(parse_config(config, origin="a test"), Console(file=told, width=200), prefect=False)
    assert told.getvalue().count("leave out the run id to label what is new") == 1
