import subprocess
import sys

import pytest

from xsam_model.conversion.checkpoints import CheckpointError
from xsam_model.conversion.new_output import whole_folder


def test_a_folder_has_its_name_only_once_it_is_written(tmp_path):
    with whole_folder(tmp_path / "deep" / "model") as beside:
        (beside / "weights").write_text("whole")
        assert not (tmp_path / "deep" / "model").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "other"):
        raise OSError("disk full")
    assert not (tmp_path / "other").exists()


def test_what_a_killed_process_has_left_does_not_get_into_the_next_folder(tmp_path):
    (tmp_path / "writing-model").mkdir()
    (tmp_path / "writing-model" / "weights-00002-of-00002").write_text("old")
    with whole_folder(tmp_path / "model") as beside:
        (beside / "weights").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"]


def test_only_the_owner_of_a_shared_folder_creates_and_renames_it(tmp_path):
    with whole_folder(tmp_path / "model") as beside:
        with whole_folder(tmp_path / "model", is_owner=False) as shared:
            (shared / "part").write_text("of another process")
        assert shared == beside
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "part").exists()


def test_a_second_owner_is_refused_and_harms_nothing_until_the_first_has_died(tmp_path):
    output = tmp_path / "model"
    written = f"""
from pathlib import Path
from xsam_model.conversion.new_output import whole_folder
with whole_folder(Path({str(output)!r})) as beside:
    (beside / "weights").write_text("of the first")
    print("begun", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", written], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"begun\n"
        for _ in range(2):  # nor does the refused one release the lock
            with pytest.raises(CheckpointError, match="another process is writing"), whole_folder(output):
                pass
        assert (tmp_path / "writing-model" / "weights").read_text() == "of the first"
        first.kill()
    with whole_folder(output) as beside:
        assert list(beside.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
