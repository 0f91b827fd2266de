"""The driver's side of show.py: starts the process that shows runs in Prefect, and tells it what happens."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from flows.config import ConfigError
from flows.prefect_server.embedded import SETTINGS
from flows.prefect_server.reach import PrefectUnreachableError, check_home, may_name_server

PATIENCE_S = 10.0
"""Seconds at a run's end in which a server that does not answer may be told the rest."""

# How long the process may take to end once its runs have.
_END_S = 20.0
# -P keeps the working directory from being searched for modules; the path is this process's instead. Collecting garbage
# took a fifth of the time of importing.
_PROGRAM = """
import gc, json, signal, sys
gc.disable()
# The driver decides when it ends, and tells how the run did. Blocked, for Prefect handles SIGTERM while a flow runs.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from flows.prefect_server.driver import Driver
driver = Driver(settings["socket"])  # first: or nothing would notice the driver's end while the rest is imported
from flows.prefect_server.show import main
main(driver, settings)
"""


class ShowProcess:
    """The process that shows runs in Prefect.

    Args:
        may_start: whether it runs a server where none is named.

    Raises:
        PrefectUnreachableError: no server can be run here.

    Attributes:
        failure: why it cannot reach or run a server; empty while that is not so.
        is_up: whether there is a server.
        settings: of Prefect, with which it was started.
    """

    def __init__(self, *, may_start: bool) -> None:
        self._may_be_named = may_name_server()
        if may_start and not self._may_be_named:
            check_home()
        self.settings = _settings()
        self.failure = ""
        self.is_up = False
        self.on_failure: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self._state = ""
        self._is_over = self._is_closing = self._is_left_alone = False
        self._tries_again: dict[str, bool] = {}
        self._missed: str | None = None
        ours, theirs = socket.socketpair()
        settings = {
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "socket": theirs.fileno(),
            "may_start": may_start,
            "patience_s": PATIENCE_S,
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**SETTINGS, **os.environ, **self.settings},
                process_group=0,  # Ctrl-C in a terminal is for the driver alone
            )
        self._connection = Connection(ours.detach())
        self._outbox: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        # Sending blocks while the process is busy, and must then not block labeling.
        self._speaker, self._listener = (
            threading.Thread(target=task, name="show-in-prefect", daemon=True) for task in (self._speak, self._listen)
        )
        self._speaker.start()
        self._listener.start()

    def has_ended(self) -> bool:
        """Return whether it can show nothing more."""
        return self._is_over

    def check(self) -> None:
        """Wait until a server that may be named has answered; for one that is run for a run alone nothing waits.

        Raises:
            ConfigError: it does not answer, or none can be run here.
        """
        if self._may_be_named:
            self.has_server()

    def has_server(self) -> bool:
        """Wait until it is known whether a server is named and answers, or else one is being started.

        Raises:
            ConfigError: it does not answer, or none can be run here.
        """
        with self._changed:
            while not (self._state or self.failure or self._is_over):
                self._changed.wait(0.1)  # with a time limit, so that Ctrl-C is handled
            if self.failure or not self._state:
                raise ConfigError(self.failure or "the process that shows runs in Prefect was killed; run it again")
        if self._state == "nobody":
            self.close()  # or a later run that is to have a server would get this one, which starts none
        return self._state != "nobody"

    def say(self, *message: Any) -> None:
        """Tell it something, without waiting."""
        if message[0] == "show":
            with self._changed:
                self._tries_again.clear()  # waves of the run before may have the same labels
        self._outbox.put(message)

    def is_to_try_again(self, label: str) -> bool:
        """Wait for what Prefect has decided about a wave with failures: whether it is tried again."""
        with self._changed:
            self._changed.wait_for(lambda: label in self._tries_again or self._is_over or self.failure)
            return self._tries_again.pop(label, False)

    def wait_until_told(self, limit_s: float = math.inf) -> str:
        """Wait for what could not be told of a run that has ended; empty if it is told.

        Args:
            limit_s: seconds after which this process is to end all the same. The other one tells the rest, and ends by
                itself soon after: a run that has ended must not be shown as running for ever.
        """
        deadline = time.monotonic() + limit_s
        with self._changed:
            while self._missed is None and not (self._is_over or self.failure):
                self._changed.wait(0.1)
                if time.monotonic() > deadline:
                    self._is_left_alone = True
                    return "there was no time to tell the rest"
            missed, self._missed = self._missed, None
        return missed if missed is not None else self.failure or "the process that tells it has ended"

    def close(self) -> None:
        """End it, once it has told what it has heard."""
        self._is_closing = True
        self._outbox.put(None)
        if self._is_left_alone:
            self._speaker.join(1.0)  # so that it hears how the run has ended
            return
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        self._connection.close()

    def _speak(self) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the other thread notices as well
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as line:
            line.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(*self._connection.recv())
        self._process.wait()
        # One that something has killed says nothing about the server; the run goes on without being shown.
        has_failed = self._process.returncode >= 0 and not (self.failure or self.is_up or self._is_closing)
        if has_failed:
            code = self._process.returncode
            self.failure = (
                f"the process that shows runs in Prefect ended with code {code}: see what it printed, or run with "
                "--no-prefect"
            )
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if has_failed:
            self.on_failure()

    def _hear(self, what: str, *values: Any) -> None:
        with self._changed:
            if what == "failed":
                (self.failure,) = values
            elif what in ("again", "settled"):
                self._tries_again[values[0]] = what == "again"
            elif what == "told":
                (self._missed,) = values
            elif what == "up":
                self.is_up = True
            else:
                self._state = what
                self.is_up = what == "reached"
            self._changed.notify_all()
        if what == "failed":
            self.on_failure()


_running: list[ShowProcess] = []


def show_process(*, may_start: bool = True) -> ShowProcess:
    """Return this process's, which ends with it; started if there is none that works, without waiting for a server.

    Args:
        may_start: whether a server is run where none is named.

    Raises:
        ConfigError: no server can be run here, or no process be started.
    """
    if _running and not (_running[0].has_ended() or _running[0].failure) and _running[0].settings == _settings():
        return _running[0]
    for one in _running:  # the next night's run may find a server, or is shown on another
        atexit.unregister(one.close)
        one.close()
    _running.clear()
    try:
        _running.append(ShowProcess(may_start=may_start))
    except PrefectUnreachableError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"no process can be started that tells Prefect of the run: {error}") from error
    atexit.register(_running[0].close)
    return _running[0]


def _settings() -> dict[str, str]:
    """Return Prefect's settings of the environment, and those made in this process, as a test does."""
    settings = {name: value for name, value in os.environ.items() if name.upper().startswith("PREFECT_")}
    if "prefect" in sys.modules:
        from prefect.settings import get_current_settings

        settings |= get_current_settings().to_environment_variables(exclude_unset=True)
    return settings
