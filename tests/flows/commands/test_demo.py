"""What the demo asks of its pictures."""

from __future__ import annotations

from pathlib import Path

from flows.commands.demo import asked_of
from flows.config import parse_config


def test_the_demo_asks_for_masks_and_for_no_words() -> None:
    runs = asked_of(Path("scenes"), Path("photos"), Path("prompts.csv"), ["cat", "dog"])
    configs = {name: parse_config({**values, "output": "out"}) for name, values in runs.items()}
    assert list(configs) == ["photos", "scenes"]
    assert (configs["photos"].categories, configs["photos"].prompts) == ((), "prompts.csv")
    assert configs["scenes"].categories == ("cat", "dog")
    for config in configs.values():
        assert (config.caption, config.chat, config.explain) == (False, (), False)


def test_without_prompts_the_demo_asks_for_names_in_photographs() -> None:
    photos = parse_config({**asked_of(Path("scenes"), Path("photos"), None, ["cat"])["photos"], "output": "out"})
    assert photos.categories
    assert photos.prompts is None
