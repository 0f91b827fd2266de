"""How far runs are, from outputs made by hand with commits at chosen times."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.commands import status
from flows.commands.console import show_summary
from flows.commands.status import show_status
from flows.config import parse_config
from flows.run.progress import read_progress, replica_seconds
from flows.run.summary import summarize
from pipelines.forgetting import Found, forget
from pipelines.layout import commit_name, summary_name
from pipelines.planning.plan import plan_documents, require_plan
from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.run_summary import summary_bytes
from pipelines.table.verify import verify
from pipelines.types import PixelNote
from tests.support.documents import change_document
from tests.support.labeled import RUN, box, mask, named, write_output

(CAT,) = named("ovseg", "cat")
HOUR = 3600.0


def _config(**pool: Any) -> dict[str, Any]:
    return parse_config({"source": "/p", "output": "/o", "categories": ["cat"], "pool": pool}).to_dict()


def _output(folder: Path, images: int, times: list[tuple[float, float]], run_id: str = RUN, **pool: Any) -> Store:
    """A run of two images a shard, of whose shards the first were labeled from when until when, in seconds."""
    found = {f"{n:03d}": [mask(CAT, box(0, 0, 2, 2))] for n in range(images)}
    store, _ = write_output(folder, found, common=[CAT], committed=len(times), run_id=run_id, config=_config(**pool))
    for number, (start, end) in enumerate(times):
        name = commit_name(run_id, f"shard-{number:05d}")
        change_document(store, name, {"committed_at": end, "elapsed_s": end - start})
    return store


def _progress(store: Store, **given: Any):
    return read_progress(store, plan_documents(store)[RUN], **given)


def _shown(folder: Path, run_id: str | None = None, **given: Any) -> str:
    console = Console(width=120, record=True, highlight=False)
    show_status(str(folder), run_id, console, **given)
    return console.export_text()


def test_rates_count_the_time_in_which_shards_were_labeled(tmp_path: Path) -> None:
    # Two hours of pause after the first two shards, which overlap; the last two are recent.
    times = [(0, 10), (5, 20), (2 * HOUR, 2 * HOUR + 5), (2 * HOUR + 5, 2 * HOUR + 10)]
    progress = _progress(_output(tmp_path, 12, times))
    assert progress.rate == pytest.approx(8 / 30)
    assert progress.recent_rate == pytest.approx(4 / 10)
    assert progress.left_s == pytest.approx(4 / 0.4)
    assert progress.last_commit_at == 2 * HOUR + 10


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    progress = _progress(_output(tmp_path, 3, [(0, 10), (10, 20)]))
    assert (progress.line.state, progress.line.done, progress.left_s) == ("finished", 3, None)


def test_a_run_that_has_not_begun_has_no_rate(tmp_path: Path) -> None:
    _output(tmp_path, 3, [])
    shown = _shown(tmp_path)
    assert "0 of 2 committed" in shown
    assert "rate" not in shown


def test_waves_are_those_of_the_plan(tmp_path: Path) -> None:
    # One replica with one shard in flight has waves of four shards.
    times = [(float(n), n + 1.0) for n in range(9)]
    progress = _progress(_output(tmp_path, 24, times, replicas=1, shards_in_flight_per_replica=1))
    assert (progress.waves, progress.waves_done) == (3, 2)


@pytest.mark.parametrize(
    ("spans", "in_flight", "seconds"),
    [
        ([(0, 10), (0, 10)], 2, 10),
        ([(0, 10), (0, 10)], 1, 20),
        ([(0, 10), (5, 15)], 2, 15),
        ([(0, 10), (0, 10), (0, 10)], 2, 20),
        ([(0, 10), (20, 30)], 2, 20),
        ([(0, 10), (10, 20)], 1, 20),
        ([], 2, 0),
    ],
)
def test_replicas_are_as_many_as_hold_the_shards_under_way(
    spans: list[tuple[float, float]], in_flight: int, seconds: float
) -> None:
    assert replica_seconds(spans, in_flight) == seconds


def test_cost_is_gpu_hours_times_the_price(tmp_path: Path) -> None:
    times = [(0, HOUR), (0, HOUR), (HOUR, 2 * HOUR)]
    pool: Mapping[str, Any] = {"num_gpus_per_replica": 2, "gpu_price_per_hour": 3.5}
    store = _output(tmp_path, 8, times, **pool)
    progress = _progress(store)
    assert progress.gpu_hours == pytest.approx(4)
    assert progress.cost == pytest.approx(14)
    assert _progress(store, gpu_price=1).cost == pytest.approx(4)
    assert "at least 4.00 for what is committed, which cost 14.00" in _shown(tmp_path)


def test_a_run_without_gpus_or_without_a_price_costs_nothing_known(tmp_path: Path) -> None:
    assert _progress(_output(tmp_path / "cpu", 4, [(0, 9)], gpu_price_per_hour=1)).cost is None
    gpu = _progress(_output(tmp_path / "gpu", 4, [(0, HOUR)], num_gpus_per_replica=1))
    assert (gpu.gpu_hours, gpu.cost) == (1, None)


def test_the_price_is_no_part_of_the_fingerprint() -> None:
    given = {"source": "/p", "output": "/o", "categories": ["cat"]}
    dear = parse_config({**given, "pool": {"gpu_price_per_hour": 99}})
    facts = {"model_sha256": "0", "prompts_sha256": None}
    assert dear.fingerprint(**facts) == parse_config(given).fingerprint(**facts)


def test_of_several_runs_all_have_a_line_and_the_last_unfinished_one_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status.time, "time", lambda: 100.0)
    _output(tmp_path, 2, [(0, 1)], "first")
    _output(tmp_path, 6, [(30, 40)], "second")
    _output(tmp_path, 2, [(50, 55)], "third")
    shown = _shown(tmp_path)
    lines = [line.split() for line in shown.splitlines() if line.startswith(("first", "second", "third"))]
    assert [(line[0], line[1], line[-4:]) for line in lines] == [
        ("first", "finished", ["2", "100.0", "%", "2"]),
        ("second", "unfinished,", ["6", "33.3", "%", "2"]),
        ("third", "finished", ["2", "100.0", "%", "2"]),
    ]
    assert "unfinished, running" in shown
    (total,) = (line.split() for line in shown.splitlines() if line.startswith("total"))
    assert total == ["total", "10", "60.0", "%", "6"]
    assert "run second in" in shown
    assert "1 min 0 s ago" in shown
    assert "20 s left at that rate" in shown
    assert "run third in" in _shown(tmp_path, "third")
    assert "other runs" not in shown


def test_an_unfinished_run_that_commits_nothing_any_more_is_told_from_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _output(tmp_path, 6, [(0, 100), (0, 200)])
    # The longest shard took 200 s.
    for now, is_stopped in ((200.0 + 900, False), (200.0 + 901, True)):
        monkeypatch.setattr(status.time, "time", lambda now=now: now)
        assert json.loads(_shown(tmp_path, as_json=True))["run"]["seems_stopped"] == is_stopped
        assert ("it seems to have stopped, and the command that began it resumes it" in _shown(tmp_path)) == is_stopped
    _output(tmp_path, 2, [(0, 1)], "done")
    assert "unfinished, stopped" in _shown(tmp_path)


def test_earlier_runs_that_are_unfinished_or_ended_with_problems_are_named(tmp_path: Path) -> None:
    store = _output(tmp_path, 2, [(0, 1)], "first")
    _output(tmp_path, 6, [(30, 40)], "second")
    _output(tmp_path, 6, [], "third")
    _output(tmp_path, 6, [(50, 55)], "fourth")
    plan = require_plan(store, "first")
    summary = summarize(store, plan, verify(store, "first"), failures=[], stopped="", committed_before=0, elapsed_s=0)
    store.write(summary_name("first"), summary_bytes({**summary.to_dict(), "problems": ["a", "b"]}))
    shown = _shown(tmp_path)
    assert "run fourth in" in shown
    assert (
        "other runs: first is finished with 2 problems, second is unfinished, third has not begun; "
        "--run-id shows one of them"
    ) in " ".join(shown.split())
    assert [run["num_problems"] for run in json.loads(_shown(tmp_path, as_json=True))["runs"]] == [2, 0, 0, 0]


def test_json_holds_the_same_facts(tmp_path: Path) -> None:
    _output(tmp_path, 6, [(30, 40)], "second")
    document = json.loads(_shown(tmp_path, as_json=True))
    assert document["output"] == str(tmp_path)
    assert [line["run_id"] for line in document["runs"]] == ["second"]
    run = document["run"]
    assert (run["images"], run["done"], run["state"], run["counts"]["ok"]) == (6, 2, "unfinished", 2)
    assert (run["shards"], run["committed"], run["rate"], run["left_s"]) == (3, 1, 0.2, 20.0)


def test_images_that_are_not_seen_as_they_are_stored_are_counted(tmp_path: Path) -> None:
    found = {name: [mask(CAT, box(0, 0, 2, 2))] for name in "abc"}
    notes = {"a": [PixelNote.STRETCHED], "b": [PixelNote.NO_END_MARKER, PixelNote.STRETCHED]}
    store, plan = write_output(tmp_path, found, common=[CAT], notes=notes)
    assert "2 images not seen as stored: pixel_notes of `images`" in _shown(tmp_path)
    report = verify(store, RUN)
    summary = summarize(store, plan, report, failures=[], stopped="", committed_before=0, elapsed_s=0)
    console = Console(width=120, record=True)
    show_summary(console, summary)
    assert "2 images not seen as stored" in console.export_text()
    forget(store, Found(image_ids=("a",), uris=("/p/a",)))
    assert "1 image not seen as stored" in _shown(tmp_path)
    assert verify(store, RUN).problems == []
    change_document(store, commit_name(RUN, "shard-00000", 1), {"predictor": {"images_with_pixel_notes": "7"}})
    assert "has 1 image with pixel_notes, committed 7" in str(verify(store, RUN).problems)
    plain, _ = write_output(tmp_path / "plain", found, common=[CAT])
    assert "pixel_notes" not in _shown(tmp_path / "plain")
    assert b"pixel_notes" not in plain.read(commit_name(RUN, "shard-00000"))


@pytest.mark.parametrize("bad", [True, False])
def test_a_summary_names_the_next_command_as_a_shell_takes_it(tmp_path: Path, bad: bool) -> None:
    found = {"a": [mask(CAT, box(0, 0, 2, 2))], "b": None if bad else []}
    store, plan = write_output(tmp_path / "my labels", found, common=[CAT])
    report = verify(store, RUN)
    summary = summarize(store, plan, report, failures=[], stopped="", committed_before=0, elapsed_s=0)
    console = Console(width=40, record=True, soft_wrap=True)
    show_summary(console, summary)
    commands = [line.partition(": ")[2] for line in console.export_text().splitlines() if ": xsam-label " in line]
    words = [shlex.split(command) for command in commands]
    assert words[-1] == ["xsam-label", "report", str(tmp_path / "my labels")]
    assert len(words) == 1 + bad
    if bad:
        name, command, output, sql = words[0]
        assert (name, command, output) == ("xsam-label", "query", str(tmp_path / "my labels"))
        with open_database(store) as database:
            assert [row[0] for row in database.execute(sql).fetchall()] == ["b"]
    summary = replace(summary, problems=["shard-00000 failed"])
    show_summary(console, summary)
    assert "report" not in console.export_text()


def test_a_plan_whose_config_cannot_be_read_any_more_is_shown_without_waves(tmp_path: Path) -> None:
    write_output(tmp_path, {"a": []}, common=[CAT], config={"source": "/p", "gone": 1})
    shown = _shown(tmp_path)
    assert "1 of 1 committed" in shown
    assert "waves" not in shown
