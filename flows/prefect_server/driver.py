"""The connection of the process that shows runs to the driver; what is said on it is told in show.py."""

from __future__ import annotations

import contextlib
import os
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

Message = tuple[Any, ...]
GONE: Message = ("end", "DriverEnded", "the process of the run has ended")
"""What is heard last if the driver has ended without a word."""

# How long this process may take to end once the driver has.
_END_S = 15.0


class Driver:
    """The connection to the driver; once that has ended, this process soon does.

    Args:
        connection: to the driver.

    Attributes:
        inbox: what the driver has said.
        run_has_ended: whether the end of the run that is shown has been heard.
        is_gone: whether the driver has ended.
        is_up: whether there is a server, and with it something to finish when the driver ends.
    """

    def __init__(self, connection: Connection) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.run_has_ended = threading.Event()
        self.is_gone = threading.Event()
        self.is_up = False
        self._connection = connection
        self._turn = threading.Lock()
        threading.Thread(target=self._read, name="driver", daemon=True).start()

    def say(self, *message: Any) -> None:
        """Send something."""
        with self._turn, contextlib.suppress(OSError):  # it has ended, which is heard as well
            self._connection.send(message)

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if message[0] in ("show", "end"):
                    (self.run_has_ended.set if message[0] == "end" else self.run_has_ended.clear)()
                self.inbox.put(message)
        except (EOFError, OSError):
            if not self.is_up:
                os._exit(1)  # nothing has been shown yet
            threading.Timer(_END_S, os._exit, [1]).start()
            self.is_gone.set()
            self.run_has_ended.set()
            self.inbox.put(GONE)
