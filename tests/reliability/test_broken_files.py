"""Broken files: a corpus of them through a whole run, and mutated images by the thousand through decoding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.reliability.mutated_images import originals
from tests.reliability.small_run import LONG, RUN, SmallRun, run

REPOSITORY = Path(__file__).resolve().parents[2]
MUTANTS = 100_000 if LONG else 2_000
_NAMES = (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif")


def jpeg_markers(data: bytes) -> list[int]:
    """Return where each marker of a JPEG begins."""
    return [place for place in range(len(data) - 1) if data[place] == 0xFF and data[place + 1] not in (0, 0xFF)]


def png_chunks(data: bytes) -> list[int]:
    """Return where each chunk of a PNG begins."""
    places, place = [], 8
    while place < len(data):
        places.append(place)
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return places


def corpus() -> dict[str, bytes]:
    """Return broken files by name: no start, no end, cut at every marker, another format's name or head, noise."""
    files: dict[str, bytes] = {"empty.jpg": b"", "text.png": b"a letter\n" * 40, "zeros.jpg": bytes(5000)}
    files["page.jpg"] = b"<html><body>404 not found</body></html>"
    pictures = originals()
    for number, data in enumerate(pictures):
        name = _NAMES[number % len(_NAMES)]  # seldom the right one
        files[f"half-{number:02}{name}"] = data[: len(data) // 2]
        files[f"headless-{number:02}{name}"] = data[5:]
        files[f"head-{number:02}{name}"] = data[:30]
    jpeg, png = pictures[0], pictures[5]
    for place in jpeg_markers(jpeg)[1:]:
        files[f"jpeg-cut-at-{place:05}.jpg"] = jpeg[:place]
    for place in png_chunks(png):
        files[f"png-cut-at-{place:05}.png"] = png[:place]
    files["png-with-a-jpeg-in-it.png"] = png[:40] + jpeg
    files["jpeg-twice-the-header.jpg"] = jpeg[:20] + jpeg
    return files


@pytest.mark.timeout(300)
def test_a_collection_of_broken_files_is_accounted_for_file_by_file(tmp_path: Path) -> None:
    source, files = tmp_path / "images", corpus()
    assert len(files) >= 60
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    for number, data in enumerate(originals()):
        (source / f"whole-{number:02}").with_suffix(_NAMES[number % len(_NAMES)]).write_bytes(data)
    limits = {"max_quarantined_share": 1.0}
    small = SmallRun(source=str(source), output=str(tmp_path / "out"), images_per_shard=20, limits=limits)
    summary = run(small)
    assert summary.ok
    assert verify(small.store(), RUN).problems == []
    rows = {row["image_id"]: row for row in open_table(small.store(), "images").to_table().to_pylist()}
    assert set(rows) == {path.name for path in source.iterdir()}
    whole = [row for name, row in rows.items() if name.startswith("whole-")]
    assert {row["status"] for row in whole} == {"ok"}
    # What only lacks its end mark has all its pixels, and is told of (but of GIF); nothing else here has.
    quarantined = [row for row in rows.values() if row["status"] == "quarantined"]
    endless = [row for row in rows.values() if row["pixel_notes"] == ["no_end_marker"]]
    assert len(quarantined) + len(endless) >= len(files) - 1
    assert len(endless) <= 2
    assert all(row["reason"] and row["error"] for row in quarantined)
    print(f"\n{len(files)} broken files beside {len(whole)} whole ones: {summary.reason_counts}")


@pytest.mark.timeout(900)
def test_mutated_images_end_in_a_picture_or_a_reason_and_never_in_a_crash(tmp_path: Path) -> None:
    last = tmp_path / "mutant"
    command = [sys.executable, "-m", "tests.reliability.mutated_images", str(MUTANTS), "20261126", str(last)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}; the mutant is {last.read_bytes().hex()}\n{done.stderr}"
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == MUTANTS
    assert outcomes["decoded"] > 0
    assert outcomes["corrupt"] > 0
    assert outcomes["truncated"] > 0
    print(f"\n{MUTANTS} mutants: {outcomes}")
