"""Dotted addresses of code, as documents and programs in them name it, looked up without importing it."""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path

from tests.support.drivers import REPOSITORY

PACKAGES = ("xsam_model", "pipelines", "actors", "flows", "tests", "benchmarks")


def check(address: str) -> None:
    """Check that a module, or a name in one, exists; of packages of others only whether they are installed.

    Raises:
        AssertionError: it does not.
    """
    top, *parts = address.split(".")
    if top not in PACKAGES:
        assert find_spec(top), f"{top} is not installed"
        return
    path = REPOSITORY / top
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        path /= f"{parts.pop(0)}.py"
    elif parts:
        path /= "__init__.py"
    assert path.exists(), f"there is no {address}"
    if parts:
        assert parts[0] in _names(path), f"{path.relative_to(REPOSITORY)} has no {parts[0]}"


@functools.cache
def _names(path: Path) -> frozenset[str]:
    """The names that a module defines or imports, and those that it says it has."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            found |= {text.value for text in ast.walk(node) if isinstance(text, ast.Constant)}  # __all__, lazy names
    return frozenset(found)
