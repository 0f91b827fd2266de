"""The command line in processes that are forked from one which has imported it: half a second instead of many.

``tests.support.drivers.driver`` starts what a user starts. This is for tests that need many of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from flows.cli import main
from tests.support.drivers import Ended, wait_until
from tests.support.fork_server import fork_server

# What a run imports, the ones that take long first. Not imported here: Ray reads settings when it is.
_IMPORTS = (
    "ray",
    "s3fs",
    "actors.predictor.predictor",
    "actors.pool.ray_workers",
    "actors.pool.processes.workers",
    "actors.pool.in_process",
    "flows.commands.launch",
    __name__,
)


@contextlib.contextmanager
def command_server() -> Iterator[ForkServerContext]:
    """Start the process that commands are forked from; its settings are those of one thread and no progress bars."""
    with pytest.MonkeyPatch.context() as patch:
        # Both are read by imports. As many threads as a replica of one CPU has: more would add in another order.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with fork_server(*_IMPORTS) as processes:
            yield processes


@dataclass
class Forked:
    """A running command."""

    process: ForkServerProcess
    folder: Path

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 120) -> None:
        """Wait for a condition that it will bring about; fail if it ends before."""
        wait_until(lambda: condition() or not self.process.is_alive(), timeout_s, self.printed)
        assert condition(), f"it ended with {self.process.exitcode} before that: {self.printed()}"

    def end(self, timeout_s: float = 120) -> Ended:
        """Wait for its end."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"it has not ended after {timeout_s:g} s: {self.printed()}"
        return Ended(self.process.exitcode, *self.printed())

    def printed(self) -> tuple[str, str]:
        """Return what it has printed so far, to standard output and standard error."""
        return (self.folder / "out").read_text(), (self.folder / "err").read_text()


@contextlib.contextmanager
def forked(processes: ForkServerContext, folder: Path, *args: object, env: Mapping[str, str]) -> Iterator[Forked]:
    """Run the command line in a process of its own, which has ended when the block ends.

    Args:
        processes: of ``command_server``.
        folder: new, for what it prints.
        args: of the command line.
        env: its whole environment.
    """
    folder.mkdir()
    for name in ("out", "err"):
        (folder / name).touch()
    process = processes.Process(target=_main, args=([*map(str, args)], dict(env), folder))
    process.start()
    try:
        yield Forked(process, folder)
    finally:
        process.kill()
        process.join(20)


def _main(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    driver_id = secrets.token_hex(4)  # no two processes have one
    for module in list(sys.modules.values()):
        if hasattr(module, "DRIVER_ID"):
            module.DRIVER_ID = driver_id
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["xsam-label", *arguments]
    main()
