"""Outputs of earlier versions, as those left them, under the commands of this one: right, or refused with a reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import DamagedError
from pipelines.forgetting.chosen import choose
from pipelines.forgetting.forget import forget
from pipelines.history.history import gather
from pipelines.planning.plan import plan_documents, require_plan
from pipelines.query.database import open_database
from pipelines.storage.store import Store, open_store
from pipelines.table.image_lookup import shards_of_images
from pipelines.table.verify import verify
from tests.outputs import write_output
from tests.support.commands import Ended, command

OUTPUTS = Path(__file__).parents[1] / "outputs"
FINISHED = ("schema-1/finished", "schema-2/finished", "schema-2/resumed", "schema-3/finished", "schema-4/finished")
UNFINISHED = ("schema-1/unfinished", "schema-2/unfinished", "schema-3/unfinished", "schema-4/unfinished")
CAN_GO_ON = tuple(name for name in (*FINISHED, *UNFINISHED) if not name.startswith("schema-1"))
EVERY_IMAGE = [f"{number:04d}.png" for number in range(5)]


@pytest.fixture(autouse=True)
def photos() -> None:
    """Put the images where they were when the outputs were written."""
    write_output.write_photos()


def copy(name: str, to: Path) -> Path:
    """Copy an output, and put the config of its run beside it."""
    output = to / "labels"
    shutil.copytree(OUTPUTS / name, output)
    config = {**write_output.VALUES, "output": {"uri": str(output)}}
    (to / "run.yaml").write_text(json.dumps(config))
    return output


def images(output: Path, view: str = "images") -> list[dict[str, Any]]:
    database = open_database(open_store(str(output)))
    return database.sql(f"FROM {view} ORDER BY image_id, run_id").to_arrow_table().to_pylist()


def state(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def truth(folder: Path) -> Path:
    """Write a COCO file that says of one image where the bright half is."""
    box = {"bbox": [0, 0, 5, 14], "area": 70, "iscrowd": 0, "segmentation": [[0, 0, 5, 0, 5, 14, 0, 14]]}
    document = {
        "images": [{"id": 1, "file_name": "0002.png", "width": 22, "height": 14}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "bright"}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", FINISHED)
def test_verify_finds_an_untouched_output_of_an_earlier_version_whole(name: str, tmp_path: Path) -> None:
    output = copy(name, tmp_path)
    for arguments in ((), ("--quick",)):
        ended = command("verify", output, *arguments)
        assert (ended.code, "problem" in ended.out) == (0, False), ended


@pytest.mark.parametrize("name", UNFINISHED)
def test_verify_finds_nothing_wrong_with_an_unfinished_one_but_that(name: str, tmp_path: Path) -> None:
    report = verify(open_store(str(copy(name, tmp_path))), write_output.RUN)
    assert report.problems == ["2 planned shards are not committed: shard-00001, shard-00002"]


@pytest.mark.parametrize("name", ["schema-1/finished", "schema-3/finished"])
def test_verify_finds_a_flipped_bit_in_a_file_of_an_earlier_version(name: str, tmp_path: Path) -> None:
    output = copy(name, tmp_path)
    path = next((output / "images" / write_output.RUN).iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    ended = command("verify", output)
    assert ended.code == 1
    assert f"images/{write_output.RUN}/{path.name} does not have the committed SHA-256" in ended.out


@pytest.mark.parametrize("name", [*FINISHED, *UNFINISHED])
def test_every_view_shows_the_rows_of_earlier_versions_with_a_version_of_each_image(name: str, tmp_path: Path) -> None:
    output = copy(name, tmp_path)
    for view in ("images", "all_images"):
        rows = images(output, view)
        assert [row["image_id"] for row in rows] == (EVERY_IMAGE if name in FINISHED else EVERY_IMAGE[:2])
        assert {row["image_version"] for row in rows} == {1}
    asked = command("query", output, "SELECT count(*) AS n FROM annotations WHERE category_name = 'light'")
    assert (asked.code, str(4 if name in FINISHED else 1) in asked.out) == (0, True)


@pytest.mark.parametrize("name", [*FINISHED, *UNFINISHED])
def test_commands_that_read_work_on_outputs_of_earlier_versions_and_write_nothing(name: str, tmp_path: Path) -> None:
    output = copy(name, tmp_path)
    before = state(output)
    masks = 8 if name in FINISHED else 2
    assert f"{masks} masks" in expect(0, command("export", output, "--to", tmp_path / "coco.json")).out
    assert "open it in a browser" in expect(0, command("report", output, "--to", tmp_path / "page.html")).out
    progress = json.loads(expect(0, command("status", output, "--json")).out)
    assert progress["run"]["masks"] == masks
    assert progress["run"]["state"] == ("finished" if name in FINISHED else "unfinished")
    assert state(output) == before


@pytest.mark.parametrize("name", ["schema-1/finished", "schema-3/finished"])
def test_corrections_of_an_output_of_an_earlier_version_come_back(name: str, tmp_path: Path) -> None:
    output, path = copy(name, tmp_path), tmp_path / "coco.json"
    expect(0, command("export", output, "--to", path))
    document = json.loads(path.read_text())
    document["annotations"].pop()
    path.write_text(json.dumps(document))
    expect(0, command("import", output, path))
    expect(0, command("verify", output))
    assert images(output)[-1]["num_annotations"] == 1
    with open_database(open_store(str(output))) as database:
        assert database.execute("SELECT image_id, change FROM corrections ORDER BY ALL").fetchall() == [
            (EVERY_IMAGE[-1], "confirmed"), (EVERY_IMAGE[-1], "deleted")
        ]  # fmt: skip


@pytest.mark.parametrize("name", CAN_GO_ON)
def test_an_output_of_an_earlier_version_is_evaluated(name: str, tmp_path: Path) -> None:
    ended = command("evaluate", copy(name, tmp_path), "--ground-truth", truth(tmp_path))
    if name in FINISHED:
        assert "ovseg" in expect(0, ended).out
    else:
        assert ended.is_refusal  # the image of the truth is not labeled yet
        assert "0002.png" in ended.errors


@pytest.mark.parametrize("name", CAN_GO_ON)
def test_a_run_of_an_earlier_version_goes_on_and_ends_complete(name: str, tmp_path: Path) -> None:
    output = copy(name, tmp_path)
    assert "leftovers" in expect(0, command("vacuum", output, "--dry-run")).out
    expect(0, command("run", "--config", tmp_path / "run.yaml", "--no-prefect"))
    expect(0, command("verify", output))
    rows = images(output)
    assert [(row["image_id"], row["image_version"]) for row in rows] == [(image, 1) for image in EVERY_IMAGE]
    before = state(output)
    expect(0, command("run", "--config", tmp_path / "run.yaml", "--no-prefect"))
    assert state(output) == before
    assert "1 image" in expect(0, command("retry", output, "--no-prefect")).out
    expect(0, command("verify", output))


@pytest.mark.parametrize("name", CAN_GO_ON)
def test_an_update_of_an_output_of_an_earlier_version_asks_what_is_new_and_that_alone(
    name: str, tmp_path: Path
) -> None:
    output = copy(name, tmp_path)
    more = ("--incremental", "--categories", "bright,light,extra")
    ended = expect(0, command("run", "--config", tmp_path / "run.yaml", "--no-prefect", *more))
    assert "0 new images, 0 changed, 5 asked something new (1 prompt)" in ended.out
    expect(0, command("verify", output))
    for row in images(output):
        prompts = {entry["prompt_id"] for entry in row["per_prompt"]}
        # Rows of schema 2 do not say what a quarantined image was asked.
        known = set() if row["status"] == "quarantined" else {"ovseg:bright", "ovseg:light"}
        assert prompts >= {"ovseg:extra"} | known
    assert {row["image_version"] for row in images(output, "all_images")} == {1}


@pytest.mark.parametrize("name", ["schema-1/finished", "schema-1/unfinished"])
@pytest.mark.parametrize("arguments", ["run", "run --incremental", "plan", "retry", "evaluate", "vacuum --dry-run"])
def test_what_needs_a_plan_that_is_no_longer_read_is_refused_and_says_what_still_works(
    name: str, arguments: str, tmp_path: Path
) -> None:
    output = copy(name, tmp_path)
    before = state(output)
    first, *more = arguments.split()
    given: list[object] = [output] if first in ("retry", "evaluate", "vacuum") else ["--config", tmp_path / "run.yaml"]
    given += ["--ground-truth", truth(tmp_path)] if first == "evaluate" else []
    given += ["--no-prefect"] if first in ("run", "retry") else []
    ended = command(first, *given, *more)
    assert ended.is_refusal
    for words in ("run-1", "plan format 1", "query, export, report, status and verify"):
        assert words in ended.errors
    assert state(output) == before


def expect(code: int, ended: Ended) -> Ended:
    """Fail with what a command printed if it ended otherwise."""
    assert ended.code == code, ended
    return ended


@pytest.mark.parametrize("name", ["schema-2/finished", "schema-3/finished"])
def test_an_image_of_an_earlier_version_is_forgotten_and_the_other_rows_stay_in_their_version(
    name: str, tmp_path: Path
) -> None:
    output = copy(name, tmp_path)
    before = [row for row in images(output) if row["image_id"] != "0002.png"]
    ended = command("forget", output, "--images-where", "image_id = '0002.png'", "--yes")
    assert ended.code == 0, ended
    assert [{**row, "attempt": ""} for row in images(output)] == [{**row, "attempt": ""} for row in before]
    assert [row["status"] for row in images(output, "all_images")].count("forgotten") == 1
    assert command("verify", output).code == 0
    assert b"0002.png" not in b"".join(state(output).values())


def test_forgetting_is_refused_where_the_plan_is_of_the_first_versions(tmp_path: Path) -> None:
    output = copy("schema-1/finished", tmp_path)
    before = state(output)
    ended = command("forget", output, "--images-where", "true", "--yes")
    assert (ended.is_refusal, "plan format 1" in ended.errors) == (True, True), ended
    assert state(output) == before


def gather_all(store: Store) -> None:
    gather(store, None, list(plan_documents(store).values()), {})


def forget_one(store: Store) -> None:
    forget(store, choose(store, image_ids=["0002.png"]))


def look_up_one(store: Store) -> None:
    shards_of_images(store, require_plan(store, "run-1"), ["0002.png"])


@pytest.mark.parametrize("read", [gather_all, forget_one, look_up_one])
def test_a_plan_without_checksums_of_which_half_is_read_is_named(read: Callable[[Store], None], tmp_path: Path) -> None:
    """Later plans state a checksum of each file, which tells before anything is made of its bytes."""
    output = copy("schema-3/finished", tmp_path)
    for path in output.glob("_runs/*/plan-*.parquet"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError, match="what was read is no whole plan file"):
        read(open_store(str(output)))
