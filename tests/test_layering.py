"""The arrows between the packages, as pyproject.toml's import-linter contracts state them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


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
