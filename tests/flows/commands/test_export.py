"""`xsam-label export`: what it says, what it writes, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import Ended
from tests.support.labeled import box, mask, named, write_output

Cli = Callable[..., Ended]

CAT, DOG = named("ovseg", "cat", "dog")
(SKY,) = named("ovseg_semantic", "sky")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    found = {
        "a.png": [mask(CAT, box(0, 0, 4, 4), 0.9), mask(SKY, box(0, 0, 10, 2), 0.9)],
        "b.png": [mask(CAT, box(0, 0, 4, 4), 0.8), mask(DOG, box(4, 4, 4, 3), 0.3)],
        "c.png": None,
    }
    write_output(tmp_path / "output", found, common=[CAT, DOG, SKY])
    return tmp_path / "output"


def test_what_is_exported_and_what_is_left_out_is_said(cli: Cli, output: Path, tmp_path: Path) -> None:
    ended = cli("export", output, "--to", tmp_path / "coco.json", "--where", "score >= 0.5")
    assert (ended.code, ended.err) == (0, "")
    said = " ".join(ended.out.split())
    for text in ("2 images, 2 masks", "1 quarantined image", "1 mask of ovseg_semantic: name it with --task"):
        assert text in said
    document = json.loads((tmp_path / "coco.json").read_text())
    assert [category["name"] for category in document["categories"]] == ["cat"]


def test_every_option_reaches_the_export(cli: Cli, output: Path, tmp_path: Path) -> None:
    ended = cli(
        *("export", output, "--to", tmp_path / "tasks", "--format", "label-studio", "--categories", "dog, cat"),
        *("--split", "train=0.5,val=0.5", "--images-where", "image_id <> 'a.png'", "--no-empty"),
        *("--task", "ovseg", "--image-url", "https://host/"),
    )
    assert (ended.code, ended.err) == (0, "")
    tasks = [t for s in ("train", "val") for t in json.loads((tmp_path / "tasks" / f"tasks_{s}.json").read_text())]
    assert [task["data"]["image"] for task in tasks] == ["https://host/b.png"]
    assert (tmp_path / "tasks" / "label_config.xml").read_text().index("dog") > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "score >"], "--where is no SQL condition"),
        (["--where", "score > 2"], "none of them fits --where"),
        (["--format", "voc"], "'voc' is none of coco"),
        (["--split", "train=2"], "not NAME=SHARE"),
        (["--to", "hf://datasets/a/b"], "nothing can be written to hf://"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    cli: Cli, output: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    ended = cli("export", output, "--to", tmp_path / "coco.json", *options)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_an_existing_target_is_refused_and_untouched(cli: Cli, output: Path, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text("mine")
    ended = cli("export", output, "--to", tmp_path / "coco.json")
    assert ended.code == 2
    assert "exists already" in ended.err
    assert (tmp_path / "coco.json").read_text() == "mine"
    assert cli("export", output, "--to", tmp_path / "coco.json", "--overwrite").code == 0
    assert json.loads((tmp_path / "coco.json").read_text())["images"]


def test_names_with_commas_are_quoted_or_given_one_by_one(cli: Cli, tmp_path: Path) -> None:
    prompts = named("ovseg", "bowl, glass", "cat")
    write_output(tmp_path / "output", {"a.png": [mask(p, box(0, 0, 4, 4)) for p in prompts]}, common=prompts)
    for number, options in enumerate(
        (['cat, "bowl, glass", no'], ["cat", '"bowl, glass"', "no"], ['cat,\n"bowl, glass",no'])
    ):
        target = tmp_path / f"{number}.json"
        given = [word for option in options for word in ("--categories", option)]
        ended = cli("export", tmp_path / "output", "--to", target, *given)
        assert (ended.code, ended.err) == (0, "")
        names = [category["name"] for category in json.loads(target.read_text())["categories"]]
        assert names == ["cat", "bowl, glass", "no"]
        assert "1 of --categories have no mask: no (a name with a comma is put in quotes)" in " ".join(
            ended.out.split()
        )
    ended = cli("export", tmp_path / "output", "--to", tmp_path / "x.json", "--categories", '"bowl')
    assert ended.code == 2
    assert 'write them as: dog, "bowl, glass", cat' in ended.err
