"""Exemplars in a prompt table: the rows that name, in the column ``exemplar``, the image that their region is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.errors import PromptTableError
from pipelines.masks.regions import read_region
from pipelines.planning.exemplars.config import ExemplarConfig
from pipelines.redaction import quoted
from pipelines.sources.tabular import extension_of, has_decimal_commas, numbered_rows

COLUMN = "exemplar"


def is_exemplar(raw: Mapping[str, Any]) -> bool:
    """Return whether a row of a prompt table is an exemplar."""
    return bool(_text(raw, COLUMN))


def table_exemplars(uri: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[ExemplarConfig]:
    """Read the exemplars of a prompt table, in order; of a table without that column only its beginning is read.

    A row has the columns ``exemplar``, ``kind`` and ``coordinates`` or ``segmentation``, and ``label`` (by default its
    ``prompt_id``). ``image_id`` (or ``uri``) is a pattern of the images that it is asked of; all if it is empty.

    Raises:
        PromptTableError: a row is no exemplar. Unlike a prompt of one image it is not left out, since every image
            would be asked without it.
        SourceError: the table cannot be read.
    """
    commas = has_decimal_commas(uri, storage_options)
    # In JSON lines each row may have other columns.
    has_header = extension_of(uri) not in (".jsonl", ".ndjson")
    for line, raw in numbered_rows(uri, storage_options, binary=("segmentation",)):
        if has_header and COLUMN not in raw:
            return
        if is_exemplar(raw):
            try:
                yield _read(raw, commas)
            except ValueError as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                where = "row" if extension_of(uri) == ".parquet" else "line"
                raise PromptTableError(f"{uri}: {where} {line}, an exemplar: {reason}") from None


def _read(raw: Mapping[str, Any], commas: bool) -> ExemplarConfig:
    label, prompt_id = _text(raw, "label"), _text(raw, "prompt_id")
    if label and prompt_id and label != prompt_id:
        raise ValueError(
            f"has the label {quoted(label)} and the prompt_id {quoted(prompt_id)}; an exemplar is known by its label "
            "alone: leave prompt_id empty"
        )
    if (task := _text(raw, "task").lower()) not in ("", "vgdseg"):
        raise ValueError(f"task {quoted(task)} takes no exemplar; vgdseg does")
    if _text(raw, "text"):
        raise ValueError("has a text, too; give it a row of its own")
    region = read_region(
        _text(raw, "kind"),
        coordinates=raw.get("coordinates"),
        segmentation=raw.get("segmentation"),
        has_decimal_commas=commas,
    )
    return ExemplarConfig(
        label=label or prompt_id,
        image=_text(raw, COLUMN),
        kind=region.kind,
        coordinates=region.coordinates,
        segmentation=region.mask.to_coco() if region.mask else None,
        images=_text(raw, "image_id") or _text(raw, "uri"),
    )


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    return "" if value is None else str(value).strip()
