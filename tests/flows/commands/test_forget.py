"""`xsam-label forget` on an output of several runs: nothing that names or shows the images is left, all else is."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.planning.erasures import begin_erasure
from pipelines.query.database import count_forgotten, open_database
from pipelines.storage.store import open_store
from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor, half_bright, png

# Beside the names of the files: a label of one of their prompts, a column of the source's table.
NEEDLES = ("jane", "Jane Doe", "E4711")
CONDITION = "image_id LIKE 'jane%' AND num_bytes > 7"


class Collection:
    """A table of images with prompts of their own, labeled by three runs."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output, self.predictor = folder, output, BrightPredictor()

    def source(self, *names: str) -> None:
        rows = [f"{name},{self.folder}/photos/{name},{'E4711' if 'jane' in name else 'E1'}" for name in names]
        (self.folder / "images.csv").write_text("\n".join(["image_id,path,owner", *rows]) + "\n")

    def run(self, *more: object, categories: str = "bright") -> Ended:
        places = ("--source", self.folder / "images.csv", "--output", self.output, "--config", self.folder / "run.toml")
        return self("run", *places, "--categories", categories, "--incremental", "--no-prefect", *more)

    def forget(self, *more: object) -> Ended:
        return self("forget", self.output, *more)

    def __call__(self, *arguments: object) -> Ended:
        return command(*arguments, predictor=self.predictor)

    def sql(self, query: str) -> list[Any]:
        with open_database(open_store(str(self.output))) as database:
            return database.execute(query).fetchall()

    def rows(self, where: str = "true") -> dict[str, list[Any]]:
        """All rows of the images that fit a condition, without the attempt that wrote them."""
        return {
            kind: self.sql(f"SELECT * EXCLUDE (attempt) FROM all_{kind} WHERE {where} ORDER BY ALL")
            for kind in ("images", "annotations")
        }

    def globbed(self) -> dict[str, int]:
        """How many rows the files of each table have, whatever names them."""
        return {
            kind: sum(pq.read_metadata(path).num_rows for path in (self.output / kind).rglob("*.parquet"))
            for kind in ("images", "annotations")
        }

    def asked(self) -> set[str]:
        """The images that the model was asked since the last call."""
        asked = {image_id for call in self.predictor.calls for image_id in call}
        self.predictor.calls.clear()
        return asked

    def state(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.output.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of a run with prompts of single images, of an update that an image has gone from, and of a retry."""
    folder = tmp_path_factory.mktemp("collection")
    collection = Collection(folder, folder / "output")
    (folder / "photos").mkdir()
    for number, name in enumerate(("a.png", "jane-1.png", "jane-2.png", "b.png", "c.png")):
        (folder / "photos" / name).write_bytes(png(half_bright(20 + number)))
    (folder / "photos" / "jane-3.png").write_bytes(b"no image")
    (folder / "prompts.csv").write_text(
        "image_id,prompt_id,kind,coordinates,label\n"
        'jane-1.png,face,box,"1,1,5,5",Jane Doe\n'
        'jane-1.png,outside,point,"900,900",Jane Doe\n'
        f'{folder}/photos/jane-2.png,broken,point,"1",hat\n'
        'a.png,hat,box,"1,1,5,5",hat\n'
        'b.png,hat,box,"1,1,5,5",hat\n'
        'gone.png,hat,box,"1,1,5,5",hat\n'
    )
    (folder / "run.toml").write_text(
        f'pool.runner = "in_process"\ncaption = true\nprompts = "{folder}/prompts.csv"\n'
        "plan.images_per_shard = 2\nlimits.max_rejected_prompts_share = 1.0\nlimits.max_quarantined_share = 1.0\n"
    )
    collection.source("a.png", "jane-1.png", "jane-2.png", "b.png", "jane-3.png", "c.png")
    assert collection.run().code == 0
    collection.source("a.png", "jane-1.png", "b.png", "jane-3.png", "c.png")
    assert collection.run(categories="bright, white").code == 0
    assert collection("retry", collection.output, "--no-prefect").code == 0
    # What `report = true` leaves holds ids, URIs and pictures.
    (run_id,) = (path.name for path in (folder / "output" / "_runs").glob("run-*-retry-1"))
    (folder / "output" / "_runs" / run_id / "report.html").write_text("<figure>jane-1.png</figure>")
    (folder / "output" / "_runs" / run_id / "plan-lost-00000.parquet").write_text("of a plan that lost: jane-1.png")
    (folder / "output" / "annotations" / run_id / ".tmp-5").write_text("of a writer that died: jane-1.png")
    return folder


@pytest.fixture
def collection(labeled: Path, tmp_path: Path) -> Collection:
    shutil.copytree(labeled / "output", tmp_path / "output")
    return Collection(labeled, tmp_path / "output")


@dataclass
class Erased:
    """An output of which images were forgotten, and what it was before.

    Attributes:
        collection: as it is now.
        rows: of the images that were to stay.
        naming: the objects that held a name.
        shown, ended: the command without and with leave to erase.
        is_untouched: whether the first of them left all as it was.
    """

    collection: Collection
    rows: dict[str, list[Any]]
    naming: list[str]
    shown: Ended
    ended: Ended
    is_untouched: bool


@pytest.fixture(scope="module")
def erased(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> Erased:
    output = tmp_path_factory.mktemp("erased") / "output"
    shutil.copytree(labeled / "output", output)
    collection = Collection(labeled, output)
    rows, held, before = collection.rows(OTHERS), naming(collection), collection.state()
    shown = collection.forget("--images-where", CONDITION, "--dry-run")
    assert " in all runs" in shown.out
    assert ": rewritten without them" in shown.out
    assert "in the ledger: image_id LIKE ? AND num_bytes > ? (values are never kept)" in shown.out
    assert "ledger" not in collection.forget("--images-where", "image_id = 'nobody'", "--dry-run").out
    is_untouched = collection.state() == before
    ended = collection.forget("--images-where", CONDITION, "--yes")
    return Erased(collection, rows, held, shown, ended, is_untouched)


@pytest.fixture
def forgotten(erased: Erased, labeled: Path, tmp_path: Path) -> Collection:
    shutil.copytree(erased.collection.output, tmp_path / "output")
    return Collection(labeled, tmp_path / "output")


def texts(data: bytes) -> str:
    """All that can be read in an object, decompressed."""
    if not data.startswith(b"PAR1"):
        return data.decode()
    file = pq.ParquetFile(io.BytesIO(data))
    return f"{file.metadata.metadata} {file.read().to_pylist()}"


def naming(collection: Collection) -> list[str]:
    """The objects that hold one of the names."""
    state = {name.removeprefix(str(collection.output)): data for name, data in collection.state().items()}
    return [name for name, data in state.items() if any(needle in texts(data) for needle in NEEDLES)]


PLACES = ("plan.json", "plan-", "lost", "unlisted.parquet", "summary.json", "report.html", "commits", ".tmp-")
OTHERS = "image_id NOT LIKE 'jane%' AND image_id NOT LIKE 'forgotten-%'"


def test_nothing_is_left_of_forgotten_images_and_everything_of_the_others(erased: Erased) -> None:
    collection = erased.collection
    for place in (*PLACES, "/annotations/", "/images/"):
        assert any(place in name for name in erased.naming), f"no {place} named them: {erased.naming}"
    assert (erased.shown.code, erased.is_untouched) == (0, True)
    assert "jane-1.png" in erased.shown.out
    assert "image_id LIKE ? AND num_bytes > ?" in erased.shown.out

    assert erased.ended.code == 0, erased.ended
    assert naming(collection) == []
    assert collection.rows(OTHERS) == erased.rows
    verified = collection("verify", collection.output)
    assert (verified.code, "forgotten: 3 images, asked for at" in verified.out) == (0, True), verified
    assert collection("vacuum", collection.output, "--older-than", 0).out.startswith("0 leftovers")
    assert collection.globbed() == {kind: len(rows) for kind, rows in collection.rows("true").items()}

    state = collection.state()
    again = collection.forget("--images-where", CONDITION, "--yes")
    assert (again.code, "nothing is to be forgotten" in again.out) == (0, True), again
    assert collection.state() == state


def test_the_ledger_tells_when_how_many_and_by_which_condition_and_views_leave_them_out(erased: Erased) -> None:
    forgotten = erased.collection
    with open_database(open_store(str(forgotten.output))) as database:
        counts = database.execute("SELECT images_forgotten FROM runs ORDER BY place").fetchall()
        assert counts == [(3,), (2,), (1,), (1,)]
        for view in ("images", "coverage"):
            names = {name for (name,) in database.execute(f"SELECT image_id FROM {view}").fetchall()}
            assert names == {"a.png", "b.png", "c.png"}
        assert count_forgotten(database) == 3
    told = json.loads(forgotten("status", forgotten.output, "--json").out)["erasures"]
    assert [(one["images"], one["condition"]) for one in told] == [(3, "image_id LIKE ? AND num_bytes > ?")]
    assert told[0]["asked_at"] <= told[0]["finished_at"]
    exported = forgotten("export", forgotten.output, "--to", forgotten.folder / "coco", "--overwrite")
    assert "3 images that were forgotten on request" in exported.out
    page = forgotten.folder / "page.html"
    assert forgotten("report", forgotten.output, "--to", page, "--overwrite").code == 0
    assert "</span>forgotten</dt><dd>3</dd>" in page.read_text()


def test_a_forgotten_image_is_asked_by_no_later_run_and_no_repair(forgotten: Collection) -> None:
    names = ("a.png", "jane-1.png", "jane-2.png", "b.png", "jane-3.png", "c.png")
    forgotten.source(*names)
    state = forgotten.state()
    told = forgotten.run(categories="bright, white")
    assert (told.code, forgotten.asked(), forgotten.state()) == (0, set(), state), told
    assert "3 listed images were forgotten on request" in told.out
    assert forgotten.run(categories="bright, white, gray").code == 0
    assert forgotten.asked() == {"a.png", "b.png", "c.png"}
    assert forgotten.run("--run-id", "other", categories="dark").code == 0
    assert forgotten.asked() == {"a.png", "b.png", "c.png"}
    again = forgotten("retry", forgotten.output, "--no-prefect")
    assert "no image is quarantined" in again.out
    for path in sorted(forgotten.output.glob("images/update-2/*.parquet")):
        path.unlink()
    assert forgotten.run(categories="bright, white, gray").code == 0
    assert forgotten.asked() == {"a.png", "b.png", "c.png"}
    assert naming(forgotten) == []
    assert forgotten("verify", forgotten.output).code == 0


def test_ids_in_a_file_are_forgotten_and_those_that_are_not_there_are_told(collection: Collection) -> None:
    ids = collection.output.parent / "ids.txt"
    ids.write_text("jane-3.png\r\nnobody.png\n\n")
    refused = collection.forget("--image-ids", ids)
    assert refused.is_refusal, refused
    assert "say --yes" in refused.errors
    ended = collection.forget("--image-ids", ids, "--yes")
    assert ended.code == 0, ended
    assert "nobody.png" in ended.out
    assert not [name for name, data in collection.state().items() if "jane-3.png" in texts(data)]
    assert collection.forget("--image-ids", collection.folder / "none.txt", "--yes").is_refusal
    assert collection.forget().is_refusal


def test_no_run_is_planned_until_an_erasure_that_was_begun_is_completed(collection: Collection) -> None:
    store = open_store(str(collection.output))
    begin_erasure(store, image_ids=["jane-1.png"], uris=[], labels=["Jane Doe"], condition="image_id = ?")
    refused = collection.run(categories="new")
    assert refused.is_refusal, refused
    assert f"xsam-label forget {collection.output} completes it" in refused.errors
    assert "it has not ended" in collection("status", collection.output).out
    assert "begun and not ended" in collection.forget("--dry-run").out
    ended = collection.forget()
    assert (ended.code, "begun and completed now: 1 image" in ended.out) == (0, True), ended
    assert not [name for name, data in collection.state().items() if "jane-1.png" in texts(data)]
    assert collection.run(categories="new").code == 0
    (collection.output / "_runs" / ".erasure-000001").write_text("{}")
    for name in ("verify", "status", "forget"):
        ended = collection(name, collection.output)
        assert (ended.code, ".erasure-000001" in ended.out + ended.errors) == (1 if name == "verify" else 2, True), (
            ended
        )
