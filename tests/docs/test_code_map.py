"""docs/code-map.svg is a picture of today's imports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.drivers import REPOSITORY


@pytest.fixture
def code_map(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    import draw_code_map

    yield draw_code_map
    del sys.modules["draw_code_map"]


def test_the_map_is_that_of_the_imports(code_map) -> None:
    picture = Path(code_map.PICTURE).read_text(encoding="utf-8")
    assert picture == code_map.draw(code_map.read_edges()), "draw it again: python docs/draw_code_map.py"


def test_a_package_is_seen_to_import_what_it_imports(code_map) -> None:
    edges = code_map.read_edges()
    assert "pipelines.storage" in edges["pipelines.table"]
    assert "xsam_model.post_processing" in edges["actors.predictor"]
    assert "actors.pool" in edges["flows.run"]  # imported in a function
    assert not any(name.startswith(("flows.", "actors.")) for name in edges["pipelines.table"])
    assert "pipelines.manifest" not in edges  # an old address


def test_an_arrow_that_follows_from_others_is_known(code_map) -> None:
    edges = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}
    assert code_map.implied(edges, "a", "c")
    assert not code_map.implied(edges, "a", "b")
    assert not code_map.implied(edges, "b", "c")
