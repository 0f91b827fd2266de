"""Servers on the loopback address that do what a broken network does: they say nothing, or never come to an end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket], None]
"""Answers one connection, which is closed when it returns."""


def say_nothing(connection: socket.socket) -> None:
    """Take whatever comes, and answer nothing, until the other side hangs up."""
    while connection.recv(65536):
        pass


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """Answer every connection in a thread of its own; yields the port."""
    taken: list[socket.socket] = []

    def take(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                taken.append(connection)
                threading.Thread(target=take, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            for connection in taken:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
