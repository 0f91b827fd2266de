"""An output opened for some images: what the views say of these, out of their files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.query.database import open_database
from pipelines.storage.store import Store
from tests.support.labeled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")
NAMES = [f"it's {number:02}%ä.jpg" for number in range(20)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three runs: of all images, of some of them again and asked more, and one of which half is committed."""
    output: Path = tmp_path_factory.mktemp("output")
    again = {name: [mask(CAT, box(0, 0, 3, 3), 0.7)] * (number % 2) for number, name in enumerate(NAMES[4:9])}
    for run_id, found, prompts, committed in (
        ("one", {name: [mask(CAT, box(0, 0, 2, 2))] * (number % 3) for number, name in enumerate(NAMES)}, [CAT], None),
        ("two", {**again, NAMES[9]: None}, [CAT, DOG], None),
        ("three", dict.fromkeys(NAMES[12:], ()), [DOG], 2),
    ):
        store, _ = write_output(output, found, common=prompts, run_id=run_id, committed=committed)
    return store


VIEWS = ("annotations", "images", "coverage", "all_annotations", "all_images")


@pytest.mark.parametrize("image_ids", [[], NAMES[:1], NAMES[5:7], [NAMES[9], NAMES[13], NAMES[19], "no such"], NAMES])
def test_each_view_says_of_them_what_it_says_among_all(store: Store, image_ids: list[str]) -> None:
    every, some = open_database(store), open_database(store, image_ids=image_ids)
    for view in VIEWS:
        expected = every.execute(
            f"SELECT * FROM {view} WHERE list_contains(?, image_id) ORDER BY ALL", [image_ids]
        ).fetchall()
        assert some.sql(f"FROM {view} ORDER BY ALL").fetchall() == expected, view
    assert (
        some.sql("SELECT run_id, place FROM runs").fetchall() == every.sql("SELECT run_id, place FROM runs").fetchall()
    )
    assert some.sql("FROM prompts").fetchall() == every.sql("FROM prompts").fetchall()


def test_other_files_are_not_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[str]()
    for name in ("read", "size", "find"):
        real = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda self, one, real=real: (looked.append(one), real(self, one))[1])
    some = open_database(store, image_ids=[NAMES[2]])
    assert some.sql("SELECT count(*) FROM images").fetchall() == [(1,)]
    assert {name for name in looked if "shard-" in name and "shard-00001" not in name} == set()
    assert [name for name in looked if name.startswith("images/")] == ["images/one/" + Path(looked[-1]).name]
    assert len(looked) <= 3 * 2 + 3 + 2, "three plans and their files, a commit of one run, its two files"
