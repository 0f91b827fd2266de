"""Visual prompts from a table: read, checked row by row, and joined to the listed images.

A bad row costs only itself: it ends among the rejected with its reason, and its image is labelled with the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipelines.regions import check_region, describe_region, read_region
from pipelines.tabular import SourceError, read_rows
from pipelines.types import ImageRef, Prompt, Region, RejectedPrompt

__all__ = ["JoinedImages", "PromptTable", "PromptTableError", "check_region", "join_prompts", "read_prompt_table"]

_IMAGE_COLUMNS = ("image_id", "uri")
_REQUIRED_COLUMNS = ("prompt_id", "kind")


class PromptTableError(SourceError):
    """A prompt table that cannot be used as a whole; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTable:
    """The visual prompts of a table.

    Attributes:
        by_image: accepted prompts by the image_id, or else the URI, that their row names, as written.
        rejected: rows that make no prompt, in order.
        num_rows: rows read, good and bad.
    """

    by_image: Mapping[str, tuple[Prompt, ...]]
    rejected: tuple[RejectedPrompt, ...] = ()
    num_rows: int = 0


class _Row(NamedTuple):
    image: str
    prompt_id: str
    label: str
    region: Region


def read_prompt_table(uri: str, storage_options: Mapping[str, Any] | None = None) -> PromptTable:
    """Read visual prompts from CSV, TSV, JSON lines or Parquet.

    Columns: ``image_id`` or ``uri``, ``prompt_id`` (unique within its image), ``kind`` (point, box, scribble, polygon,
    mask), ``coordinates`` (absolute pixels of the image after EXIF orientation, origin top left), ``label`` (by default
    the prompt_id) and, for masks, ``segmentation`` (COCO RLE, ``{"size": [h, w], "counts": ...}``). Coordinates are
    flat numbers or ``[[x, y], ...]``; text holds them as a JSON list or separated by spaces, commas or semicolons.
    A box is x, y, width, height.

    Args:
        uri: path or URI of the table.
        storage_options: fsspec options.

    Returns:
        The prompts, with task ``vgdseg`` and category_id the position of the label among the sorted labels of all
        accepted prompts.

    Raises:
        PromptTableError: a required column is missing, or there are no rows.
        SourceError: the table cannot be read.
    """
    rows: list[_Row] = []
    rejected: list[RejectedPrompt] = []
    first_rows: dict[tuple[str, str], int] = {}
    columns: dict[str, None] = {}
    number = -1
    for number, raw in enumerate(read_rows(uri, storage_options)):
        columns.update(dict.fromkeys(raw))
        image, prompt_id = _image_of(raw), _text(raw.get("prompt_id"))
        try:
            row = _read_row(raw, number)
            first = first_rows.setdefault((image, prompt_id), number)
            if first != number:
                raise ValueError(f"prompt_id is used twice for this image, first in row {first}")
        except ValueError as error:
            rejected.append(RejectedPrompt(row=number, prompt_id=prompt_id, image=image, reason=str(error)))
        else:
            rows.append(row)
    _check_columns(uri, columns)
    return PromptTable(by_image=_group(rows), rejected=tuple(rejected), num_rows=number + 1)


class JoinedImages(Iterator[ImageRef]):
    """Images with their visual prompts attached, in the order they came; made by ``join_prompts``."""

    def __init__(self, refs: Iterable[ImageRef], table: PromptTable) -> None:
        """Nothing is read from refs until the first image is asked for."""
        self._refs = iter(refs)
        self._prompts = dict(table.by_image)
        self._twice: list[RejectedPrompt] = []
        self._is_exhausted = False

    def __next__(self) -> ImageRef:
        """Return the next image; one without prompts comes back as it is."""
        try:
            ref = next(self._refs)
        except StopIteration:
            self._is_exhausted = True
            raise
        by_id: dict[str, Prompt] = {}
        for key in (ref.image_id, ref.uri):
            for prompt in self._prompts.pop(key, ()):
                if by_id.setdefault(prompt.prompt_id, prompt) is not prompt:
                    reason = "prompt_id is used twice for this image, once by its image_id and once by its URI"
                    self._twice.append(_reject(prompt, key, reason))
        return replace(ref, regions=(*ref.regions, *by_id.values())) if by_id else ref

    @property
    def rejected(self) -> tuple[RejectedPrompt, ...]:
        """Prompts that could not be joined, above all those whose image is not in the collection, by row.

        Raises:
            RuntimeError: images are still left, so it cannot be known yet.
        """
        if not self._is_exhausted:
            raise RuntimeError("rejected prompts are known once all images have been read")
        lost = [
            _reject(prompt, image, "its image is not in the collection")
            for image, prompts in self._prompts.items()
            for prompt in prompts
        ]
        return tuple(sorted([*self._twice, *lost], key=lambda rejected: rejected.row))


def join_prompts(refs: Iterable[ImageRef], table: PromptTable) -> JoinedImages:
    """Attach a table's prompts to the images they name, by image_id or else by URI.

    Args:
        refs: listed images; consumed lazily.
        table: visual prompts.

    Returns:
        An iterator of the same images with ``regions`` set; its ``rejected`` is known once it is exhausted.
    """
    return JoinedImages(refs, table)


def _reject(prompt: Prompt, image: str, reason: str) -> RejectedPrompt:
    row = prompt.region.source_row if prompt.region else -1
    return RejectedPrompt(row=row, prompt_id=prompt.prompt_id, image=image, reason=reason)


def _group(rows: Sequence[_Row]) -> dict[str, tuple[Prompt, ...]]:
    labels = {label: index for index, label in enumerate(sorted({row.label for row in rows}))}
    by_image: dict[str, list[Prompt]] = {}
    for row in rows:
        prompt = Prompt(
            prompt_id=row.prompt_id,
            task="vgdseg",
            text=describe_region(row.region),
            category_id=labels[row.label],
            category_name=row.label,
            region=row.region,
        )
        by_image.setdefault(row.image, []).append(prompt)
    return {image: tuple(prompts) for image, prompts in by_image.items()}


def _check_columns(uri: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if not columns:
        raise PromptTableError(f"{uri}: the prompt table has no rows")
    missing = [name for name in _REQUIRED_COLUMNS if name not in columns]
    if not any(name in columns for name in _IMAGE_COLUMNS):
        missing.insert(0, " or ".join(_IMAGE_COLUMNS))
    if missing:
        raise PromptTableError(
            f"{uri}: the prompt table has no column {', '.join(missing)}; it has {', '.join(columns)}"
        )


def _image_of(raw: Mapping[str, Any]) -> str:
    return next((text for name in _IMAGE_COLUMNS if (text := _text(raw.get(name)))), "")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_row(raw: Mapping[str, Any], number: int) -> _Row:
    """Read one row; a ValueError says what is wrong with it."""
    image, prompt_id = _image_of(raw), _text(raw.get("prompt_id"))
    if not image:
        raise ValueError("names no image: image_id and uri are empty")
    if not prompt_id:
        raise ValueError("has no prompt_id")
    region = read_region(
        _text(raw.get("kind")), coordinates=raw.get("coordinates"), segmentation=raw.get("segmentation"), row=number
    )
    return _Row(image, prompt_id, _text(raw.get("label")) or prompt_id, region)
