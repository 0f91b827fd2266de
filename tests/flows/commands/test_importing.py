"""`xsam-label import` in the life of an output: between runs, updates, retries and the commands that read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor, half_bright, png


class Life:
    """An output: two pictures and one that is broken, of which what is bright was labeled and corrected."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.predictor = folder, folder / "output", BrightPredictor()
        (folder / "photos").mkdir()
        for number, name in enumerate(("a.png", "b.png")):
            (folder / "photos" / name).write_bytes(png(half_bright(20 + number)))
        (folder / "photos" / "c.png").write_bytes(b"no image")
        (folder / "run.toml").write_text('pool.runner = "in_process"\nlimits.max_quarantined_share = 1.0\n')

    def run(self, *more: object, categories: str = "bright") -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.output, "--config", self.folder / "run.toml")
        return self("run", *places, "--categories", categories, "--no-prefect", *more)

    def __call__(self, *arguments: object) -> Ended:
        return command(*arguments, predictor=self.predictor)

    def sql(self, query: str) -> list[Any]:
        with open_database(open_store(str(self.output))) as database:
            return database.execute(query).fetchall()

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.output.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Life, Ended]:
    """The output after its import, and what that printed: of a.png the mask was deleted."""
    life = Life(tmp_path_factory.mktemp("life"))
    assert life.run().code == 0
    path = life.folder / "masks.json"
    assert life("export", life.output, "--to", path).code == 0
    document = json.loads(path.read_text())
    number = next(image["id"] for image in document["images"] if image["file_name"] == "a.png")
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] != number]
    path.write_text(json.dumps(document))
    dry = life("import", life.output, path, "--dry-run")
    assert dry.code == 0
    assert "nothing: would be run import-" in dry.out
    return life, life("import", life.output, path)


def test_an_import_tells_what_it_came_to_and_leaves_a_whole_run(corrected: tuple[Life, Ended]) -> None:
    life, ended = corrected
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines()}
    assert (ended.code, lines["images"], lines["deleted"], lines["added"]) == (0, ["1"], ["1"], ["0"])
    assert "1 image without a change, not taken as looked at" in ended.out
    assert "run import-" in ended.out
    verified = life("verify", life.output)
    assert (verified.code, "not whole" in verified.out) == (0, False)
    before = life.files()
    again = life("import", life.output, life.folder / "masks.json")
    assert (again.code, life.files() == before) == (0, True)
    assert "nothing: this file was imported before, as run import-" in again.out


def test_runs_updates_and_retries_go_on_beside_what_people_answered(corrected: tuple[Life, Ended]) -> None:
    life, _ = corrected
    before = life.files()
    life.predictor.calls.clear()
    assert life.run().code == 0  # the same command resumes the only run that was labeled
    assert (life.predictor.calls, life.files() == before) == ([], True)
    assert life.run("--incremental", categories="bright, light").code == 0
    assert life("retry", life.output, "--no-prefect").code == 0
    asked = life.sql("SELECT image_id, category_name, source FROM annotations ORDER BY ALL")
    assert asked == [("a.png", "light", "model"), ("b.png", "bright", "model"), ("b.png", "light", "model")]
    assert life.sql("SELECT image_id, n FROM coverage WHERE prompt_id = 'ovseg:bright' ORDER BY ALL") == [
        ("a.png", 0), ("b.png", 1), ("c.png", None)
    ]  # fmt: skip
    (run_id,) = (run for run, imported in life.sql("SELECT run_id, imported FROM runs") if imported)
    refused = life("retry", life.output, "--run-id", run_id, "--no-prefect")
    assert refused.is_refusal
    assert "holds corrections, which no model labels" in refused.errors
    # A run may be told to.
    with (life.folder / "run.toml").open("a") as config:
        config.write("over_corrections = true\n")
    assert life.run("--run-id", "anew").code == 0
    assert life.sql("SELECT count(*) FROM annotations WHERE category_name = 'bright'") == [(2,)]


def test_the_commands_that_read_take_imports_for_runs(corrected: tuple[Life, Ended]) -> None:
    life, _ = corrected
    (run_id,) = (run for run, imported in life.sql("SELECT run_id, imported FROM runs") if imported)
    for arguments in (
        ("status", life.output),
        ("status", life.output, "--run-id", run_id, "--json"),
        ("report", life.output, "--to", life.folder / "page.html"),
        ("vacuum", life.output, "--older-than", 0),
        ("evaluate", life.output, "--ground-truth", life.folder / "masks.json"),
        ("query", life.output, "FROM corrections"),
    ):
        ended = life(*arguments)
        assert ended.code == 0, ended
    assert "deleted" in ended.out


def test_what_is_no_file_of_the_format_is_refused(corrected: tuple[Life, Ended]) -> None:
    life, _ = corrected
    before = life.files()
    for arguments in (
        (life.folder / "none.json",),
        (life.folder / "masks.json", "--format", "yolo"),
        (life.folder / "masks.json", "--format", "cvat"),
        (life.folder / "masks.json", "--exported", life.folder / "none.xml"),
    ):
        assert life("import", life.output, *arguments).is_refusal
    assert life("import", life.folder, life.folder / "masks.json").is_refusal  # no output
    assert life.files() == before
