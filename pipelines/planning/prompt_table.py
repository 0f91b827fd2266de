"""Read prompts of single images (regions and sentences) from a table, and join them to the listed images.

Rows are checked one by one: a bad row is rejected with a reason, and its image is labeled with its other prompts.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import PromptTableError
from pipelines.masks.regions import describe_region, read_region
from pipelines.planning.exemplars.table import COLUMN as EXEMPLAR
from pipelines.planning.exemplars.table import is_exemplar
from pipelines.redaction import quoted, quoted_names, redacted, shown_name
from pipelines.sources.image_batches import with_prompts
from pipelines.sources.tabular import extension_of, has_decimal_commas, numbered_rows
from pipelines.sources.uri_lists import headless
from pipelines.types import REGION_TASKS, SENTENCE_TASKS, Prompt, Region, RejectedPrompt, Task

_IMAGE_COLUMNS = ("image_id", "uri")
_WHAT_COLUMNS = ("kind", "text")
_TEXTS = (*_IMAGE_COLUMNS, "prompt_id", *_WHAT_COLUMNS, "task", "label")
_TEXT_KIND = "text"
_MAX_EXAMPLES = 3
_MAX_NEAR = 1000
NOT_LISTED = "its image is not in the collection"
"""Why a row is rejected whose image is not listed."""
_MAX_TEXT_CHARS = 2**16  # far more than any model takes
# What a flag may look like: CSV has no booleans, and 1.0 is what pandas makes of 1 in a column with gaps.
_YES, _NO = ("true", "yes", "1", "1.0"), ("", "false", "no", "0", "0.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTable:
    """The prompts of a table.

    Attributes:
        by_image: accepted prompts by the image_id (or else the URI) in their row, as written.
        rejected: rows that are not valid prompts, in order.
        num_rows: rows read, valid or not, without exemplars.
    """

    by_image: Mapping[str, tuple[Prompt, ...]]
    rejected: tuple[RejectedPrompt, ...] = ()
    num_rows: int = 0


def read_prompt_table(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, taken: Collection[str] = ()
) -> PromptTable:
    """Read prompts of single images from CSV, TSV, JSON lines or Parquet; regions and sentences may be mixed.

    Columns of every row: ``image_id`` or ``uri``, ``prompt_id`` (unique within its image), and optionally ``task`` and
    ``label``.

    A region: ``kind`` (point, box, scribble, polygon, mask), ``coordinates`` (absolute pixels of the image after EXIF
    orientation, origin top left) or, for masks, ``segmentation`` (COCO RLE, ``{"size": [h, w], "counts": ...}``).
    Coordinates are flat numbers or ``[[x, y], ...]``; text holds them as a JSON list or separated by spaces, commas or
    semicolons. A box is x, y, width, height. The task is vgdseg (the default) or intseg, the label by default the
    prompt_id.

    A row with ``exemplar`` is asked of many images: see the module exemplars.table. It is passed over here.

    A sentence: ``text``, with ``kind`` left empty or "text". The task is refseg (the default), reaseg or chat;
    ``explain`` (true or false) asks for words beside the mask, for reaseg only. The label is by default the text.

    Args:
        uri: path or URI of the table.
        storage_options: fsspec options.
        taken: prompt ids that rows may not use, because they are asked of every image.

    Returns:
        The prompts, with category_id the position of the label among the sorted labels of all accepted prompts.

    Raises:
        PromptTableError: a required column is missing, or there are no rows.
        SourceError: the table cannot be read.
    """
    prompts: list[tuple[str, Prompt]] = []
    rejected: list[RejectedPrompt] = []
    first_lines: dict[tuple[str, str], int] = {}
    columns: dict[str, None] = {}
    num_rows, commas = 0, has_decimal_commas(uri, storage_options)
    for line, raw in numbered_rows(uri, storage_options, binary=("segmentation",)):
        # Collected from all rows: in JSON lines each row may have others.
        columns.update(dict.fromkeys(raw))
        if is_exemplar(raw):
            continue
        num_rows += 1
        image, prompt_id = _image_of(raw), _text(raw.get("prompt_id"))
        try:
            prompt = _read_row(raw, line, commas)
            if prompt_id in taken:
                raise ValueError("prompt_id is that of a prompt asked of every image")
            first = first_lines.setdefault((image, prompt_id), line)
            if first != line:
                raise ValueError(f"prompt_id is used twice for this image, first in {row_name(uri, first)}")
        except ValueError as error:
            reason = redacted(str(error))
            rejected.append(RejectedPrompt(row=line, prompt_id=prompt_id, image=shown_name(image), reason=reason))
        else:
            prompts.append((image, prompt))
    _check_columns(uri, columns)
    return PromptTable(by_image=_group(prompts), rejected=tuple(rejected), num_rows=num_rows)


class JoinedImages(Iterator[pa.RecordBatch]):
    """Batches of images with their own prompts attached, in unchanged order; made by ``join_prompts``.

    A name that no listed image has also means the one that is written otherwise: with / for \\, without ./ in front, or
    with accents as one character (NFC) for two (NFD).

    Attributes:
        examples: ids of the first images that were read, to show what ids look like.
        near: ids that differ from a name of the table only in case, by that name in lower case.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], table: PromptTable) -> None:
        """Prepare the join; nothing is read from ``batches`` until the first one is asked for."""
        self._batches = iter(batches)
        self._prompts = dict(table.by_image)
        self._spelled = {spelled: key for key in self._prompts if (spelled := _spelling(key)) not in self._prompts}
        self._named = pa.array([*self._prompts, *self._spelled], pa.string())
        self._twice: list[RejectedPrompt] = []
        self._is_exhausted = False
        self.examples: list[str] = []
        self.near: dict[str, str] = {}
        self._lower = pc.utf8_lower(self._named)

    def __next__(self) -> pa.RecordBatch:
        """Return the next batch; unchanged if the prompt table is empty."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self._is_exhausted = True
            raise
        if not len(self._named):
            return batch
        ids, uris = batch["image_id"], batch["uri"]
        self.examples += ids[: max(0, _MAX_EXAMPLES - len(self.examples))].to_pylist()
        is_plain = pc.all(pc.string_is_ascii(ids)).as_py()
        forms = (ids, uris) if is_plain else (ids, uris, pc.utf8_normalize(ids, "NFC"))
        lower = pc.utf8_lower(ids)
        for row in pc.indices_nonzero(pc.is_in(lower, self._lower)).to_pylist():
            if len(self.near) < _MAX_NEAR and ids[row].as_py() not in self._prompts:
                self.near.setdefault(lower[row].as_py(), ids[row].as_py())
        prompts: list[Sequence[Prompt]] = [()] * batch.num_rows
        is_named = functools.reduce(pc.or_, (pc.is_in(keys, self._named) for keys in forms))
        for row in pc.indices_nonzero(is_named).to_pylist():
            prompts[row] = self._prompts_of(ids[row].as_py(), uris[row].as_py())
        return with_prompts(batch, prompts)

    def _prompts_of(self, image_id: str, uri: str) -> list[Prompt]:
        by_id: dict[str, Prompt] = {}
        spelled = _spelling(image_id)
        for key in dict.fromkeys((image_id, uri, spelled, self._spelled.get(spelled, spelled))):
            # Popped, so that what is left at the end are the prompts whose image is not in the collection.
            for prompt in self._prompts.pop(key, ()):
                if by_id.setdefault(prompt.prompt_id, prompt) is not prompt:
                    reason = "prompt_id is used twice for this image, once by its image_id and once by its URI"
                    self._twice.append(RejectedPrompt.of(prompt, key, reason))
        return list(by_id.values())

    @property
    def rejected(self) -> tuple[RejectedPrompt, ...]:
        """Prompts that could not be joined, mostly because their image is not in the collection, sorted by row.

        Raises:
            RuntimeError: not all images have been read, so it is not known yet.
        """
        if not self._is_exhausted:
            raise RuntimeError("rejected prompts are known once all images have been read")
        lost = [
            RejectedPrompt.of(prompt, image, NOT_LISTED)
            for image, prompts in self._prompts.items()
            for prompt in prompts
        ]
        return tuple(sorted([*self._twice, *lost], key=lambda rejected: rejected.row))


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def join_prompts(batches: Iterable[pa.RecordBatch], table: PromptTable) -> JoinedImages:
    """Attach a table's prompts to the images they name, by image_id or else by URI.

    Args:
        batches: listed images, see image_batches; consumed lazily.
        table: prompts of single images.

    Returns:
        An iterator of the same batches, with a column ``prompts`` if the table holds any. Its ``rejected`` is known
        once it is exhausted.
    """
    return JoinedImages(batches, table)


def _group(prompts: Sequence[tuple[str, Prompt]]) -> dict[str, tuple[Prompt, ...]]:
    """Number the labels of all prompts, and group the prompts by image."""
    # Sorted, so that numbers do not depend on the order of rows.
    names = sorted({prompt.category_name for _, prompt in prompts})
    numbers = {name: number for number, name in enumerate(names)}
    by_image: dict[str, list[Prompt]] = {}
    for image, prompt in prompts:
        by_image.setdefault(image, []).append(replace(prompt, category_id=numbers[prompt.category_name]))
    return {image: tuple(own) for image, own in by_image.items()}


def _check_columns(uri: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if not columns:
        raise PromptTableError(f"{uri}: the prompt table has no rows")
    if EXEMPLAR in columns:
        return  # rows of exemplars need fewer columns, and the others are rejected one by one
    missing = [] if "prompt_id" in columns else ["prompt_id"]
    for either in (_IMAGE_COLUMNS, _WHAT_COLUMNS):
        if not any(name in columns for name in either):
            missing.append(" or ".join(either))
    if missing:
        advice = headless(columns) or "docs/configuration.md says what each is"
        raise PromptTableError(
            f"{uri}: the prompt table has no column {', '.join(missing)}; it has {quoted_names(columns)}. {advice}"
        )


def _image_of(raw: Mapping[str, Any]) -> str:
    return next((text for name in _IMAGE_COLUMNS if (text := _text(raw.get(name)))), "")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def row_name(uri: str | None, row: int) -> str:
    """Return how messages name a row of a prompt table: by its line in the file, or in Parquet by its place, from 1."""
    return f"{'row' if uri and extension_of(uri) == '.parquet' else 'line'} {row}"


def _read_row(raw: Mapping[str, Any], line: int, commas: bool) -> Prompt:
    """Read one row; the label is not numbered yet.

    Raises:
        ValueError: the row is not a valid prompt; the message says why.
    """
    prompt_id, text, kind = _text(raw.get("prompt_id")), _text(raw.get("text")).strip(), _text(raw.get("kind")).strip()
    if wrong := next((name for name in _TEXTS if isinstance(raw.get(name), list | dict)), None):
        raise ValueError(f"{wrong} is no text: {quoted(raw[wrong])}")
    if not _image_of(raw):
        raise ValueError("names no image: image_id and uri are empty")
    if not prompt_id:
        raise ValueError("has no prompt_id")
    if not kind and not text:
        raise ValueError("asks nothing: kind and text are empty")
    region: Region | None = None
    if kind.lower() == _TEXT_KIND or (text and not kind):
        task = _task(raw, SENTENCE_TASKS, "a text")
        _check_sentence(raw, text)
    else:
        task = _task(raw, REGION_TASKS, "a region")
        if text:
            raise ValueError(f"has both a text and the region of a {kind}; give each a row of its own")
        region = read_region(
            kind,
            coordinates=raw.get("coordinates"),
            segmentation=raw.get("segmentation"),
            has_decimal_commas=commas,
        )
    explain = _read_flag(raw.get("explain"))
    if explain and task != "reaseg":
        raise ValueError(f"explain goes with the task reaseg, not with {task}")
    return Prompt(
        prompt_id=prompt_id,
        task=task,
        text=describe_region(region) if region else text,
        category_id=-1,
        category_name=_text(raw.get("label")) or text or prompt_id,
        region=region,
        explain=explain,
        source_row=line,
    )


def _task(raw: Mapping[str, Any], allowed: Sequence[Task], what: str) -> Task:
    """Return the task that a row names; by default the first of those allowed."""
    word = _text(raw.get("task")).strip().lower() or allowed[0]
    if word not in allowed:
        raise ValueError(f"task {quoted(word)} does not take {what}; those that do: {', '.join(allowed)}")
    return cast(Task, word)


def _check_sentence(raw: Mapping[str, Any], text: str) -> None:
    if not text:
        raise ValueError("kind is text, but the text is empty")
    if len(text) > _MAX_TEXT_CHARS:
        raise ValueError(f"the text has {len(text):,} characters; at most {_MAX_TEXT_CHARS:,}")
    for name in ("coordinates", "segmentation"):
        if raw.get(name):
            raise ValueError(f"has both a text and {name}, but no kind of region; give each a row of its own")


def _read_flag(value: Any) -> bool:
    word = _text(value).strip().lower()
    if word not in (*_YES, *_NO):
        raise ValueError(f"explain is {quoted(value)}; allowed: true, false")
    return word in _YES
