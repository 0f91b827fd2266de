"""One of the two sides that are compared: the rows of a run, or the current rows of an output, image by image."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from pipelines.query.database import count_forgotten, open_database, rows_of
from pipelines.query.fence import sql_literal
from pipelines.query.files import query_errors
from pipelines.query.row_agreement import check_agreement
from pipelines.query.select_text import read_condition
from pipelines.query.user_select import condition_errors, masks_that_fit
from pipelines.redaction import counted, quoted
from pipelines.storage.store import Store
from pipelines.types import Rle, Status

_BATCH_ROWS = 4096
# Of each side. DuckDB sorts within it and spills beyond; each of its threads needs about 125 MB.
_MEMORY_LIMIT, _MAX_THREADS = "700MB", 2
# Ids of images that are handed from one side to the other, so that of a large one only these are read.
_FEW = 100_000
_IMAGES = """
SELECT image_id, uri, height, width, status, content_sha256, run_id,
    list_transform(list_filter(per_prompt, lambda entry: entry.n IS NOT NULL), lambda entry: entry.prompt_id)
FROM {images} {chosen} ORDER BY image_id
"""
_MASKS = """
SELECT image_id, annotation_id, prompt_id, task, category_name, score, source, run_id, area,
    segmentation.size[1], segmentation.size[2], segmentation.counts
