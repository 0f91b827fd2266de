"""A local Ray whose workers are forked from one that has imported what they need: they start in a tenth of the time.

Each is a process of its own, as ever, which Ray registers, watches and kills. Ray runs this file in place of its
worker's program. The first that a raylet starts for a driver serves the others.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

# What a replica without a model imports, and what reads and writes images and tables.
_IMPORTS = ("actors.pool.replica", "actors.predictor.labeler", "s3fs", "PIL.PngImagePlugin")
_MAX_BYTES = 2**18
_IDLE_S = 30


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Let the nodes that are started in this block fork their workers."""
    import pytest
    from ray._private import services

    start: Callable[..., Any] = services.start_raylet

    def start_raylet(*arguments: Any, **named: Any) -> Any:
        replaced = [__file__ if str(value).endswith("default_worker.py") else value for value in arguments]
        assert replaced != list(arguments), "Ray is told otherwise which program its workers run"
        return start(*replaced, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "start_raylet", start_raylet)
        yield


def _main() -> None:
    """Become a worker of the raylet that has started this process, or have one forked."""
    names = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--raylet-name=")]
    # One for each driver's job: Ray's library reads it from the environment when it is loaded, as it does the raylet.
    place = f"{names[0]}.{os.environ.get('RAY_JOB_ID', '')}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mine:
        try:
            mine.bind(place)
        except OSError:
            if _ask(mine, place):
                return
        else:
            mine.listen(64)
            _serve(mine, place)
            return
    _work(_worker_code())


def _ask(server: socket.socket, place: str) -> bool:
    """Have a worker forked that has the arguments, environment, folder and output of this process, and say if it was.

    It was not if the process that forks has ended meanwhile.
    """
    order = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    try:
        server.connect(place)
        socket.send_fds(server, [json.dumps(order).encode()], [0, 1, 2])
        return bool(server.recv(1))
    except OSError:
        return False


def _serve(listener: socket.socket, place: str) -> None:
    """Fork a worker, and one for each process that asks, until none has for long or the raylet has ended."""
    raylet = os.getppid()
    for module in _IMPORTS:
        importlib.import_module(module)
    code = _worker_code()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if not os.fork():
        listener.close()
        _work(code)
    last = time.monotonic()
    while os.getppid() == raylet and time.monotonic() - last < _IDLE_S:
        if not select.select([listener], [], [], 1)[0]:
            continue
        last = time.monotonic()
        client, _ = listener.accept()
        with client:
            order, descriptors, _, _ = socket.recv_fds(client, _MAX_BYTES, 3)
            if not os.fork():
                listener.close()
                client.close()
                _become(json.loads(order), descriptors)
                _work(code)
            client.send(b"!")
        for descriptor in descriptors:
            os.close(descriptor)
    os.unlink(place)


def _worker_code() -> CodeType:
    from ray._private.workers import default_worker

    with open(default_worker.__file__) as file:
        return compile(file.read(), default_worker.__file__, "exec")


def _become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Take over what the process has that has asked."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv[1:] = order["arguments"]
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _work(code: CodeType) -> None:
    """Be a worker until its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends what is left of a worker's group
    exec(code, {"__name__": "__main__", "__file__": code.co_filename})
    sys.exit()


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules a worker does not know
    _main()
