"""What tests of several packages share: stores of every kind, and one real S3 server for the session."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage import Store, open_store
from tests.seaweed import S3Server, seaweed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what stays together where several processes run the tests: folders that start a Ray, and each other file."""
    tests = Path(__file__).parent
    for item in items:
        parts = item.path.relative_to(tests).parts
        together = parts[0] if parts[0] in ("actors", "flows") else "/".join(parts)
        item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running SeaweedFS."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


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
