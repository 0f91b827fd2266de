"""The command line in processes that are forked from one which has imported what it needs: a second instead of several.

Such a process is what ``python -m flows.cli`` makes otherwise: leader of its own session, with the folder, environment
and streams that it is given, and ended by the interpreter as always. Prefect and Ray are not imported beforehand, for
both read their settings when they are.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]

# What a run imports, and the packages of others that Prefect does.
_IMPORTS = (
    "actors.predictor.predictor",
    "actors.pool.in_process",
    "flows.cli",
    "flows.commands.launch",
    "s3fs",
    "griffe",
    "jinja2",
    "jsonschema",
    "pendulum",
    "prometheus_client",
    "pydantic_settings",
    "websockets",
)
_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(REPOSITORY)}
# Begin the names of variables that these read when they are imported.
_READ_BY_IMPORTS = ("ARROW_", "HF_", "HOME", "MKL_", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_", "XDG_")


class ForkedProcess:
    """What tests use of ``subprocess.Popen``, for a process that another one has forked.

    Args:
        pid: its id, its own until its end is noticed here.
        keeper: tells the exit code, and does not let the id go before this is closed.
        out, err: what it prints.
    """

    def __init__(self, pid: int, keeper: socket.socket, out: IO[bytes], err: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._keeper, self._printed = keeper, (out, err)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        if self.returncode is None:
            self._keeper.settimeout(timeout)
            try:
                self.returncode = int(self._keeper.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._keeper.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return all that it has printed."""
        self.wait(timeout)
        for file in self._printed:
            file.seek(0)
        out, err = (file.read().decode() for file in self._printed)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it."""
        self.send_signal(signal.SIGKILL)


class DriverServer:
    """Forks drivers."""

    def __init__(self, control: socket.socket, env: Mapping[str, str]) -> None:
        self._control, self._env = control, env

    def start(self, *args: object, env: Mapping[str, str], cwd: Path) -> ForkedProcess:
        """Start the command line, as the leader of a new session.

        Raises:
            ValueError: something that was read by imports would differ.
        """
        env = {**env, "PYTHONPATH": str(REPOSITORY)}
        read = [name for name in {*env, *self._env} if name.startswith(_READ_BY_IMPORTS)]
        if changed := [name for name in read if env.get(name) != self._env.get(name)]:
            raise ValueError(f"a forked driver has {changed} from its server")
        order = {"argv": [*map(str, args)], "env": env, "cwd": str(cwd)}
        out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - gone with what reads them
        keeper, other = socket.socketpair()
        with other:
            socket.send_fds(self._control, [b"."], [other.fileno(), out.fileno(), err.fileno()])
        keeper.sendall(json.dumps(order).encode() + b"\n")
        keeper.settimeout(120)  # the server may still import
        return ForkedProcess(int(keeper.recv(64)), keeper, out, err)


@contextlib.contextmanager
def driver_server() -> Iterator[DriverServer]:
    """Start the process that drivers are forked from."""
    env = {**os.environ, **_SETTINGS}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked_driver", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=env,
            cwd=REPOSITORY,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            preexec_fn=heed_interrupts,  # noqa: PLW1509 - one call that takes no lock
        )
        theirs.close()
        yield DriverServer(ours, env)
    assert process.wait(20) == 0


def heed_interrupts() -> None:
    """Undo what a background job inherits: it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Order(NamedTuple):
    argv: list[str]
    env: dict[str, str]
    cwd: str


def _serve(control: socket.socket) -> _Order | None:
    """Fork a process for each order.

    Returns:
        The order, in the process that is to carry it out; None in the server, once nobody can ask any more.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not asked:
            return None
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(asked: int, out: int, err: int) -> _Order:
    """Fork the driver, wait for it and tell how it ended; return in the driver only."""
    with socket.socket(fileno=asked) as test:
        with test.makefile("rb") as file:
            order = _Order(**json.loads(file.readline()))
        if (pid := os.fork()) == 0:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.close(out)
            os.close(err)
            return order
        test.sendall(str(pid).encode())
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None, "it has ended"
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with contextlib.suppress(OSError):  # the test may be gone
            test.sendall(str(code).encode())
            test.recv(1)
    os._exit(0)


def _become(order: _Order) -> None:
    """Set what a process of its own would have from the start."""
    gc.enable()
    driver_id = secrets.token_hex(4)  # no two processes have one
    for module in list(sys.modules.values()):
        if hasattr(module, "DRIVER_ID"):
            module.DRIVER_ID = driver_id
    os.chdir(order.cwd)
    os.environ.clear()
    os.environ.update(order.env)
    sys.path[0] = order.cwd
    sys.argv = [sys.argv[0], *order.argv]
    tempfile.tempdir = None


if __name__ == "__main__":
    gc.disable()
    for name in _IMPORTS:
        importlib.import_module(name)
    assert {"prefect", "ray"}.isdisjoint(sys.modules), "they read their settings when they are imported"
    gc.freeze()
    if (order := _serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _become(order)
        from flows.cli import console_script

        console_script()
