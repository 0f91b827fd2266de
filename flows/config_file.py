"""Write a config file that names every setting: those given as they are, others commented out with their default."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from flows.config import RunConfig
from pipelines.settings import Settings

_WIDTH = 100
# Set by commands, or of another run each time.
_NOT_ASKED = ("retry", "relabel", "exemplars_frozen")


def commented_toml(config: RunConfig, name: str) -> str:
    """Return a config as the text of a TOML file, with a comment and the default of every setting.

    Args:
        config: the config; settings that were not given when it was made are commented out.
        name: the file's name, for its first line.
    """
    head = [
        f"# xsam-label run --config {name}",
        "# A line that begins with # and a name is a setting that has its default. Credentials never stand here: they",
        "# come from the environment, a profile or a role.",
    ]
    return "\n".join([*head, *_lines(config, ())]) + "\n"


def _lines(settings: Settings, place: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table's own settings, then those of the tables in it, as TOML wants them."""
    tables = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            tables[name] = value
        elif name not in _NOT_ASKED or place:
            yield ""
            yield from _comment(field)
            yield _setting(name, value, is_given=name in settings.model_fields_set)
    for name, table in tables.items():
        yield ""
        yield from _comment(type(settings).model_fields[name])
        yield f"[{'.'.join([*place, name])}]"
        yield from _lines(table, (*place, name))


def _comment(field: FieldInfo) -> Iterator[str]:
    text = " ".join((field.description or "").replace("``", "").split())
    yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _setting(name: str, value: object, *, is_given: bool) -> str:
    if value is None:
        return f"#{name} =    # not set"
    return f"{'' if is_given else '#'}{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    """Return a value as TOML has it; a string of JSON is one of TOML, but for the last control character."""
    if isinstance(value, Settings):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        items = ", ".join(f"{_toml(str(name))} = {_toml(item)}" for name, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
