"""Run a Prefect server for a run without one, in a child process that ends with the driver, even if that is killed.

Prefect would start a server by itself, on the same database, but that one stays for ever if the driver is killed.
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
# Time for the server's services to shut down.
_END_S = 5.0
_TICK_S = 0.1


class EmbeddedServerError(RuntimeError):
    """The embedded server did not start."""


@dataclass
class EmbeddedServer:
    """A running server.

    Attributes:
        api_url: its address, in the form of PREFECT_API_URL.
        process: its process; closing its standard input ends the server.
    """

    api_url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Stop the server and wait until it has ended. May be called twice."""
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
    """Return this process's server, started on a free loopback port if necessary; it stops when this process ends.

    Args:
        settings: Prefect settings, as environment variables.
        timeout_s: seconds within which it must answer; the very first start creates its database.

    Raises:
        EmbeddedServerError: the server ended, or does not answer in time.
        OSError: its process cannot be started.
    """
    # The socket is opened here and inherited: a port that was only looked up could be taken before the server binds it.
    if _running and _running[0].process.poll() is None:
        return _running[0]
    with socket.create_server((_HOST, 0)) as listening:
        process = subprocess.Popen(
            # -P: do not put this file's folder on sys.path, where its modules could shadow others.
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
        # The socket accepts connections from the start, and the server answers once it is ready: hence the timeout.
        with contextlib.suppress(OSError), direct.open(f"{server.api_url}/health", timeout=min(left_s, 1.0)):
            return
        time.sleep(_TICK_S)
    raise EmbeddedServerError(f"it ended with exit code {server.process.returncode}")


def _serve(descriptor: int) -> None:
    """Run the server on a socket that is already listening, until standard input ends."""
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app: Any = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])
    if not server.started:
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when the parent does: only the parent holds the other end of standard input's pipe.

    The pipe is closed by the kernel even if the parent is killed with SIGKILL.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
