"""How much of this machine's memory, or of the container's, is used, and how much a process holds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Where a control group's limit, use and statistics are, and what the page cache that can be dropped is called.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


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

    def used_share(self) -> float:
        """Return the used share of the machine's memory, or of the container's limit if more of that is used."""
        return max(self._of_machine(), *(self._of_group(*names) for names in _GROUPS))

    def held_by(self, pid: int) -> int:
        """Return the bytes that a process holds alone, not shared with others; 0 if it has ended."""
        try:
            _size, resident, shared, *_ = (self.proc / str(pid) / "statm").read_text().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE

    def _of_machine(self) -> float:
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (line.split() for line in (self.proc / "meminfo").read_text().splitlines())
            kilobytes = {words[0]: int(words[1]) for words in lines}
            return 1 - kilobytes["MemAvailable:"] / kilobytes["MemTotal:"]
        return 0.0

    def _of_group(self, limit: str, used: str, stat: str, cache: str) -> float:
        # A group without a limit says "max", or a number far beyond any machine's memory.
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (self.cgroup / stat).read_text().splitlines()
            droppable = int(dict(line.split() for line in lines)[cache])
            return (int((self.cgroup / used).read_text()) - droppable) / int((self.cgroup / limit).read_text())
        return 0.0
