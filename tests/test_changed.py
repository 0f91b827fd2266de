"""A change touches the tests that import what has changed, and no others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.changed import ROOT, changed_files, touched_tests


def touched(*changed: str) -> dict[str, bool]:
    return {str(path.relative_to(ROOT)): direct for path, direct in touched_tests(changed).items()}


def test_a_module_touches_the_tests_that_import_it_and_those_that_do_so_through_others() -> None:
    found = touched("pipelines/export/write.py")
    assert found["tests/pipelines/export/test_write.py"]
    assert not found["tests/flows/commands/test_export.py"], "it imports the command, which imports that"
    assert "tests/pipelines/masks/test_rle.py" not in found
    assert not any(name.startswith("tests/xsam_model") for name in found)


def test_a_test_module_and_what_prepares_a_folder_touch_their_tests() -> None:
    assert touched("tests/pipelines/masks/test_rle.py") == {"tests/pipelines/masks/test_rle.py": True}
    found = touched("tests/flows/conftest.py")
    assert found["tests/flows/process/test_streams.py"]
    assert "tests/pipelines/masks/test_rle.py" not in found
    assert touched("tests/conftest.py").keys() == {
        str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py")
    }


def test_a_file_that_is_no_module_touches_those_who_read_it() -> None:
    assert "tests/pipelines/report/test_report.py" in touched("pipelines/report/report.html.j2")
    assert touched("prefect.yaml")["tests/flows/commands/test_schedule.py"]
    assert "tests/xsam_model/test_golden.py" in touched("tests/golden/A/config.json")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_files_that_differ_from_where_a_branch_began_have_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    for branch, name in (("main", "old.py"), ("topic", "committed.py")):
        git("checkout", "-B", branch)
        (tmp_path / name).write_text("")
        git("add", ".")
        git("commit", "-m", name)
    (tmp_path / "old.py").write_text("changed")
    (tmp_path / "new.py").write_text("")
    assert changed_files("main", tmp_path) == ["committed.py", "new.py", "old.py"]
    assert changed_files("HEAD", tmp_path) == ["new.py", "old.py"]
    with pytest.raises(ValueError, match="no-such-branch"):
        changed_files("no-such-branch", tmp_path)
