"""Listed = ok + empty + quarantined, per shard and in all: a run in which that is not so fails and names the shard."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.integrity import verify
from pipelines.table import commit_name
from tests.drivers import run_file
from tests.reliability.small_run import RUN, SmallRun, run, write_source


def test_a_run_whose_ledger_does_not_add_up_fails_and_names_the_shard(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    assert run(small).ledger == {"listed": 6, "ok": 5, "empty": 0, "quarantined": 1}
    store, name = small.store(), commit_name(RUN, "shard-00001")
    commit = store.read_json(name)
    commit["status_counts"]["ok"] -= 1
    store.write(name, json.dumps(commit).encode())

    summary = run(small)
    assert not summary.ok
    named, rows, total = summary.problems
    assert named == "shard-00001: 3 images planned, but 2 ok + 0 empty + 0 quarantined = 2"
    assert rows == "shard-00001: 3 rows committed, but 2 ok + 0 empty + 0 quarantined = 2"
    assert total == "6 images listed, but 4 ok + 0 empty + 1 quarantined = 5"
    # A finished run that was whole is told of again, now that it is not.
    assert run_file(small.output, "summary.json")["problems"] == summary.problems
    (recounted,) = set(verify(store, RUN).problems) - set(summary.problems)
    assert "counts {'ok': 3}, committed {'ok': 2}" in recounted
