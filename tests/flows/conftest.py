"""The whole system, small: a tiny real X-SAM, photographs, and a Prefect server for the tests that ask for it.

Prefect is imported by fixtures only: it reads its settings once, and its home must be a temporary folder by then.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from flows.config import RunConfig, merge, parse_config
from tests.support.drivers import Command, Ended, PrefectServer, command_line, migrated_home, prefect_server  # noqa: F401
from tests.support.forked_driver import DriverServer, driver_server
from tests.support.seaweed import S3Server

CATEGORIES = ("car", "tree", "traffic light")


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings of Prefect that must stand before it is imported, or a driver process is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        patch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
        patch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        # No test has a block, whose types each new home is told of.
        patch.setenv("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "false")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield


@pytest.fixture(scope="session")
def make_prefect_home(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Make a home folder for a Prefect server, with a database that is migrated once for all processes that test."""
    ours = tmp_path_factory.getbasetemp()
    template = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "migrated.db"
    return lambda home: migrated_home(home, template)


@pytest.fixture(scope="session")
def prefect(
    make_prefect_home: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrefectServer]:
    """A Prefect server; flows of this process run on it."""
    with prefect_server(make_prefect_home(tmp_path_factory.mktemp("prefect-server"))) as server:
        server.wait_until_ready()
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield server
            from prefect.logging.handlers import APILogWorker

            APILogWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def forking(_environment: None) -> Iterator[DriverServer]:
    """What drivers are forked from: worth its own imports for tests that start many."""
    with driver_server() as server:
        yield server


@pytest.fixture(scope="module")
def s3_environment(s3_server: S3Server) -> Iterator[S3Server]:
    """The S3 server, with its address and credentials in the environment for a whole module."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3_server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def model(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder with random weights."""
    import torch

    from xsam_model.testing import save_untrained

    # As many threads as a replica of one CPU has: more would add in another order.
    torch.set_num_threads(1)
    return save_untrained(tmp_path_factory.mktemp("model") / "tiny")


def photograph(width: int, height: int, seed: int) -> PILImage.Image:
    """A smooth picture in color, different for each seed."""
    rng = np.random.default_rng(seed)
    small = PILImage.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), PILImage.Resampling.BICUBIC)


def write_photographs(folder: Path, count: int) -> Path:
    """Write photographs of different sizes and formats in two folders, the second of them turned by its EXIF tag."""
    (folder / "more").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = photograph(64 + 8 * (number % 3), 40 + 8 * (number % 4), number)
        if number % 2:
            exif = PILImage.Exif()
            exif[0x0112] = 6 if number == 1 else 1
            picture.save(folder / "more" / f"{number:03d}.JPG", exif=exif)
        else:
            picture.save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs."""
    return write_photographs(tmp_path_factory.mktemp("photographs"), 10)


MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(model: Path, photographs: Path, tmp_path: Path) -> MakeConfig:
    """Build a config of small shards on one replica in this process; tables given are laid over the defaults."""

    def make(**tables: Any) -> RunConfig:
        values: dict[str, Any] = {
            "source": str(photographs),
            "output": str(tmp_path / "output"),
            "model": {"path": str(model), "max_masks_per_image": 10},
            "categories": list(CATEGORIES),
            "plan": {"images_per_shard": 2},
            "label": {"batch_size": 2},
            "pool": {"runner": "in_process"},
            "waves": {"retry_delay_s": 0},
        }
        return parse_config(merge(values, tables))

    return make


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line's main function in this process, as the console script does."""
    return command_line(capfd, monkeypatch)


@pytest.fixture
def fresh_bucket_prefix() -> str:
    """A place in the S3 server's bucket that nothing else uses."""
    return f"s3://bkt/{secrets.token_hex(4)}"
