"""`xsam-label evaluate`: what it prints, what it writes and where not, and how it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from tests.flows.conftest import Ended
from tests.support.labeled import RUN, box, mask, named, write_output
from tests.support.truth_files import instances, panoptic

Cli = Callable[..., Ended]

CAT, DOG = named("ovseg", "cat", "dog")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two images; the dog of the second is half found."""
    found = {
        "a.png": [mask(CAT, box(0, 0, 4, 4), 0.9)],
        "b.png": [mask(CAT, box(0, 0, 4, 4), 0.8), mask(DOG, box(4, 4, 4, 3), 0.7)],
    }
    write_output(tmp_path / "output", found, common=[CAT, DOG])
    return tmp_path / "output"


@pytest.fixture
def truth(tmp_path: Path) -> str:
    cat, dog = ("cat", box(0, 0, 4, 4)), ("dog", box(4, 4, 4, 6))
    return instances(tmp_path / "truth.json", {"a.png": [cat], "b.png": [cat, dog], "[c].png": [dog]})


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_figures_are_printed_and_written(cli: Cli, output: Path, truth: str, tmp_path: Path) -> None:
    before, file = contents(output), tmp_path / "figures.json"
    ended = cli("evaluate", output, "--ground-truth", truth, "--to", file)
    assert (ended.code, ended.err) == (0, "")
    (row,) = [line for line in ended.out.splitlines() if "ovseg" in line and "all" in line]
    # The cats are found at every IoU, the dog at 0.5 alone.
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["ovseg", "all", "55.0", "100.0", "50.0", "3", "3"]
    (dog,) = [line for line in ended.out.splitlines() if line.strip("│ ").startswith("dog")]
    assert [cell.strip() for cell in dog.strip("│ ").split("│")] == ["dog", "10.0", "100.0", "0.0", "1", "1"]
    assert "1 of 3 images of the truth are not labeled, left out: [c].png" in ended.out
    written = json.loads(file.read_text())
    assert (written["runs"], written["num_images"], written["ground_truth"]) == ([RUN], 2, truth)
    assert written["results"][0]["figures"]["AP"] == pytest.approx(0.55)
    assert written["results"][0]["categories"]["cat"]["AP50"] == pytest.approx(1)
    assert len(written["notes"]) == 1
    printed = cli("evaluate", output, "--ground-truth", truth, "--json")
    assert (printed.code, json.loads(printed.out)) == (0, written)
    assert contents(output) == before


