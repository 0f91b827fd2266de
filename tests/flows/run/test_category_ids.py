"""Numbers of names over the runs of an output: one name, one number, whatever is added, removed or reordered."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from pipelines.planning.category_ids import CategoryIds
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.commands import Ended, command
from tests.support.fakes import write_images

POINTS = "image_id,prompt_id,kind,coordinates,label\n0000.png,p,point,1 2,{}\n0001.png,p,point,1 2,{}\n"


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "output"
        write_images(folder / "photos", 2)
        (folder / "fake").mkdir()
        (folder / "run.toml").write_text('pool.runner = "in_process"\n')

    def __call__(self, name: str, *more: object) -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.output, "--config", self.folder / "run.toml")
        return command(name, *places, *more, *(["--no-prefect"] if name == "run" else []))

    def numbers(self) -> dict[str, set[int]]:
        """Return the numbers of every name, in all rows of all runs."""
        found = defaultdict(set)
        query = "SELECT DISTINCT category_name, category_id FROM all_annotations"
        for name, number in open_database(open_store(str(self.output))).execute(query).fetchall():
            found[name].add(number)
        return dict(found)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_name_keeps_its_number_whatever_later_runs_ask(desk: Desk) -> None:
    table = desk.folder / "prompts.csv"
    table.write_text(POINTS.format("moon", "cup"))
    assert desk("run", "--categories", "cup, tree", "--prompts", table).code == 0
    assert desk.numbers() == {"cup": {0}, "tree": {1}, "moon": {2}}
    table.write_text(POINTS.format("star", "moon"))
    ended = desk("run", "--run-id", "two", "--categories", "sun, tree", "--phrase", "the left one", "--prompts", table)
    assert ended.code == 0
    expected = {"cup": {0}, "tree": {1}, "moon": {2}, "sun": {3}, "the left one": {4}, "star": {5}}
    assert desk.numbers() == expected
    assert desk("run", "--incremental", "--categories", "sea, star").code == 0
    assert desk.numbers() == expected | {"sea": {6}}


def test_prompts_that_are_not_asked_any_more_are_told_by_plan_and_run(desk: Desk) -> None:
    assert desk("run", "--categories", "cup, moon").code == 0
    for name in ("plan", "run"):
        ended = desk(name, "--run-id", "two", "--categories", "cup")
        (warning,) = [line for line in ended.out.splitlines() if "warning" in line]
        assert "1 prompt of earlier runs is not asked any more: ovseg:moon (last by run run-" in warning
        assert "--drop-removed" in warning
    # Neither is this passed over where nothing is left to ask.
    again = desk("run", "--incremental", "--categories", "cup").out
    assert "not asked any more: ovseg:moon" in again
    assert "nothing new: all 2 listed images are covered; the result below is that of run two" in again
    assert again.index("nothing new") < again.index("labeled now")


def test_prompts_last_asked_by_several_runs_are_not_said_to_be_of_one(desk: Desk) -> None:
    assert desk("run", "--categories", "cup, moon").code == 0
    assert desk("run", "--incremental", "--categories", "cup, star").code == 0
    told = desk("plan", "--incremental", "--categories", "cup").out
    assert "ovseg:moon, ovseg:star (last by 2 runs: see the view prompts)" in told


def test_a_category_that_is_removed_is_dropped_though_nothing_is_left_to_ask(desk: Desk) -> None:
    def dropped() -> set[str]:
        database = open_database(open_store(str(desk.output)), drop_removed=True)
        return {name for (name,) in database.execute("SELECT category_name FROM annotations").fetchall()}

    assert desk("run", "--categories", "cup, moon").code == 0
    assert "note what is asked now" in desk("plan", "--incremental", "--categories", "cup").out
    noting = desk("run", "--incremental", "--categories", "cup").out
    assert (
        "nothing new: all 2 listed images are covered; this run labels nothing and only notes that what is asked has "
        "changed" in noting
    )
    assert dropped() == {"cup"}
    before = sorted(desk.output.rglob("*"))
    assert desk("run", "--incremental", "--categories", "cup").code == 0
    assert sorted(desk.output.rglob("*")) == before
    assert desk("run", "--incremental", "--categories", "moon, cup").code == 0
    assert dropped() == {"cup", "moon"}
    assert command("verify", desk.output).code == 0


def plan(*names: str, **facts: object) -> dict[str, object]:
    return {"facts": {"prompts": [{"prompt_id": f"ovseg:{n}", "task": "ovseg", "text": n} for n in names], **facts}}


def test_runs_of_earlier_versions_that_number_two_names_alike_are_told_and_not_followed() -> None:
    ids = CategoryIds.of_runs([plan("dog", "cup"), plan("dog", "moon"), plan("moon")])
    assert ids.clashes == {1: ["cup", "moon"], 0: ["dog", "moon"]}
    ids.add(["moon", "cup", "dog", "sun"])
    assert ids.by_name == {"dog": 0, "cup": 1, "moon": 2, "sun": 3}
    assert ids.to_facts() == {"category_ids": {"moon": 2, "cup": 1, "dog": 0, "sun": 3}, "next_category_id": 4}


def test_numbers_of_more_names_than_a_plan_keeps_are_not_given_again() -> None:
    first = CategoryIds.of_runs([])
    first.add(f"row {number}" for number in range(10_005))
    later = CategoryIds.of_runs([{"facts": first.to_facts()}])
    later.add(["row 3", "row 10004", "new"])
    assert [later.by_name[name] for name in ("row 3", "row 10004", "new")] == [3, 10_005, 10_006]
