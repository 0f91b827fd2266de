"""An image that has gone from its source keeps its rows, and says that it is not listed; back again, it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor, half_bright, png


class Nightly:
    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.predictor = folder, folder / "output", BrightPredictor()
        (folder / "photos").mkdir()
        (folder / "fake").mkdir()
        (folder / "run.toml").write_text('pool.runner = "in_process"\ncategories = ["bright"]\n')

    def put(self, *names: str) -> None:
        for name in names:
            (self.folder / "photos" / f"{name}.png").write_bytes(png(half_bright()))

    def drop(self, *names: str) -> None:
        for name in names:
            (self.folder / "photos" / f"{name}.png").unlink()

    def __call__(self, name: str = "run", *more: object) -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.output, "--config", self.folder / "run.toml")
        more = (*more, "--no-prefect") if name == "run" else more
        ended = command(name, *places, "--incremental", *more, predictor=self.predictor)
        assert ended.code == 0, ended
        return ended

    def listed(self) -> dict[str, bool]:
        rows = open_database(open_store(str(self.output))).execute("SELECT image_id, is_listed FROM images").fetchall()
        return {name.removesuffix(".png"): listed for name, listed in sorted(rows)}

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.output.rglob("*") if path.is_file()}


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    return Nightly(tmp_path)


def test_an_image_that_has_gone_is_not_listed_until_it_is_back(nightly: Nightly) -> None:
    nightly.put("a", "b", "c")
    nightly()
    assert nightly.listed() == {"a": True, "b": True, "c": True}
    nightly.drop("b")
    calls = len(nightly.predictor.calls)
    before = nightly.state()
    assert "which images are not listed" in nightly("plan").out
    assert nightly.state() == before
    nightly()  # nothing is left to ask: a run without images notes what has gone
    assert nightly.listed() == {"a": True, "b": False, "c": True}
    before = nightly.state()
    nightly()  # nothing new at all
    assert nightly.state() == before
    assert len(nightly.predictor.calls) == calls
    nightly.put("d")
    nightly.drop("c")
    nightly()
    assert nightly.listed() == {"a": True, "b": False, "c": False, "d": True}
    nightly.put("b", "c")
    nightly()
    assert nightly.listed() == {"a": True, "b": True, "c": True, "d": True}
    assert command("verify", nightly.output).code == 0
    assert command("status", nightly.output).code == 0
    assert command("report", nightly.output, "--to", nightly.folder / "page.html").code == 0
    assert command("vacuum", nightly.output, "--older-than", 0).out.startswith("0 leftovers")


def test_a_part_of_the_listing_does_not_tell_what_has_gone(nightly: Nightly) -> None:
    nightly.put("a", "b", "c")
    nightly()
    before = nightly.state()
    nightly("run", "--limit", "1")
    nightly("run", "--same-collection")
    assert nightly.state() == before


def test_an_export_takes_listed_images_alone_if_it_is_told_to(nightly: Nightly) -> None:
    nightly.put("a", "b")
    nightly()
    nightly.drop("a")
    nightly()
    target = nightly.folder / "coco.json"
    assert command("export", nightly.output, "--to", target, "--images-where", "is_listed").code == 0
    assert [image["file_name"] for image in json.loads(target.read_text())["images"]] == ["b.png"]


def test_a_damaged_note_of_what_has_gone_is_named(nightly: Nightly) -> None:
    nightly.put("a", "b")
    nightly()
    nightly.drop("a")
    nightly()
    (noted,) = nightly.output.glob("_runs/*/plan-*-unlisted.parquet")
    data = bytearray(noted.read_bytes())
    data[len(data) // 2] ^= 1
    noted.write_bytes(data)
    ended = command("verify", nightly.output)
    assert (ended.code, noted.name in ended.out) == (1, True)
    noted.unlink()
    assert noted.name in command("verify", nightly.output, "--quick").out
