from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.flows.conftest import Ended


def test_a_mistake_in_a_training_file_is_one_message(cli: Callable[..., Ended], tmp_path: Path) -> None:
    missing = cli("train", "-c", tmp_path / "none.toml")
    assert missing.code == 2
    assert missing.err.endswith("none.toml: cannot be read (No such file or directory)\n")
    file = tmp_path / "train.toml"
    file.write_text('output = "x"\nspeed = 3\n')
    wrong = cli("train", "-c", file)
    assert wrong.code == 2
    assert "unknown settings speed" in wrong.err
    assert "Traceback" not in wrong.err


def test_a_config_of_another_command_is_recognized(cli: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "label.toml").write_text('source = "photos"\noutput = "out"\ncategories = ["cat"]\n')
    (tmp_path / "train.toml").write_text('output = "run"\nmodel = "tiny"\n[[stages]]\nname = "all"\nsteps = 1\n')
    ended = cli("train", "-c", tmp_path / "label.toml")
    assert ended.code == 2
    assert "label.toml: this looks like a config of `run`" in ended.err
    assert "known" not in ended.err
    ended = cli("run", "-c", tmp_path / "train.toml")
    assert ended.code == 2
    assert "train.toml cannot be used:\n  this looks like a config of `train`" in ended.err
    assert "missing" not in ended.err
    # A mistake in a file of this command's own is still told.
    (tmp_path / "label.toml").write_text('source = "photos"\nstage = "x"\n')
    assert "stage: unknown key" in cli("run", "-c", tmp_path / "label.toml").err
