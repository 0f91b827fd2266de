"""A Prefect server for runs without one, in a thread of the process that shows them. It ends with that process.

Prefect would start a server by itself, on the same database, but that one stays for ever if its starter is killed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

from pipelines.redaction import shown

_HOST = "127.0.0.1"
_LOOK_EVERY_S = 0.02
# Time for the server's services to write what they hold.
_END_S = 5.0

SETTINGS = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}
"""What a process that runs one has in its environment, unless the user says otherwise, before it imports Prefect.

No run has blocks. The next `prefect server start` on the same database registers their types, if it is not told that
this one has, which is what memoizing would do.
"""


class EmbeddedServerError(RuntimeError):
    """The embedded server did not start."""


class _FirstError(logging.Handler):
    """Keeps the last line of the first error, which is what its traceback is about."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text = self.text or shown(record.getMessage().strip().rpartition("\n")[2])


@contextlib.contextmanager
def embedded_server(timeout_s: float) -> Iterator[str]:
    """Run a server on a free loopback port within this block.

    Args:
        timeout_s: seconds within which it must be up; the very first start creates its database.

    Yields:
        Its address, in the form of PREFECT_API_URL.

    Raises:
        EmbeddedServerError: it could not start, or is not up in time.
        OSError: no port can be had.
    """
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.create_server((_HOST, 0))
    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="error", lifespan="on"))
    said = _FirstError()
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(said)
    logger.propagate = False

    def run() -> None:
        with contextlib.suppress(SystemExit):  # of one that cannot start
            server.run(sockets=[listening])

    thread = threading.Thread(target=run, name="prefect-server", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + timeout_s
        while not server.started:
            if not thread.is_alive():
                raise EmbeddedServerError(said.text or "its start failed")
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"it was not up in {timeout_s:g} s")
            time.sleep(_LOOK_EVERY_S)
        yield f"http://{_HOST}:{listening.getsockname()[1]}/api"
    finally:
        server.should_exit = True
        thread.join(_END_S)
