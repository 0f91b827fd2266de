"""Whether the Ray cluster that a driver belongs to is still there: Ray itself waits for ever, or ends the process."""

from __future__ import annotations

import socket
import threading
import time

import ray

# Well below the 60 s after which Ray ends a driver that has lost the head, and more than a restart takes.
LOST_AFTER_S = 20.0
_LOOK_EVERY_S = 2.0
_CONNECT_TIMEOUT_S = 5.0


class HeadWatch:
    """Looks from a thread of its own, which Ray may block, for the head and for this machine's node.

    Attributes:
        lost: what is gone, for people; empty while all is there.
    """

    def __init__(self) -> None:
        self.lost = ""
        self._node_id = ray.get_runtime_context().get_node_id()
        self._head = ray.get_runtime_context().gcs_address
        self._ended = threading.Event()
        self._seen = {"head": time.monotonic(), "node": time.monotonic()}
        threading.Thread(target=self._look, name="watch-head", daemon=True).start()
        threading.Thread(target=self._judge, name="judge-head", daemon=True).start()

    def close(self) -> None:
        """Look no longer."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            if _listens(self._head):
                self._seen["head"] = time.monotonic()
                if _is_alive(self._node_id):
                    self._seen["node"] = time.monotonic()

    def _judge(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            if now - self._seen["head"] > LOST_AFTER_S:
                self.lost = f"the head of the Ray cluster, {self._head}, has not answered for {LOST_AFTER_S:g} s"
            elif now - self._seen["node"] > LOST_AFTER_S:
                self.lost = f"the Ray node of this machine, {self._node_id[:8]}, has been gone for {LOST_AFTER_S:g} s"


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
