"""What tests of several packages share: stores of every kind, and one real S3 server and one Ray for the session."""

from __future__ import annotations

import gc
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.store import Store, open_store
from tests.support.ray_workers import forked_workers
from tests.support.seaweed import S3Server, seaweed

TOUCHED = pytest.StashKey[dict[Path, bool]]()

# Modules and tests stay until the end: the garbage collector need not look among them, now or while the tests run.
gc.disable()
# Rewriting the assertions of all tests takes as long as all else of their collection: it is done once.
sys.dont_write_bytecode = False

# Folders and files that take long, or a process for each test: not among the quick tests.
NOT_QUICK = (
    "benchmarks",
    "reliability",
    "simulation",
    "actors/scenes/test_evaluate.py",
    "actors/scenes/test_photos.py",
    "docs/test_code_blocks.py",
    "flows/commands/test_forget.py",
    "flows/process/test_streams.py",
    "flows/run/test_bad_images.py",
    "flows/run/test_incremental.py",
    "flows/test_correction_loop.py",
    "flows/test_label_collection.py",
    "pipelines/report/test_in_browser.py",
    "pipelines/sources/test_hub.py",
    "pipelines/storage/test_client_limits.py",
)

# Files that take a minute or more, the longest first.
SLOW = (
    "flows/test_resume.py",
    "flows/commands/test_schedule.py",
    "flows/prefect_server/test_prefect_server.py",
    "xsam_model/training/loop/test_trainer.py",
    "xsam_model/test_convert_xsam_to_hf.py",
    "reliability/test_crash_points.py",
    "simulation/test_simulation.py",
    "actors/pool/test_pool.py",
    "reliability/test_commits_on_their_way.py",
    "reliability/test_chaos.py",
    "reliability/test_lost_cluster.py",
    "actors/pool/test_lethal_images.py",
    "benchmarks/test_benchmarks.py",
    "flows/test_cli.py",
    "reliability/test_memory.py",
    "reliability/test_updates.py",
    "reliability/test_damage.py",
    "simulation/test_commit_model.py",
    "reliability/test_storage_faults.py",
    "simulation/test_more_lives.py",
    "pipelines/audit/test_intervals.py",
)

# What a test asks for, by the name of a fixture or by the value of a parameter, and makes it a slow one.
SLOW_TO_START = {"s3", "s3_server", "s3_environment", "ray", "prefect", "make_prefect_home"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--changed",
        metavar="COMMIT",
        help="only tests that are touched by what differs from where this branch left COMMIT; a slow one is if its "
        "module has changed or imports what has",
    )


def pytest_configure(config: pytest.Config) -> None:
    if since := config.getoption("changed"):
        from tests.support.changed import changed_files, touched_tests

        try:
            config.stash[TOUCHED] = touched_tests(changed_files(since))
        except ValueError as error:
            raise pytest.UsageError(f"--changed: {error}") from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what a change does not touch."""
    touched = config.stash.get(TOUCHED, None)
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if touched is not None and is_test and collection_path not in touched else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow, and begin with what takes longest: processes that run a file at a time end together."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(SLOW)))
    not_quick = {here / name for name in (*SLOW, *NOT_QUICK)}
    for item in items:
        if not not_quick.isdisjoint((item.path, *item.path.parents)) or SLOW_TO_START & _asked_for(item):
            item.add_marker("slow")
    touched = config.stash.get(TOUCHED, None)
    if touched is not None:
        left = [item for item in items if item.get_closest_marker("slow") and not touched[item.path]]
        items[:] = [item for item in items if item not in set(left)]
        config.hook.pytest_deselected(items=left)


def _asked_for(item: pytest.Item) -> set[str]:
    """Return the fixtures of a test, and those of its parameters that are words."""
    callspec = getattr(item, "callspec", None)
    words = {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()
    return words | set(getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Set the garbage collector to work on what the tests will make."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A change that touches no test is no failure."""
    if TOUCHED in session.config.stash and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_unconfigure() -> None:
    """Let the interpreter's end find all again: libraries in C++ complain of what it leaves."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _process_environment() -> Iterator[None]:
    """What the many processes that tests start find in their environment, and Ray when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        # What one of them compiles is kept for those that come after it.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Nothing here need outlive a power cut, and the disk is waited for thousands of times.
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running SeaweedFS."""
    from botocore.loaders import Loader

    with pytest.MonkeyPatch.context() as patch, seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        # Each new client would look for the description of S3 among those of all services, and read it.
        for name in ("load_service_model", "load_data_with_path"):
            patch.setattr(Loader, name, _once(getattr(Loader, name)))
        yield server


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a method of a loader has loaded for all loaders."""
    held: dict[tuple[Any, ...], Any] = {}

    def loaded(loader: Any, *what: Any, **options: Any) -> Any:
        key = (*what, *sorted(options.items()))
        if key not in held:
            held[key] = load(loader, *what, **options)
        return held[key]

    return loaded


@pytest.fixture(scope="session")
def ray(s3_server: S3Server) -> Iterator[str]:
    """A Ray of two CPUs whose workers know the S3 server: they inherit what is in the environment now. Its address."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        with forked_workers():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                log_to_driver=False,
            )
        # Its workers are forked from now on: no test has to wait for the first.
        ray.get(ray.remote(lambda: None).remote())
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its address and credentials in the environment as a user would have them."""
    import s3fs

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return s3_server


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty output on each kind of storage."""
    if request.param == "local":
        return open_store(str(tmp_path / "output"))
    if request.param == "memory":
        return open_store(f"memory://output-{secrets.token_hex(4)}")
    request.getfixturevalue("s3")
    return open_store(f"s3://bkt/output-{secrets.token_hex(4)}")
