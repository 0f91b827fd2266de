"""The tables of docs/configuration.md and docs/table.md hold every key and column, and what is said of them is so."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flows.config import RunConfig
from pipelines.table.schema import SCHEMAS
from tests.support.drivers import REPOSITORY

_ARROW_NAMES = {"float": "float32", "double": "float64"}


def _rows(page: str, first: str) -> Iterator[list[str]]:
    """The rows of the table whose head begins so, without the head."""
    text = (REPOSITORY / "docs" / page).read_text().split(f"\n| {first} |", 1)[1]
    for line in text.splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def _settings(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with its default."""
    for name, field in model.model_fields.items():
        parts = [part for part in (field.annotation, *typing.get_args(field.annotation)) if isinstance(part, type)]
        inside = next((part for part in parts if issubclass(part, BaseModel)), None)
        if inside is None:
            yield above + name, field.default
        else:
            yield from _settings(inside, f"{above}{name}.")


def test_every_key_of_a_config_is_in_the_table_and_no_other() -> None:
    told = [key for row in _rows("configuration.md", "key") for key in re.findall(r"`([\w.]+)`", row[0])]
    assert sorted(told) == sorted(key for key, _ in _settings(RunConfig))


def test_defaults_that_are_told_are_those_that_hold() -> None:
    defaults = {key: default for key, default in _settings(RunConfig) if default is not PydanticUndefined}
    compared = []
    for keys, told, *_ in _rows("configuration.md", "key"):
        value = told.strip("`").replace(",", "")
        if re.fullmatch(r"[\d.]+|true|false", value):
            for key in re.findall(r"`([\w.]+)`", keys):
                assert defaults[key] == json.loads(value), key
                compared.append(key)
    assert len(compared) > 25


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_every_column_of_the_schema_is_in_the_table_with_its_type(kind: Any) -> None:
    told: dict[str, str] = {}
    for names, types, *_ in _rows("table.md", f"`{kind}`"):
        columns = re.findall(r"`(\w+)`", names)
        each = types.split(", ") if "<" not in types else [types]
        told |= dict(zip(columns, each * len(columns) if len(each) == 1 else each, strict=True))
    schema = SCHEMAS[kind]
    assert sorted(told) == sorted(schema.names)
    for name, words in told.items():
        kept = schema.field(name).type
        kept = kept.value_type if pa.types.is_dictionary(kept) else kept
        if "<" in words:
            assert words.split("<")[0] == str(kept).split("<")[0]
        else:
            assert words == _ARROW_NAMES.get(str(kept), str(kept)), name
