"""How many cores a container has: what its control group says, whichever version of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.pool.config import PoolConfig
from actors.pool.open import open_runner
from actors.pool.processes import workers
from actors.pool.processes.cores import num_cores
from actors.pool.runner import ReplicaStartError


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5, id="v2"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="v2-no-quota"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="less-than-one"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 8, id="more-than-there-are"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3, id="around-it"),
        pytest.param("0::/a\n", {"a/cpu.max": "no number\n"}, 8, id="damaged"),
        pytest.param(
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            4,
            id="v1-container",
        ),
        pytest.param(
            "3:cpu,cpuacct:/job\n",
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/job/cpu.cfs_quota_us": "150000\n",
                "cpu/job/cpu.cfs_period_us": "100000\n",
            },
            1.5,
            id="v1-job",
        ),
        pytest.param(None, {}, 8, id="nobody-says"),
    ],
)
def test_a_quota_of_processor_time_counts_like_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None, files: dict[str, str], cores: float
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    (tmp_path / "self").mkdir()
    if group is not None:
        (tmp_path / "self" / "cgroup").write_text(group)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    assert num_cores(proc=tmp_path, cgroup=tmp_path / "cgroup") == cores


def test_more_replicas_than_the_quota_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 2.5)
    config = PoolConfig(runner="processes", replicas=3)
    with pytest.raises(ReplicaStartError, match=r"quota of it, has room for 2: 2\.5 CPUs"), open_runner(int, config):
        pass
