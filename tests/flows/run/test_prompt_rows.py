"""A prompt table that does not fit its collection is told of before anything is labeled, and by lines of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor, write_images

HEAD = "image_id,prompt_id,kind,coordinates\n"


class Desk:
    """A folder with four images, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_images(folder / "photos", 4)
        (folder / "fake").mkdir()

    def __call__(self, name: str, rows: str, *more: object, predictor: BrightPredictor | None = None) -> Ended:
        (self.folder / "prompts.csv").write_text(HEAD + rows)
        values = {
            "source": self.folder / "photos",
            "output": self.folder / "output",
            "prompts": self.folder / "prompts.csv",
        }
        given = [item for key, value in values.items() for item in (f"--{key}", value)]
        given += ["--config", self.folder / "run.toml"]
        (self.folder / "run.toml").write_text('pool.runner = "in_process"\n')
        given += ["--no-prefect"] if name == "run" else []
        return command(name, *given, *more, predictor=predictor)

    @property
    def is_untouched(self) -> bool:
        return not (self.folder / "output").exists()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def point(image: str, name: str = "p") -> str:
    return f"{image},{name},point,1 2\n"


@pytest.mark.parametrize("name", ["plan", "run"])
def test_a_table_most_of_which_fits_no_image_stops_before_anything_is_written(desk: Desk, name: str) -> None:
    predictor = BrightPredictor()
    ended = desk(name, "".join(point(f"photos/000{n}.png") for n in range(3)) + point("0000.png"), predictor=predictor)
    assert ended.is_refusal
    for words in (
        "3 of its 4 rows name images that are not listed",
        "the table has 'photos/0000.png', 'photos/0001.png', 'photos/0002.png'",
        "an image_id here looks like '000",
        "limits.max_rejected_prompts_share is 0.5",
    ):
        assert words in ended.errors
    assert predictor.calls == []
    assert desk.is_untouched


def test_a_table_none_of_whose_rows_is_a_prompt_stops_too(desk: Desk) -> None:
    ended = desk("run", "0000.png,p,circle,1 2\n0001.png,p,circle,1 2\n")
    assert ended.is_refusal
    assert "2 of its 2 rows cannot be asked, e.g. line 2: unknown kind 'circle'" in ended.errors
    assert desk.is_untouched


@pytest.mark.parametrize("name", ["plan", "run"])
def test_rows_that_fit_no_image_are_told_before_labeling_with_ids_of_both_sides(desk: Desk, name: str) -> None:
    ended = desk(name, point("0000.png") + point("0001.png") + point("IMG_9.png") + "0001.png,q,point,x\n")
    assert ended.code == 0, ended
    warning = next(line for line in ended.out.splitlines() if "warning" in line)
    assert "1 of its 4 rows name images that are not listed: the table has 'IMG_9.png'" in warning
    assert "line 4: IMG_9.png p: its image is not in the collection" in ended.out
    assert "line 5: 0001.png q: coordinates hold something that is not a number" in ended.out
    assert "2 of 4 images are asked nothing: no row of" in ended.out
    if name == "run":
        assert ended.out.index("warning") < ended.out.index("4/4 images")
        assert "not_asked" in ended.out


def test_the_share_is_a_setting(desk: Desk) -> None:
    config = desk.folder / "any.toml"
    config.write_text('pool.runner = "in_process"\nlimits.max_rejected_prompts_share = 1\n')
    ended = desk("run", point("nowhere.png") + point("elsewhere.png") + point("0000.png"), "--config", config)
    assert ended.code == 0, ended


def test_an_image_named_in_another_case_is_shown_as_it_is_listed(desk: Desk) -> None:
    for number in range(5, 9):
        (desk.folder / "photos" / "0000.png").rename(desk.folder / "photos" / f"IMG_{number}.JPG")
        write_images(desk.folder / "photos", 1)
    ended = desk("plan", point("IMG_8.jpg"))
    assert "did you mean 'IMG_8.JPG' by 'IMG_8.jpg'?" in ended.errors
    assert "did you mean" not in desk("plan", point("other.jpg")).errors
    assert ended.is_refusal
