"""How many processor cores this process may keep busy: of this machine, or of the container's quota."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def num_cores(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the cores that this process may run on, or its control group's quota of processor time if that is less.

    A quota below one core counts as one, for work that takes longer is better than none.

    Args:
        proc, cgroup: where the kernel tells.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1.0, min([float(cores), *_quotas(proc, cgroup)]))


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Yield the quotas of this process's group and those around it, in cores."""
    lines = []
    with contextlib.suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    for line in (*lines, "0::/", "0:cpu:/"):
        _number, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container sees the path that the group has outside of it, and its own group at the top.
        for path in (Path(group), *Path(group).parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                folder = cgroup / ("cpu" if controllers else "") / path.relative_to("/")
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:  # none is -1, or "max"
                    yield int(quota) / int(period)
