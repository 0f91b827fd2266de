"""The examples of docs/training.md name factories and arguments that exist."""

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from xsam_model.training.loop.config import SourceConfig
from xsam_model.training.samples.sources import BatchPlan

TEXT = (Path(__file__).parents[4] / "docs" / "training.md").read_text(encoding="utf-8")
SECTION = TEXT.split("### Data in the formats people have")[1].split("\n## ")[0]
SOURCES = tomllib.loads(re.search(r"```toml\n(.*?)```", SECTION, re.DOTALL).group(1))["sources"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source["factory"])
def test_every_example_fits_its_factory(source):
    module, name = source["factory"].split(":")
    inspect.signature(getattr(import_module(module), name)).bind(**source["arguments"])


def test_every_factory_of_the_table_has_an_example():
    listed = {name.rsplit(".", 1)[-1] for name in re.findall(r"\| `([\w.]+:\w+)` \|", SECTION)}
    assert listed == {source["factory"].rsplit(".", 1)[-1] for source in SOURCES}
    assert len(listed) == 8


def test_a_source_is_opened_as_a_run_opens_it(tmp_path, picture):
    picture("images/1.jpg")
    (tmp_path / "chat.json").write_text(
        '[{"id": 1, "image": "1.jpg", "conversations": [{"from": "human", "value": "What?"}, '
        '{"from": "gpt", "value": "That."}]}]'
    )
    arguments = {"annotations": str(tmp_path / "chat.json"), "images": str(tmp_path / "images")}
    source = SourceConfig(factory="xsam_model.training.datasets.chat:llava", arguments=arguments).open()
    assert BatchPlan([len(source)], batch_size=2).at(0)[1].tolist() == [0, 0]
