"""What pydantic is told of every dataclass of settings: unknown keys are refused, forms show its docstring's words."""

from __future__ import annotations

from typing import Any


def _describe(schema: dict[str, Any], settings: type) -> None:
    """Give each field of a JSON schema the words that the class's docstring has for it under "Attributes".

    Args:
        schema: of the class; changed in place.
        settings: the dataclass, with a Google style docstring.
    """
    import docstring_parser

    parsed = docstring_parser.parse(settings.__doc__ or "", style=docstring_parser.DocstringStyle.GOOGLE)
    schema["description"] = parsed.short_description or ""
    for param in parsed.params:
        words = " ".join((param.description or "").split())
        for name in param.arg_name.split(", "):
            if name in schema["properties"]:
                schema["properties"][name]["description"] = words[:1].upper() + words[1:]


SETTINGS: dict[str, Any] = {"extra": "forbid", "json_schema_extra": _describe}
