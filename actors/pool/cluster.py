"""Joining a Ray cluster or starting one on this machine, and refusing what it cannot hold.

Imports ray only where it is used: Ray reads part of its environment once, when it is first imported."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.pool.config import PoolConfig
from actors.pool.runner import ReplicaStartError

# Only shards' references and receipts pass through it.
_OBJECT_STORE_BYTES = 200 * 2**20
_CONNECT_TIMEOUT_S = 10
_SHORT_PLACE = "/tmp"
# A socket's name has room for 107 bytes, on macOS 103; Ray's own part, /ray/session_.../sockets/..., takes up to 68.
_MAX_FOLDER_BYTES = 35
_private_folder: TemporaryDirectory[str] | None = None


def prepare_environment(config: PoolConfig) -> None:
    """Set what Ray must find in the environment when it is imported; leave what the user has set.

    A Ray that is started here then asks for a token, its own default, and binds the loopback address alone, where it
    would otherwise listen on every interface.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and not _address(config):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Ray itself would keep one in the home folder, which need not be there or writable.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # The name is about other systems; on Linux too it means "one machine only".
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def connect(config: PoolConfig) -> bool:
    """Make sure that this process is connected to Ray and that the cluster can hold the replicas.

    Returns:
        Whether Ray was initialised here, so that the caller is to shut it down; False if the process already was
        connected.

    Raises:
        ReplicaStartError: the cluster cannot be joined; or its nodes cannot hold the replicas, and
            config.wait_for_nodes is False.
    """
    import ray

    initialized_here = not ray.is_initialized()
    if initialized_here:
        _initialize(config)
    try:
        if not config.wait_for_nodes:
            check_room(config)
    except BaseException:
        if initialized_here:
            ray.shutdown()
        raise
    return initialized_here


def check_room(config: PoolConfig) -> None:
    """Refuse more replicas than the nodes that are up could ever hold, whatever else runs on them.

    Raises:
        ReplicaStartError: says what was asked and what there is.
    """
    import ray

    needs = {"CPU": config.num_cpus_per_replica, "GPU": config.num_gpus_per_replica}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Ray counts in steps of 1e-4, so that ten replicas of 0.1 fit one GPU.
    room_by_node = [
        min((math.floor(node.get(name, 0) / need + 1e-4) for name, need in needs.items() if need > 0), default=math.inf)
        for node in nodes
    ]
    room = sum(room_by_node)
    if config.replicas <= room:
        return
    there = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in needs)
    raise ReplicaStartError(
        f"{config.replicas} replicas of {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs each were asked for, but the "
        f"Ray cluster has room for {room}: {there} on {len(nodes)} node(s). Ask for fewer replicas or less for each, "
        "or set wait_for_nodes on a cluster that adds nodes on demand."
    )


def _address(config: PoolConfig) -> str | None:
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address


def _initialize(config: PoolConfig) -> None:
    import ray

    address = _address(config)
    with _keeping_sigterm_handler():
        if address:
            _check_reachable(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
            except ConnectionError as error:
                raise ReplicaStartError(f"the Ray cluster at {address!r} cannot be joined: {error}") from error
            return
        with _packages_importable():
            ray.init(
                address="local",
                _temp_dir=_short_folder(),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="WARNING",
            )


def _short_folder() -> str | None:
    """Return a private folder for Ray's sockets where the usual one has too long a name; None where it has not.

    Raises:
        ReplicaStartError: there is no place for one.
    """
    global _private_folder  # noqa: PLW0603 - one for the process, which removes it at its end
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT_PLACE
    if len(os.fsencode(usual)) <= _MAX_FOLDER_BYTES:
        return None
    try:
        _private_folder = _private_folder or TemporaryDirectory(
            prefix="ray-", dir=_SHORT_PLACE, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise ReplicaStartError(
            f"{usual!r} is too long a name for the folder of Ray's sockets, at most {_MAX_FOLDER_BYTES} bytes, and "
            f"{_SHORT_PLACE} cannot be used ({error}); set RAY_TMPDIR to a folder with a short name"
        ) from error
    # Ray opens its own folder to all users of the machine: it is inside the private one.
    return os.path.join(_private_folder.name, "r")


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would go on trying for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ReplicaStartError(f"the Ray cluster at {address!r} cannot be reached: {error}") from error


@contextmanager
def _keeping_sigterm_handler() -> Iterator[None]:
    """Put back a SIGTERM handler that the caller had installed: ray.init replaces it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _packages_importable() -> Iterator[None]:
    """Let the workers of a local Ray import these packages from a source checkout, whatever the working directory."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    if not root.endswith("-packages"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, before)))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
