"""A collection as collections are: some files are broken. Each costs one row that says why, and never a run."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from flows.run import engine
from flows.run.observer import Silent
from flows.run.summary import RunSummary
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.flows.conftest import CATEGORIES, MakeConfig, photograph
from tests.support.drivers import run_file

pytestmark = pytest.mark.timeout(120)

BOMB_SIDE = 30_000
BAD = {
    "bomb.png": "too_many_pixels",
    "empty.jpg": "zero_bytes",
    "missing.jpg": "not_found",
    "text.jpg": "not_an_image",
    "truncated.jpg": "truncated",
}
PROMPTS = """image_id,prompt_id,kind,coordinates,label
good-0.jpg,fine,point,"5 5",thing
good-0.jpg,outside,point,"5000 5",thing
good-1.png,no-numbers,box,"a b c d",thing
nowhere.jpg,lost,point,"5 5",thing
good-1.png,also-fine,box,"2 2 20 10",thing
truncated.jpg,on-a-bad-image,point,"5 5",thing
"""


def png_bomb(side: int) -> bytes:
    """A valid PNG of side x side black gray pixels, about 1 MB: its rows are compressed as they are made."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate, row = zlib.compressobj(9), bytes(1 + side)
    data = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of four good and five bad images, and a table of visual prompts of which some are bad. The list's path."""
    folder = tmp_path_factory.mktemp("bad")
    for number in range(4):
        photograph(72, 48, number).save(folder / f"good-{number}.{'png' if number % 2 else 'jpg'}")
    photograph(320, 240, 9).save(folder / "whole.jpg", quality=95)
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("This is a letter, whatever its name says.\n")
    (folder / "bomb.png").write_bytes(png_bomb(BOMB_SIDE))
    (folder / "list.txt").write_text("\n".join([*BAD, *(path.name for path in folder.glob("good-*"))]))
    (folder / "prompts.csv").write_text(PROMPTS)
    return folder / "list.txt"


@pytest.fixture(scope="module")
def summary(model: Path, collection: Path) -> RunSummary:
    config = parse_config(
        {
            "source": str(collection),
            "output": str(collection.parent / "output"),
            "model": {"path": str(model), "max_masks_per_image": 10},
            "categories": list(CATEGORIES),
            "prompts": str(collection.parent / "prompts.csv"),
            "plan": {"images_per_shard": 5},
            "label": {"batch_size": 2},
            "pool": {"runner": "in_process"},
        }
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = memory("VmRSS")
    summary = engine.run_directly(config, Silent())
    # The bomb's pixels alone would be 2.7 GB as RGB, 0.9 GB as gray.
    assert memory("VmHWM") - before < 0.5e9
    return summary


def memory(name: str) -> int:
    """Bytes of memory that this process has (VmRSS), or had at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def rows(summary: RunSummary) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in open_table(open_store(summary.output), "images").to_table().to_pylist()}


def test_each_bad_image_is_a_row_with_its_own_reason_and_the_good_ones_are_labeled(summary: RunSummary) -> None:
    found = rows(summary)
    assert {name: row["reason"] for name, row in found.items() if row["status"] == "quarantined"} == BAD
    assert all(found[name]["error"] and found[name]["stage"] in ("fetch", "decode") for name in BAD)
    assert sum(row["status"] in ("ok", "empty") for row in found.values()) == 4
    assert sum(row["num_annotations"] for row in found.values()) == summary.num_annotations > 0


def test_the_run_is_complete_and_its_ledger_counts_every_reason(summary: RunSummary) -> None:
    assert summary.ok
    assert summary.ledger["listed"] == 9
    assert summary.ledger["ok"] + summary.ledger["empty"] == 4
    assert summary.ledger["quarantined"] == 5
    assert summary.reason_counts == dict.fromkeys(BAD.values(), 1)
    assert verify(open_store(summary.output), summary.run_id).ok


def test_bad_visual_prompts_are_reported_by_row_and_the_others_are_asked(summary: RunSummary) -> None:
    held = run_file(summary.output, "summary.json")
    reported = {row["prompt_id"]: (row["row"], row["image"]) for row in held["rejected_prompts"]}
    assert reported == {
        "outside": (3, "good-0.jpg"),
        "no-numbers": (4, "good-1.png"),
        "lost": (5, "nowhere.jpg"),
    }
    assert [row["row"] for row in held["rejected_prompts"]] == [3, 4, 5]
    assert held["num_rejected_prompts"] == 3
    assert all(row["reason"] for row in held["rejected_prompts"])
    asked = {
        name: {p["prompt_id"] for p in row["per_prompt"] if p["n"] is not None} for name, row in rows(summary).items()
    }
    assert "fine" in asked["good-0.jpg"]
    assert "outside" not in asked["good-0.jpg"]
    assert "also-fine" in asked["good-1.png"]


def test_a_collection_of_bad_images_alone_is_complete_too(make_config: MakeConfig, collection: Path) -> None:
    (collection.parent / "only-bad.txt").write_text("\n".join(BAD))
    summary = engine.run_directly(make_config(source=str(collection.parent / "only-bad.txt")), Silent())
    assert (summary.ok, summary.has_succeeded) == (True, False)
    assert summary.ledger == {"listed": 5, "ok": 0, "empty": 0, "not_asked": 0, "quarantined": 5}
    assert open_table(open_store(summary.output), "annotations").to_table().num_rows == 0
