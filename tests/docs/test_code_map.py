"""docs/code-map.svg is a picture of today's imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.drivers import REPOSITORY


@pytest.fixture(scope="module")
def code_map() -> Iterator[ModuleType]:
    """The program that draws it, which lies beside its picture and is no module of a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "docs"))
        yield importlib.import_module("draw_code_map")
    del sys.modules["draw_code_map"]


@pytest.fixture(scope="module")
def edges(code_map: ModuleType) -> Mapping[str, frozenset[str]]:
    return code_map.read_edges()


def test_the_map_is_that_of_the_imports(code_map: ModuleType, edges: Mapping[str, frozenset[str]]) -> None:
    picture = Path(code_map.PICTURE).read_text(encoding="utf-8")
    assert picture == code_map.draw(edges), "draw it again: python docs/draw_code_map.py"


def test_a_package_is_seen_to_import_what_it_imports(edges: Mapping[str, frozenset[str]]) -> None:
    assert "pipelines.storage" in edges["pipelines.table"]
    assert "xsam_model.post_processing" in edges["actors.predictor"]
    assert "actors.pool" in edges["flows.run"]  # imported in a function
    assert not any(name.startswith(("flows.", "actors.")) for name in edges["pipelines.table"])
    assert "pipelines.manifest" not in edges  # an old address


def test_an_arrow_that_follows_from_others_is_known(code_map: ModuleType) -> None:
    edges = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}
    assert code_map.implied(edges, "a", "c")
    assert not code_map.implied(edges, "a", "b")
    assert not code_map.implied(edges, "b", "c")
