"""How much of this machine's memory, or of the container's, is used, and how much a process holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Where a control group's limit, use and statistics are, and what the memory is called that the kernel drops on demand.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file", "slab_reclaimable")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of memory that are used, and that there are."""

    used: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """The used share; 0 if nobody says how much there is."""
        return self.used / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of this machine.

    Attributes:
        limit: the used share from which on a worker is to be killed, before the kernel kills whatever it likes.
        proc, cgroup: where the kernel tells.
    """

    limit: float
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")

    def usage(self) -> Usage:
        """Return the usage of the machine's memory, or of the container's limit if a larger share of that is used."""
        return max((self._of_machine(), *(self._of_group(*names) for names in _GROUPS)), key=lambda usage: usage.share)

    def room(self, usage: Usage) -> int:
        """Return how many bytes may be used before the limit is reached; negative beyond it."""
        return int(self.limit * usage.total) - usage.used

    def held_by(self, pid: int) -> int:
        """Return the bytes that a process holds alone, not shared with others; 0 if it has ended."""
        try:
            _size, resident, shared, *_ = (self.proc / str(pid) / "statm").read_text().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE

    def _of_machine(self) -> Usage:
        with contextlib.suppress(OSError, ValueError, LookupError):
            bytes_of = {name: 1024 * int(size) for name, size, *_ in _words(self.proc / "meminfo")}
            total = bytes_of["MemTotal:"]
            return Usage(total - bytes_of["MemAvailable:"], total)
        return Usage()

    def _of_group(self, limit: str, used: str, stat: str, droppable: Sequence[str]) -> Usage:
        # As Ray counts it. A group without a limit says "max", or a number far beyond any machine's memory.
        with contextlib.suppress(OSError, ValueError, LookupError):
            bytes_of = {name: int(size) for name, size, *_ in _words(self.cgroup / stat)}
            dropped = sum(bytes_of.get(name, 0) for name in droppable)
            total = int((self.cgroup / limit).read_text())
            return Usage(int((self.cgroup / used).read_text()) - dropped, total)
        return Usage()


def _words(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]
