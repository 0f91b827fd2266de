from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flows.commands.console import ledger_rows
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
    beside = ["2 .dcm, 1 .nef left out: not read here", "1 image left out: hidden"]
    planned = command("plan", *settings)
    assert (planned.code, [line for line in beside if line not in planned.out]) == (0, [])
    assert re.search(r"^prompts +1 category *$", planned.out, re.MULTILINE)
    ran = command("run", *settings, "--no-prefect", "--runner", "in_process")
    assert (ran.code, [line for line in beside if line not in ran.out]) == (0, [])
    assert "2 images in 1 shard" in ran.out
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
    assert "1 prompt of earlier runs is not asked any more" in second.out
    assert "asked what is new" in second.out
    twice = command("plan", *settings, "--categories", f"{long}, {long}")
    assert "named twice" in twice.errors
    assert max(len(line) for ended in (first, second, twice) for line in (ended.out + ended.errors).splitlines()) < 900


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "1.png\n2.png\n"),
        ("names.csv", "path\n1.png\n2.png\n"),
        ("names.json", '{"images": [{"file_name": "1.png"}, {"file_name": "2.png"}]}'),
    ],
)
def test_local_paths_that_are_not_there_are_told_before_labeling(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "fake").mkdir()
    settings = ["--source", tmp_path / name, "--output", tmp_path / "out", "--categories", "bright"]
    planned = command("plan", *settings)
    assert planned.code == 0
    told = f"warning: 2 of the 2 local paths of the source are not on this machine, e.g. {tmp_path}/1.png: check"
    assert told in planned.out
    assert "source.image_root" in planned.out
    assert "2, size unknown" in planned.out
    (tmp_path / "1.png").write_bytes(png(half_bright()))
    assert f"1 of the 2 local paths of the source is not on this machine, e.g. {tmp_path}/2.png" in (
        command("plan", *settings).out
    )
    (tmp_path / "2.png").write_bytes(png(half_bright()))
    assert "warning" not in command("plan", *settings).out


def test_a_run_into_a_pipe_says_what_is_starting_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("1.png\n2.png\n")
    (tmp_path / "1.png").write_bytes(png(half_bright()))
    settings = ["--source", tmp_path / "names.txt", "--output", tmp_path / "out", "--categories", "bright"]
    ran = command("run", *settings, "--no-prefect", "--runner", "in_process")
    said = ["starting the model", "images in 1 shard", "2.png: check the source", "listed"]
    places = [ran.out.find(text) for text in said]
    assert -1 not in places, ran
    assert places == sorted(places)


def test_a_changed_config_is_refused_with_the_ways_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(half_bright()))
    settings = ["--source", tmp_path / "a.png", "--output", tmp_path / "out"]
    ran = command("run", *settings, "--categories", "cup", "--no-prefect", "--runner", "in_process")
    assert ran.code == 0
    refused = command("plan", *settings, "--categories", "moon")
    assert refused.is_refusal
    assert "another configuration" in refused.errors
    for way in ("another run id", "--incremental", "another output"):
        assert way in refused.errors


def test_the_reasons_of_quarantine_stand_below_quarantined() -> None:
    rows = ledger_rows({"listed": 9, "ok": 6, "quarantined": 2, "forgotten": 1}, {"not_an_image": 1, "zero_bytes": 1})
    assert [name.strip() for name, _ in rows] == [
        "listed",
        "ok",
        "quarantined",
        "zero_bytes",
        "not_an_image",
        "forgotten",
    ]