def test_what_a_score_decides_is_printed_and_written(cli: Cli, output: Path, truth: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = cli("evaluate", output, "--ground-truth", truth, "--to", file, "--score", 0.75, "--where", "area > 3")
    assert (ended.code, ended.err) == (0, "")
    (cat,) = [line for line in ended.out.splitlines() if line.strip("│ ").startswith("cat")]
    cells = [cell.strip() for cell in cat.strip("│ ").split("│")]
    assert cells[-5:] == ["100.0", "100.0", "100.0", "100.0", "0.8000"]
    (dog,) = [line for line in ended.out.splitlines() if "(not found)" in line]
    assert [cell.strip() for cell in dog.strip("│ ").split("│")] == ["dog", "(not found)", "1"]
    written = json.loads(file.read_text())
    assert (written["score"], written["where"]) == (0.75, "area > 3")
    assert {"true": "dog", "found": None, "count": 1} in written["results"][0]["confusion"]
    best = cli("evaluate", output, "--ground-truth", truth, "--score", "best")
    assert "0.7000" in best.out
    for wrong in ("1.5", "high", "nan"):
        refused = cli("evaluate", output, "--ground-truth", truth, "--score", wrong)
        assert refused.code == 2
        assert f"--score is '{wrong}'; give a number from 0 to 1, or best" in refused.err


def test_maps_are_found_beside_the_file_or_where_they_are_said_to_be(cli: Cli, tmp_path: Path) -> None:
    (cat,) = named("ovseg_panoptic", "cat")
    write_output(tmp_path / "output", {"a.png": [mask(cat, box(0, 0, 4, 4))]}, common=[cat])
    file = panoptic(tmp_path / "maps.json", {"a.png": [("cat", box(0, 0, 4, 4), False)]}, {"cat": True})
    ended = cli("evaluate", tmp_path / "output", "--ground-truth", file)
    assert ended.code == 0
    assert "PQ" in ended.out
    assert "things" in ended.out
    (tmp_path / "maps").rename(tmp_path / "elsewhere")
    ended = cli("evaluate", tmp_path / "output", "--ground-truth", file)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "maps/a.png: not found" in ended.err
    assert (
        cli("evaluate", tmp_path / "output", "--ground-truth", file, "--png-folder", tmp_path / "elsewhere").code == 0
    )


def test_many_categories_are_cut_short_on_the_terminal_only(cli: Cli, tmp_path: Path) -> None:
    names = tuple(f"thing {number:02d}" for number in range(45))
    prompts = named("ovseg", *names)
    write_output(tmp_path / "output", {"a.png": [mask(p, box(0, 0, 4, 4)) for p in prompts]}, common=prompts)
    truth = instances(tmp_path / "t.json", {"a.png": [(name, box(0, 0, 4, 4)) for name in names]}, names)
    ended = cli("evaluate", tmp_path / "output", "--ground-truth", truth, "--to", tmp_path / "all.json")
    assert "thing 39" in ended.out
    assert "thing 40" not in ended.out
    assert "and 5 more, which --json has" in ended.out
    assert len(json.loads((tmp_path / "all.json").read_text())["results"][0]["categories"]) == 45


def test_categories_that_were_never_asked_count_on_request(cli: Cli, tmp_path: Path, truth: str) -> None:
    write_output(tmp_path / "one", {"b.png": [mask(CAT, box(0, 0, 4, 4))]}, common=[CAT])
    ended = cli("evaluate", tmp_path / "one", "--ground-truth", truth)
    assert "100.0" in ended.out
    ended = cli("evaluate", tmp_path / "one", "--ground-truth", truth, "--count-unasked")
    assert "50.0" in ended.out
    assert "never asked, not found: dog" in ended.out


class TestMistakes:
    def refused(self, ended: Ended, *words: str) -> None:
        assert ended.code == 2
        assert ended.out == ""
        assert ended.err.count("\n") == 1, ended.err
        assert all(word in ended.err for word in words), ended.err

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, ["[truth].json", "not found"]),
            ("no json", ["[truth].json", "not JSON"]),
            ("{}", ["[truth].json", "not a ground truth"]),
        ],
    )
    def test_a_file_that_is_no_truth(
        self, cli: Cli, output: Path, tmp_path: Path, text: str | None, words: list[str]
    ) -> None:
        if text is not None:
            (tmp_path / "[truth].json").write_text(text)
        file = tmp_path / "figures.json"
        ended = cli("evaluate", output, "--ground-truth", tmp_path / "[truth].json", "--to", file)
        self.refused(ended, *words)
        assert not file.exists()

    def test_images_of_something_else(self, cli: Cli, output: Path, tmp_path: Path) -> None:
        truth = instances(tmp_path / "t.json", {"x.png": [("cat", box(0, 0, 4, 4))]})
        file = tmp_path / "figures.json"
        ended = cli("evaluate", output, "--ground-truth", truth, "--to", file)
        self.refused(ended, "none of the 1 image", "x.png", "2 labeled images", "a.png, b.png")
        assert not file.exists()

    def test_a_broken_truth_that_is_read_strictly(self, cli: Cli, output: Path, tmp_path: Path) -> None:
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4)), ("cat", [])]})
        file = tmp_path / "figures.json"
        self.refused(
            cli("evaluate", output, "--ground-truth", truth, "--strict", "--to", file),
            "annotation 2 of a.png: no mask",
        )
        assert not file.exists()

    def test_images_of_another_size(self, cli: Cli, output: Path, tmp_path: Path) -> None:
        mask_rle = {"size": [20, 30], "counts": [600]}
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", mask_rle)]}, height=20, width=30)
        self.refused(cli("evaluate", output, "--ground-truth", truth), "a.png", "30 x 20 pixels there, 10 x 10 labeled")

    def test_a_json_file_that_exists_is_kept(self, cli: Cli, output: Path, truth: str, tmp_path: Path) -> None:
        file = tmp_path / "figures.json"
        file.write_text("precious")
        self.refused(cli("evaluate", output, "--ground-truth", truth, "--to", file), str(file), "exists")
        assert file.read_text() == "precious"
        for target in (file, tmp_path / "new" / "figures.json"):
            assert cli("evaluate", output, "--ground-truth", truth, "--to", target, "--overwrite").code == 0
            assert json.loads(target.read_text())["ground_truth"] == truth

    def test_an_output_that_holds_no_run(self, cli: Cli, output: Path, truth: str, tmp_path: Path) -> None:
        self.refused(cli("evaluate", tmp_path / "nothing", "--ground-truth", truth), "holds no run")
        assert not (tmp_path / "nothing").exists()


def test_plots_are_drawn_into_a_new_folder(cli: Cli, output: Path, truth: str, tmp_path: Path) -> None:
    ended = cli("evaluate", output, "--ground-truth", truth, "--plots", tmp_path / "plots")
    assert (ended.code, ended.err) == (0, "")
    assert f"2 plots in {tmp_path / 'plots'}" in ended.out
    names = ["ovseg-categories.png", "ovseg-precision-recall.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == names
    for name in names:
        with PILImage.open(tmp_path / "plots" / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    before = contents(tmp_path)
    again = cli("evaluate", output, "--ground-truth", truth, "--plots", tmp_path / "plots")
    assert again.code == 2
    assert "exists already" in again.err
    assert contents(tmp_path) == before


def test_plots_without_matplotlib_name_the_extra(
    cli: Cli, output: Path, truth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = cli("evaluate", output, "--ground-truth", truth, "--plots", tmp_path / "plots")
    assert ended.code == 2
    assert "pip install 'xsam-label[plots]'" in ended.err
    assert not (tmp_path / "plots").exists()
