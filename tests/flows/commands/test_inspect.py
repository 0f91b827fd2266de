from __future__ import annotations

import json
from pathlib import Path

from tests.support.commands import command
from tests.support.fakes import half_bright, png


def test_plan_and_run_tell_what_lies_beside_the_images(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    (source / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.png", "b.png", ".ipynb_checkpoints/a.png"):
        (source / name).write_bytes(png(half_bright()))
    for name in ("1.dcm", "2.dcm", "3.nef", "notes.txt"):
        (source / name).write_bytes(b"\0")
    settings = ["--source", source, "--output", tmp_path / "out", "--categories", "bright", "--model", "fake"]
    beside = ["2 .dcm, 1 .nef left out: not read here", "1 images left out: hidden"]
    planned = command("plan", *settings)
    assert (planned.code, [line for line in beside if line not in planned.out]) == (0, [])
    ran = command("run", *settings, "--no-prefect", "--runner", "in_process")
    assert (ran.code, [line for line in beside if line not in ran.out]) == (0, [])
    assert "2 images in 1 shards" in ran.out
    (plan,) = (tmp_path / "out/_runs").glob("*/plan.json")
    left_out = json.loads(plan.read_text())["facts"]["left_out"]
    assert left_out == {"formats": {".dcm": 2, ".nef": 1}, "hidden": 1, "others": 1}


def test_categories_may_be_given_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(half_bright()))
    settings = ["--source", tmp_path / "photos", "--output", tmp_path / "out"]
    given = ["--categories", 'cup, "bowl, glass"', "--categories", "moon"]
    assert "3 categories" in command("plan", *settings, *given).out
    assert command("run", *settings, *given, "--no-prefect", "--runner", "in_process").code == 0
    (plan,) = (tmp_path / "out/_runs").glob("*/plan.json")
    assert json.loads(plan.read_text())["facts"]["config"]["categories"] == ["cup", "bowl, glass", "moon"]


def test_names_of_any_length_are_shown_by_their_ends(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(png(half_bright()))
    long = "x" * 5000
    (tmp_path / "prompts.csv").write_text(
        f"image_id,prompt_id,text\n{long},1,man\na.png,{long},man\na.png,{long},man\nb.png,1,man\n"
    )
    settings = ["--source", tmp_path / "photos", "--output", tmp_path / "out", "--prompts", tmp_path / "prompts.csv"]
    first = command("run", *settings, "--categories", f"cup, {long}", "--no-prefect", "--runner", "in_process")
    assert "2 prompts could not be asked" in first.out
    second = command("plan", *settings, "--incremental", "--categories", f"cup, {long}y")
    assert "1 prompts of earlier runs are not asked any more" in second.out
    assert "asked what is new" in second.out
    twice = command("plan", *settings, "--categories", f"{long}, {long}")
    assert "named twice" in twice.errors
    assert max(len(line) for ended in (first, second, twice) for line in (ended.out + ended.errors).splitlines()) < 900
