"""The base class of all settings: frozen, no unknown keys, and the fields' docstrings describe them in forms."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of what a person may set.

    Raises:
        pydantic.ValidationError: a ValueError: an unknown key, a missing field, a wrong type or value.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # what was given may hold a secret
    )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, and all of them validated again."""
        # Not model_copy(update=...), which validates nothing.
        return type(self)(**{**dict(self), **changes})
