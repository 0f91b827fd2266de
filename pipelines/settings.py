"""What every class of settings is: frozen, without unknown keys, its fields described for forms by their docstrings."""

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
        """Return these settings with some of them changed, all of them checked again."""
        return type(self)(**{**dict(self), **changes})
