"""The Prefect server of a run that names none: in a process of its own, which ends with the run's, however that ends.

Prefect would start one by itself, on the same database, but that one stays for ever when this process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_HOST = "127.0.0.1"
# What its services are given to come to their end.
_END_S = 5.0
_TICK_S = 0.1


class EmbeddedServerError(RuntimeError):
    """The server did not start."""


@dataclass
class EmbeddedServer:
    """A running server.

    Attributes:
        api_url: its address, as PREFECT_API_URL has it.
        process: its process; the end of its standard input is the end of the server.
    """

    api_url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it, and wait until it has ended. Safe to call twice."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_running: list[EmbeddedServer] = []


def embedded_server(settings: Mapping[str, str], timeout_s: float) -> EmbeddedServer:
    """Return this process's server, started on a free port of the loopback address; it is stopped when this one ends.

    Args:
        settings: Prefect's, as environment variables.
        timeout_s: seconds until it must answer; the first start of all makes its database.

    Raises:
        EmbeddedServerError: it ended, or does not answer in time.
        OSError: its process cannot be started.
    """
    if _running and _running[0].process.poll() is None:
        return _running[0]
    with socket.create_server((_HOST, 0)) as listening:
        process = subprocess.Popen(
            # Without the folder of this file as a place of modules.
            [sys.executable, "-P", __file__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            env={**os.environ, **settings, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
        )
        server = EmbeddedServer(f"http://{_HOST}:{listening.getsockname()[1]}/api", process)
    atexit.register(server.stop)
    try:
        _wait_until_healthy(server, timeout_s)
    except BaseException:
        server.stop()
        raise
    _running[:] = [server]
    return server


def _wait_until_healthy(server: EmbeddedServer, timeout_s: float) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while server.process.poll() is None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise EmbeddedServerError(f"it did not answer in {timeout_s:g} s")
        # It takes connections from the beginning, and answers them once it is ready.
        with contextlib.suppress(OSError), direct.open(f"{server.api_url}/health", timeout=min(left_s, 1.0)):
            return
        time.sleep(_TICK_S)
    raise EmbeddedServerError(f"it ended with exit code {server.process.returncode}")


def _serve(descriptor: int) -> None:
    """Be the server, on a socket that listens already, until standard input ends."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app: Any = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])
    if not server.started:
        sys.exit(1)


def _end_with_parent() -> None:
    """Wait for the end of a pipe that only the parent holds, which comes even if it is killed."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
