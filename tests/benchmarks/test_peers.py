"""What benchmarks.peers measures of a command, and that engines which find other masks are not compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.peers import compare
from benchmarks.peers.measured import measure

# A child that outlives it holds memory and takes processor time; it tells when the child has begun.
COMMAND = """
import subprocess, sys, time
child = "import time; held = b'x' * 80_000_000\\nwhile time.process_time() < 0.4: pass\\ntime.sleep(0.9)"
subprocess.Popen([sys.executable, "-c", child])
open(sys.argv[1], "w").write("begun")
time.sleep(1.2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_that_a_command_starts_are_counted_too(tmp_path: Path) -> None:
    first = tmp_path / "first"
    command = [sys.executable, "-c", COMMAND, str(first)]
    taken = measure(command, os.environ, str(first), tmp_path / "log", tmp_path)
    assert taken.cpu_seconds >= 0.4
    assert taken.peak_mb >= 40
    assert 0 < taken.first_s <= taken.seconds


def test_a_command_that_fails_is_an_error_that_says_what_it_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no luck')"]
    with pytest.raises(RuntimeError, match="no luck"):
        measure(command, os.environ, "nowhere", tmp_path / "log", tmp_path)


def test_engines_that_find_other_masks_are_not_compared() -> None:
    masks = [("a.jpg", "cat", "12"), ("b.jpg", "dog", b"34")]
    same = compare._digest(iter(masks)), compare._digest(iter([("b.jpg", "dog", "34"), masks[0]]))
    compare._check_alike({"one": same[0], "other": same[1]})
    with pytest.raises(RuntimeError, match="not all engines found the same masks"):
        compare._check_alike({"one": same[0], "other": compare._digest(iter(masks[:1]))})
