"""`xsam-label compact`, and what the other commands say of what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb

from tests.support.commands import command
from tests.support.labeled import box, mask, named, write_output

BRIGHT = named("ovseg", "bright")


def test_an_output_is_compacted_and_every_command_knows_of_it(tmp_path: Path) -> None:
    output = tmp_path / "it's an output"
    for run_id in ("first", "second"):
        write_output(
            output, {name: [mask(BRIGHT[0], box(1, 1, 2, 2))] for name in "abcd"}, common=BRIGHT, run_id=run_id
        )
    written = command("compact", output)
    assert written.code == 0
    assert "written" in written.out
    assert "4 of 2 runs, in 8 files" in written.out
    told = json.loads(command("status", output, "--json").out)["compaction"]
    assert f"{output}/{told['folder']}/annotations/*.parquet" in written.out
    assert (told["shards"], told["files"]) == (4, 2)
    assert f"compacted: 4 shards in 2 files, {told['made_at']}: {told['folder']}" in command("status", output).out
    pattern = f"{output}/{told['folder']}/annotations/*.parquet".replace("'", "''")
    rows = duckdb.sql(f"SELECT run_id, count(*) FROM '{pattern}' GROUP BY 1 ORDER BY 1").fetchall()
    assert rows == [("first", 4), ("second", 4)]
    again = command("compact", output)
    assert (again.code, "there already: nothing was committed since" in again.out) == (0, True)
    assert command("verify", output).code == 0
    kept = command("vacuum", output)
    assert (kept.code, kept.out) == (0, "0 leftovers removed\n")
    (output / told["folder"] / "images" / "part-00000.parquet").unlink()
    wrong = command("verify", output, "--quick")
    assert wrong.code == 1
    assert (
        f"{told['folder']}/images/part-00000.parquet is missing; `compact` writes it anew" in wrong.out + wrong.errors
    )
    assert command("compact", output).code == 0
    assert command("verify", output).code == 0


def test_what_cannot_be_compacted_is_refused(tmp_path: Path) -> None:
    ended = command("compact", tmp_path / "none")
    assert ended.is_refusal
    assert "holds no run: check the spelling" in ended.errors
    write_output(tmp_path / "planned", dict.fromkeys("ab", ()), common=BRIGHT, committed=0)
    ended = command("compact", tmp_path / "planned")
    assert ended.is_refusal
    assert "no shard is committed; there is nothing to compact" in ended.errors
