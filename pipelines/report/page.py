"""Pages: one HTML file with its style inside, and the pictures with legends that templates show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.report.pictures import Picture
from pipelines.report.samples import Card

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of a picture's legend."""

    color: str
    name: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A card with its picture and legend, as the template shows it.

    Attributes:
        error: why the image is quarantined, without the reason, which the template names.
        missing: why there is no picture, or why its masks are not drawn, unless that is the same error.
        note: what else is told under it.
    """

    card: Card
    picture: Picture
    alt: str
    legend: tuple[Entry, ...] = ()
    more: int = 0
    error: str | None = None
    missing: str | None = None
    note: str | None = None


def render_page(template: Path, **values: Any) -> str:
    """Render a template, which may extend and import those of this folder.

    Args:
        template: file of the template.
        values: what it shows.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": _moment, "hash": lambda text: text[:12]}
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(style=style, **values)


def _moment(text: str | None) -> str:
    """Return an ISO 8601 time in a readable form."""
    return "" if text is None else text.replace("T", " ").replace("+00:00", " UTC")
