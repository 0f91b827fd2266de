"""What the demo asks of its pictures."""

from __future__ import annotations

from pathlib import Path

from flows.commands.demo import asked_of
from flows.config import parse_config


def test_the_demo_asks_for_masks_and_for_no_words() -> None:
    runs = asked_of(Path("scenes"), Path("photos"), Path("prompts.csv"), ["cat", "dog"])
    configs = {name: parse_config({**values, "output": "out"}) for name, values in runs.items()}
    assert list(configs) == ["scenes", "photos"]
    for config in configs.values():
        assert config.categories
        assert (config.caption, config.chat, config.explain) == (False, (), False)
