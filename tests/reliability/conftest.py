"""What the tests of bounds share, and an empty memory for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.fork_server import fork_server
from tests.support.peak_memory import Peak, measure


@pytest.fixture(scope="module")
def peak(request: pytest.FixtureRequest) -> Iterator[Callable[..., Peak]]:
    """Call a function of the module that the tests import as ``calls`` in a process of its own: see measure."""
    if sys.platform != "linux":
        pytest.skip("the peak of a process is read from /proc")
    with fork_server(request.module.calls.__name__, "tests.support.peak_memory") as processes:
        yield partial(measure, processes)


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    """Remove the outputs that a test has made in memory: whatever is asked there takes longer the more there is."""
    before = set(MemoryFileSystem.store)
    yield
    for path in MemoryFileSystem.store.keys() - before:
        del MemoryFileSystem.store[path]
