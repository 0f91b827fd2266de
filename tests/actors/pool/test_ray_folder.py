"""A Ray that is started here works wherever temporary files are to lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.pool import cluster
from actors.pool.runner import ReplicaStartError
from tests.support.drivers import REPOSITORY

START = """
from actors.pool.cluster import connect, prepare_environment
from actors.pool.config import PoolConfig
config = PoolConfig()
prepare_environment(config)
assert connect(config)
import os, ray
folder = ray._private.worker._global_node.get_session_dir_path()
print(folder, oct(os.stat(os.path.dirname(os.path.dirname(folder))).st_mode & 0o777))
print(ray.get(ray.remote(lambda: 7).remote()))
ray.shutdown()
"""


@pytest.mark.slow
def test_a_folder_for_temporary_files_may_have_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", START], check=False, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    place, seven = done.stdout.splitlines()
    session, mode = place.split()
    assert (seven, mode) == ("7", "0o700")
    assert not Path(session).exists()


def test_where_no_short_folder_can_be_made_a_message_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long-" * 20)))
    monkeypatch.setattr(cluster, "_SHORT_PLACE", str(tmp_path / "missing"))
    with pytest.raises(ReplicaStartError, match="set RAY_TMPDIR to a folder with a short name"):
        cluster._short_folder()


def test_a_folder_with_a_short_name_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert cluster._short_folder() is None
