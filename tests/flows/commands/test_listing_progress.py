"""Listing a large collection takes minutes: a person sees how far it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands import console
from flows.commands.console import ListingProgress
from flows.config import parse_config
from flows.run import planning
from flows.run.asked.own_prompts import OwnPrompts
from pipelines.sources.image_batches import BATCH_SIZE


def _progress(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, counts: list[tuple[float, int]]) -> str:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    out = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    spinner = out.status("listing")
    progress = ListingProgress(out, spinner)
    for at, count in counts:
        clock[0] = at
        progress(count)
    return str(spinner.status) if terminal else out.file.getvalue()


def test_a_terminal_shows_the_newest_count_and_the_rate_so_far(monkeypatch) -> None:
    shown = _progress(monkeypatch, terminal=True, counts=[(0.5, 8_192), (2.0, 1_234_000)])
    assert shown == "1,234,000 images listed, 617,000/s"


def test_elsewhere_a_line_is_printed_every_few_seconds(monkeypatch) -> None:
    counts = [(at / 2, int(at * 1000)) for at in range(1, 25)]
    assert _progress(monkeypatch, terminal=False, counts=counts).splitlines() == [
        "11,000 images listed, 2,000/s",
        "22,000 images listed, 2,000/s",
    ]


def test_planning_tells_how_many_images_it_has_listed(tmp_path: Path) -> None:
    folder, num_images = "f" * 100, 2 * BATCH_SIZE
    (tmp_path / "list.txt").write_text("".join(f"{folder}/{number}.jpg\n" for number in range(num_images)))
    config = parse_config(
        {"source": str(tmp_path / "list.txt"), "output": str(tmp_path / "out"), "categories": ["cat"]}
    )
    told: list[int] = []
    with planning.list_collection(config, OwnPrompts(), on_listed=told.append) as (plan, *_):
        assert plan.num_images == num_images
    assert told == sorted(told)
    assert (len(told) > 2, told[-1]) == (True, num_images)
