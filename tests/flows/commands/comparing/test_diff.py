"""`xsam-label diff` on outputs of the command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from pipelines.storage.store import open_store
from tests.support.commands import command
from tests.support.labeled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two pictures: of one a mask has moved, of the other it has another name."""
    folder = tmp_path_factory.mktemp("diff")
    for name in ("a.png", "b.png"):
        PILImage.new("RGB", SIZE[::-1], "white").save(folder / name)
    common = {"common": [CAT, DOG], "pictures": folder, "sizes": dict.fromkeys(("a.png", "b.png"), SIZE)}
    first = {"a.png": [mask(CAT, box(0, 0, 30, 30, SIZE), 0.9)], "b.png": [mask(CAT, box(5, 5, 20, 20, SIZE), 0.8)]}
    second = {"a.png": [mask(CAT, box(0, 0, 30, 20, SIZE), 0.7)], "b.png": [mask(DOG, box(5, 5, 20, 20, SIZE), 0.6)]}
    write_output(folder / "output", first, run_id="run-1", **common)
    write_output(folder / "output", second, run_id="run-2", **common)
    return folder / "output"


def test_the_figures_are_printed_by_prompt_and_nothing_is_written_into_the_output(output: Path) -> None:
    before = {name: open_store(str(output)).read(name) for name in open_store(str(output)).find("")}
    ended = command("diff", output, "run-1", "run-2")
    assert (ended.code, ended.errors) == (0, "")
    assert "2 images compared, 2 changed" in ended.out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in ended.out.splitlines() if "│ ovseg" in line}
    assert [int(cell) for cell in rows["ovseg:cat"][:-1]] == [2, 2, 0, 1, 1, 0, 0, 0, 1]
    assert [int(cell) for cell in rows["ovseg:dog"][:-1]] == [2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert "IoU of 1 mask found again under the same name" in ended.out
    assert {name: open_store(str(output)).read(name) for name in open_store(str(output)).find("")} == before


def test_an_output_alone_tells_what_its_last_run_has_changed(output: Path) -> None:
    alone = command("diff", output)
    assert alone.code == 0
    assert "before run run-2" in alone.out
    assert "of the images of run run-2" in alone.out
    assert "2 images compared, 2 changed" in alone.out
    assert "0 changed" in command("diff", output, "run-2").out  # all that is current is of that run


def test_figures_rows_and_pictures_are_written_once(output: Path, tmp_path: Path) -> None:
    rows, page = (tmp_path / name for name in ("changes.parquet", "diff.html"))
    told = json.loads(command("diff", output, "run-1", "run-2", "--json").out)
    arguments = ("diff", output, "run-1", "run-2", "--to", rows, "--page", page)
    ended = command(*arguments)
    assert ended.code == 0, ended
    assert (told["total"]["moved"], told["total"]["relabeled"], told["images"]["compared"]) == (1, 1, 2)
    assert told["before"] == {"output": str(output), "run_id": "run-1", "without_run": None, "images_of": None}
    assert sorted(pq.read_table(rows)["change"].to_pylist()) == ["moved", "relabeled"]
    assert "2 rows written" in ended.out
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 2
    assert "IoU 0.67" in text
    assert "no picture" not in text
    refused = command(*arguments)
    assert refused.is_refusal
    assert "exists already" in refused.errors
    assert command(*arguments, "--overwrite").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {rows.name, page.name}


def test_another_output_is_compared_by_image_ids(output: Path, tmp_path: Path) -> None:
    write_output(tmp_path / "other", {"b.png": []}, common=[CAT], sizes={"b.png": SIZE}, run_id="run-1")
    ended = command("diff", output, "--other", tmp_path / "other")
    assert ended.code == 0, ended
    assert "1 image is on the before side only" in ended.out
    assert "1 image compared" in ended.out


def test_what_cannot_be_compared_is_refused_in_one_message(output: Path, tmp_path: Path) -> None:
    write_output(tmp_path / "single", {"z.png": []}, common=[CAT], run_id="run-1")
    for arguments, told in (
        ((output, "run-1", "run-3"), "holds no run 'run-3'; it holds run-1, run-2"),
        ((tmp_path / "none",), "holds no run"),
        ((tmp_path / "single",), "nothing to compare it with"),
        ((output, "--other", tmp_path / "single"), "no image is on both sides"),
        ((output, "run-1", "run-2", "--where", "scores > 1"), "--where is no SQL condition"),
        ((output, "run-1", "run-2", "--to", tmp_path / "rows.csv"), "changes are written as .parquet"),
        ((output, "run-1", "run-2", "--page", output / "images" / "x.html"), "inside the table's own folder"),
    ):
        ended = command("diff", *arguments)
        assert ended.is_refusal, ended
        assert told in ended.errors, ended.errors
        assert ended.errors.count("error: ") == 1
    two = command("diff", output, tmp_path / "single")
    assert two.code == 2
    assert "--other" in two.errors