FROM {masks} {chosen} ORDER BY image_id, score DESC, annotation_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideMask:
    """A mask of one side; fields are columns of ``annotations``."""

    annotation_id: str
    prompt_id: str
    task: str
    category_name: str
    score: float
    source: str
    run_id: str
    area: int
    segmentation: Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class SideImage:
    """An image of one side.

    Attributes:
        image_id, uri, run_id, content_sha256: columns of ``images``.
        size_hw: (height, width); None if it was never decoded.
        is_quarantined: whether it could not be labeled, and no prompt was answered about it.
        answered: ids of the prompts that were answered about it.
        masks: best first.
    """

    image_id: str
    uri: str
    run_id: str
    content_sha256: str | None
    size_hw: tuple[int, int] | None
    is_quarantined: bool
    answered: tuple[str, ...]
    masks: tuple[SideMask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What one side is.

    Attributes:
        store: the output.
        run_id: one run; None for the current rows of all.
        without_run: a run whose rows do not count.
        images_of: a run whose images alone are compared.
    """

    store: Store
    run_id: str | None = None
    without_run: str | None = None
    images_of: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return plain JSON values."""
        names = {"run_id": self.run_id, "without_run": self.without_run, "images_of": self.images_of}
        return {"output": self.store.uri, **names}

    def __str__(self) -> str:
        """Return it in words."""
        if self.run_id is not None:
            return f"run {self.run_id} of {self.store.uri}"
        when = f" before run {self.without_run}" if self.without_run else ""
        when = f" now, of the images of run {self.images_of}" if self.images_of else when
        return f"what is current in {self.store.uri}{when}"


class Side:
    """Reads one side; a context manager.

    Args:
        chosen: what it is.
        folder: existing folder for data that does not fit into memory.
        where: SQL condition on masks, over the columns of ``annotations`` and those that MASK_COLUMNS adds.
    """

    def __init__(self, chosen: Chosen, folder: Path, where: str = "") -> None:
        self.chosen = chosen
        self._where = where
        own_files = read_condition("--where", where) if where else ()
        folder.mkdir()
        self._database = open_database(
            chosen.store,
            own_files=own_files,
            memory_limit=_MEMORY_LIMIT,
            max_threads=min(_MAX_THREADS, os.cpu_count() or 1),
            folder=folder,
            without_run=chosen.without_run,
        )
        self._images = rows_of("images", chosen.run_id)
        self._masks = masks_that_fit(chosen.run_id, where)
        self._of_some = ""
        if chosen.images_of is not None:
            self._want(f"SELECT image_id FROM {rows_of('images', chosen.images_of)}")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._database.close)
            with query_errors(self.chosen.store):
                check_agreement(self._database, self.chosen.store, self.chosen.run_id)
                with self._condition():
                    self._database.sql(f"SELECT 1 FROM {self._masks}")
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def num_images(self) -> int:
        """Return how many images it has."""
        return int(self._fetch(f"SELECT count(*) FROM {self._images} {self._of_some}")[0][0])

    def some_ids(self, count: int = 3) -> list[str]:
        """Return the first ids of its images."""
        return [row[0] for row in self._fetch(f"SELECT image_id FROM {self._images} ORDER BY 1 LIMIT {count}")]

    def few_ids(self) -> pa.Table | None:
        """Return the ids of its images if they are few, to be given to ``restrict`` of the other side."""
        if self.num_images() > _FEW:
            return None
        ids = [row[0] for row in self._fetch(f"SELECT image_id FROM {self._images} {self._of_some}")]
        return pa.table({"image_id": pa.array(ids, pa.string())})

    def restrict(self, image_ids: pa.Table | None) -> None:
        """Read only these images from now on; None for all that were read so far."""
        if image_ids is not None and not self._of_some:
            self._database.register("ids_to_keep", image_ids)
            self._want("SELECT image_id FROM ids_to_keep")
            self._database.unregister("ids_to_keep")

    def _want(self, query: str) -> None:
        # A table, since what is registered is not seen by other cursors.
        with query_errors(self.chosen.store):
            self._database.execute(f"CREATE TABLE wanted_images AS {query}")
        self._of_some = "SEMI JOIN wanted_images USING (image_id)"

    def images(self) -> Iterator[SideImage]:
        """Yield its images with their masks in the order of their ids, a batch in memory at a time.

        Raises:
            SourceError: the condition cannot be evaluated.
            StorageError: the rows cannot be read.
        """
        with query_errors(self.chosen.store), self._condition():
            images = self._rows(_IMAGES.format(images=self._images, chosen=self._of_some))
            masks = self._rows(_MASKS.format(masks=self._masks, chosen=self._of_some))
            by_image = itertools.groupby(masks, key=lambda row: row[0])
            image_id, group = next(by_image, (None, iter(())))
            # Lists of prompts are alike in most images.
            known: dict[tuple[str, ...], tuple[str, ...]] = {}
            for row in images:
                found: tuple[SideMask, ...] = ()
                if image_id == row[0]:
                    found = tuple(map(_mask, group))
                    image_id, group = next(by_image, (None, iter(())))
                answered = tuple(row[7] or ())
                if len(known) < _BATCH_ROWS:
                    answered = known.setdefault(answered, answered)
                yield _image(row, answered, found)

    def prompts(self) -> set[str]:
        """Return the ids of the prompts that its runs asked of every image."""
        return {row[0] for row in self._fetch(f"SELECT DISTINCT unnest(prompts) FROM {self._runs}")}

    def notes(self) -> list[str]:
        """Return what is to be known of its runs: unfinished ones, and that a run holds corrections."""
        query = f"SELECT run_id, committed_shards, shards FROM {self._runs} WHERE committed_shards < shards"
        told = [
            f"run {run_id} is not finished: what is committed is compared, {committed:,} of {counted(shards, 'shard')}"
            for run_id, committed, shards in self._fetch(query)
        ]
        run_id = self.chosen.run_id or self.chosen.images_of
        imported = (
            []
            if run_id is None
            else self._fetch(f"SELECT imported FROM runs WHERE imported IS NOT NULL AND run_id = {sql_literal(run_id)}")
        )
        for (file,) in imported:
            what = "; it answers nothing but what was corrected" if self.chosen.run_id else ""
            told.append(f"run {run_id} holds corrections by people, of {quoted(file)}{what}")
        with query_errors(self.chosen.store):
            forgotten = count_forgotten(self._database, self.chosen.run_id)
        if forgotten:
            what = counted(forgotten, "image was", "images were")
            told.append(f"{what} forgotten on request, of {self.chosen}; nothing of them is left to compare")
        return told

    @property
    def _runs(self) -> str:
        """The SQL to put after FROM for its runs."""
        run_id = self.chosen.run_id
        return "runs" if run_id is None else f"(FROM runs WHERE run_id = {sql_literal(run_id)})"

    def _condition(self) -> AbstractContextManager[None]:
        return condition_errors("--where") if self._where else nullcontext()

    def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        with query_errors(self.chosen.store):
            return list(self._database.execute(query).fetchall())

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        # A cursor of its own: images and masks are read side by side.
        result = self._database.cursor().execute(query)
        while batch := result.fetchmany(_BATCH_ROWS):
            yield from batch


def _image(row: tuple[Any, ...], answered: tuple[str, ...], masks: tuple[SideMask, ...]) -> SideImage:
    image_id, uri, height, width, status, content_sha256, run_id, _ = row
    return SideImage(
        image_id=image_id,
        uri=uri,
        run_id=run_id,
        content_sha256=content_sha256,
        size_hw=None if width is None else (height, width),
        is_quarantined=status == Status.QUARANTINED.value and not answered,
        answered=answered,
        masks=masks,
    )


def _mask(row: tuple[Any, ...]) -> SideMask:
    _, annotation_id, prompt_id, task, category_name, score, source, run_id, area, height, width, counts = row
    return SideMask(
        annotation_id=annotation_id,
        prompt_id=prompt_id,
        task=task,
        category_name=category_name,
        score=score,
        source=source,
        run_id=run_id,
        area=area,
        segmentation=Rle(size_hw=(height, width), counts=counts),
    )
