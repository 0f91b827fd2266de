from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.flows.conftest import Ended


def test_a_mistake_in_a_training_file_is_one_message(cli: Callable[..., Ended], tmp_path: Path) -> None:
    missing = cli("train", "-c", tmp_path / "none.toml")
    assert missing.code == 2
    assert "none.toml" in missing.err
    file = tmp_path / "train.toml"
    file.write_text('output = "x"\nspeed = 3\n')
    wrong = cli("train", "-c", file)
    assert wrong.code == 2
    assert "unknown settings speed" in wrong.err
    assert "Traceback" not in wrong.err
