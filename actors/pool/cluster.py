"""Joins a Ray cluster or starts Ray on this machine, and refuses more replicas than the cluster has room for.

Imports ray only where it is used: Ray reads part of its environment once, when it is first imported."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.pool.config import PoolConfig
from actors.pool.runner import ReplicaStartError

# Small, because only shard references and receipts pass through the object store, never pixels or masks.
_OBJECT_STORE_BYTES = 200 * 2**20
_CONNECT_TIMEOUT_S = 10
_ON_A_CLUSTER = ", or set wait_for_nodes on a cluster that adds nodes on demand"
_SHORT_PLACE = "/tmp"
# A socket path has room for 107 bytes, 103 on macOS, of which Ray's /ray/session_.../sockets/... takes up to 68.
_MAX_FOLDER_BYTES = 35
_private_folder: TemporaryDirectory[str] | None = None


def prepare_environment(config: PoolConfig) -> None:
    """Set the environment variables that Ray reads when it is imported; those that the user has set are kept.

    Ray started on this machine then requires a token, which is its default, and binds to the loopback address only; it
    would otherwise listen on every interface.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules and not _address(config):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Left alone, Ray keeps its token in the home folder, which may be missing or read-only.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Despite its name this applies on Linux too: "0" keeps Ray to one machine, on the loopback address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def connect(config: PoolConfig) -> bool:
    """Connect this process to Ray and check that the cluster has room for the replicas.

    Returns:
        True if Ray was initialized here, which makes the caller responsible for shutting it down; False if the process
        was already connected.

    Raises:
        ReplicaStartError: the cluster cannot be joined, or it lacks room for the replicas and config.wait_for_nodes is
            False.
    """
    import ray

    initialized_here = not ray.is_initialized()
    if initialized_here:
        _initialize(config)
    try:
        if not config.wait_for_nodes:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            check_room(config, nodes, "the Ray cluster", _ON_A_CLUSTER)
    except BaseException:
        # Ctrl-C included: the caller cannot shut down what it was never told about.
        if initialized_here:
            ray.shutdown()
        raise
    return initialized_here


def check_room(config: PoolConfig, nodes: Sequence[Mapping[str, float]], place: str, advice: str = "") -> None:
    """Refuse more replicas than machines could hold if nothing else ran on them.

    Args:
        config: how many replicas, and what each needs.
        nodes: for each machine the CPUs and GPUs that it has.
        place: what to call all of them.
        advice: what else can be done about too little room.

    Raises:
        ReplicaStartError: names the resources asked for and those that exist.
    """
    needs = {"CPU": config.num_cpus_per_replica, "GPU": config.num_gpus_per_replica}
    # Ray counts resources in steps of 1e-4, so ten replicas of 0.1 fit one GPU even if the quotient rounds below 10.
    # By node, because a replica cannot be spread over two. One that needs nothing of a resource fits without limit.
    room_by_node = [
        min((math.floor(node.get(name, 0) / need + 1e-4) for name, need in needs.items() if need > 0), default=math.inf)
        for node in nodes
    ]
    room = sum(room_by_node)
    if config.replicas <= room:
        return
    there = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in needs)
    raise ReplicaStartError(
        f"{config.replicas} replicas of {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs each were asked for, but "
        f"{place} has room for {room}: {there} on {len(nodes)} node(s). Ask for fewer replicas or less for "
        f"each{advice}."
    )


def _address(config: PoolConfig) -> str | None:
    # Ray jobs have RAY_ADDRESS set, which is how a driver finds the cluster that it was submitted to.
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
                include_dashboard=False,  # which takes 2 s more to start
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="WARNING",
            )


def _short_folder() -> str | None:
    """Return a private folder for Ray's sockets if the usual folder's path is too long for them, else None.

    Raises:
        ReplicaStartError: no such folder can be created.
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
    # Ray makes its own folder accessible to every user of the machine, so it goes inside the private one.
    return os.path.join(_private_folder.name, "r")


def check_connection(address: str) -> None:
    """Connect to HOST:PORT and hang up.

    Raises:
        OSError: nothing listens there.
        ValueError: the port is no number.
    """
    host, _, port = address.rpartition(":")
    # An IPv6 address is written in brackets before a port.
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens, which Ray itself would keep retrying for many minutes."""
    if address == "auto":
        return
    try:
        check_connection(address)
    except (OSError, ValueError) as error:
        raise ReplicaStartError(f"the Ray cluster at {address!r} cannot be reached: {error}") from error


@contextmanager
def _keeping_sigterm_handler() -> Iterator[None]:
    """Restore the caller's SIGTERM handler, which ray.init replaces and ray.shutdown does not bring back."""
    # Python lets only the main thread set signal handlers.
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
    """Put a source checkout on PYTHONPATH while a local Ray starts, so that its workers can import these packages."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    # An installed package, in site-packages or dist-packages, is importable anyway.
    if not root.endswith("-packages"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, before)))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
