"""What checks a change before a commit and on a server is what `make lint` and .ci/run check."""

from __future__ import annotations

import re

import yaml

from tests.support.drivers import REPOSITORY


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"  # nothing is downloaded
    assert [hook["entry"] for hook in local["hooks"]] == commands


def test_the_workflow_makes_what_ci_run_makes() -> None:
    made = re.findall(r"^make (.+)$", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)
    targets = {word for words in made for word in words.split() if word[0] not in "-."}
    job = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]["make"]
    assert set(job["strategy"]["matrix"]["target"]) == targets
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
