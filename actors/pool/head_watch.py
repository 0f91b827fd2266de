"""Notices that the driver's Ray cluster is gone, where Ray itself would wait for ever or end the process."""

from __future__ import annotations

import threading
import time

import ray

from actors.pool.cluster import check_connection

# Well below the 60 s after which Ray ends a driver that has lost the head, but longer than a head takes to restart.
LOST_AFTER_S = 20.0
_LOOK_EVERY_S = 2.0


class HeadWatch:
    """Watches the head and this machine's node from threads of its own.

    Attributes:
        lost: which of them is gone, as a message for people; empty while both are there.
    """

    def __init__(self) -> None:
        self.lost = ""
        self._node_id = ray.get_runtime_context().get_node_id()
        self._head = ray.get_runtime_context().gcs_address
        self._ended = threading.Event()
        self._seen = {"head": time.monotonic(), "node": time.monotonic()}
        # Two threads, because asking Ray may block for ever once the head is gone: the second only reads the clock.
        threading.Thread(target=self._look, name="watch-head", daemon=True).start()
        threading.Thread(target=self._judge, name="judge-head", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            # A plain connection first, with a timeout that ray.nodes() does not have.
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
    try:
        check_connection(address)
    except OSError:
        return False
    return True


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
