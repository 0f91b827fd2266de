"""The floor plan: which package may import which, as pyproject.toml's import-linter contracts state it; no circles, and
no folder so full that names alone have to explain it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PACKAGES = ("pipelines", "actors", "xsam_model", "flows")
MAX_MODULES = 14


@pytest.mark.timeout(120)
def test_packages_import_only_what_their_contracts_allow() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run(
        [str(program), "--no-cache"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in ended.stdout


def test_each_package_has_its_contract() -> None:
    prohibitions = [contract for contract in CONTRACTS if contract["type"] == "forbidden"]
    forbidden = {one["source_modules"][0]: set(one["forbidden_modules"]) for one in prohibitions}
    assert forbidden["flows"] >= {"xsam_model", "ray", "torch", "transformers"}
    assert forbidden["actors"] >= {"flows", "prefect"}
    assert forbidden["pipelines"] >= {"xsam_model", "actors", "flows", "torch", "transformers", "ray", "prefect"}
    assert forbidden["xsam_model"] >= {"pipelines", "actors", "flows", "ray", "prefect", "pyarrow"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_over_others(package: str) -> None:
    """Imports inside functions count as well: a circle that is hidden in one is a circle."""
    graph = grimp.build_graph(package, cache_dir=None)
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_crowded(package: str) -> None:
    folders = [folder for folder in (REPOSITORY / package).rglob("*") if folder.is_dir()]
    crowded = {
        str(folder.relative_to(REPOSITORY)): count
        for folder in (REPOSITORY / package, *folders)
        if (count := sum(path.name != "__init__.py" for path in folder.glob("*.py"))) > MAX_MODULES
    }
    assert crowded == {}
