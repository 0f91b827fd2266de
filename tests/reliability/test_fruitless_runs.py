"""A run of which not one image could be labeled has failed, however small, and keeps no later run from its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Ended, command
from tests.support.fakes import half_bright, png


class Nightly:
    """A folder of images and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "photos").mkdir()
        (folder / "fake").mkdir()
        (folder / "run.toml").write_text('pool.runner = "in_process"\ncategories = ["bright"]\n')

    def put(self, **images: bytes) -> None:
        for name, data in images.items():
            (self.folder / "photos" / f"{name}.png").write_bytes(data)

    def run(self, *more: object) -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.folder / "output")
        return command("run", "--config", self.folder / "run.toml", *places, "--no-prefect", *more)

    def retry(self) -> Ended:
        return command("retry", self.folder / "output", "--no-prefect")


BROKEN, WHOLE = b"no image", png(half_bright())


@pytest.fixture
def nightly(tmp_path: Path) -> Nightly:
    return Nightly(tmp_path)


def test_a_run_none_of_whose_images_can_be_read_does_not_end_with_0(nightly: Nightly) -> None:
    nightly.put(a=BROKEN, b=b"")
    for _ in range(2):  # nor does the same command again, as a scheduler sends it
        ended = nightly.run()
        assert ended.code == 1
        assert "not one of its 2 images could be labeled (1 not_an_image, 1 zero_bytes)" in ended.out
        assert f"xsam-label retry {nightly.folder}/output" in ended.out


def test_once_a_retry_has_labeled_one_the_run_counts_as_done(nightly: Nightly) -> None:
    nightly.put(a=BROKEN, b=BROKEN)
    assert nightly.run().code == 1
    again = nightly.retry()
    assert again.code == 0  # they were known to be bad: nothing new
    assert "none is better: 2 images quarantined again" in again.out
    assert nightly.run().code == 1
    nightly.put(a=WHOLE)
    assert [nightly.retry().code, nightly.run().code] == [0, 0]


def test_an_update_of_one_bad_image_fails_once_and_the_next_night_goes_on(nightly: Nightly) -> None:
    nightly.put(a=WHOLE)
    assert nightly.run("--incremental").code == 0
    nightly.put(b=BROKEN)
    assert nightly.run("--incremental").code == 1
    assert nightly.run("--incremental").code == 0  # nothing is left to ask
    nightly.put(c=WHOLE)
    ended = nightly.run("--incremental")
    assert (ended.code, "1 new image" in ended.out) == (0, True)


def test_one_image_that_can_be_read_is_enough(nightly: Nightly) -> None:
    nightly.put(a=BROKEN, b=WHOLE)
    assert nightly.run().code == 0
