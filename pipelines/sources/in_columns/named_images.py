"""Batches of the images that a list, table or COCO file names, made of columns of ids, URIs and further values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import SourceError
from pipelines.sources.image_batches import LISTED
from pipelines.sources.in_columns.plain_uris import plain_uris

MAX_NAME_CHARS = 2**16


@dataclass(slots=True)
class NamedImages:
    """Makes batches of the images of one source, in its order.

    Attributes:
        source: for messages.
        folder: what relative URIs are relative to, see ``plain_uris``.
        num_images: in the batches so far.
    """

    source: str
    folder: str
    num_images: int = 0

    def batch(
        self,
        ids: pa.StringArray,
        written: pa.StringArray,
        resolve: Callable[[int], str | None],
        *,
        is_odd: NDArray[np.bool_] | None = None,
        source_columns: pa.StringArray | None = None,
    ) -> pa.RecordBatch:
        """Return the next images.

        Args:
            ids: of each row.
            written: the URI as written, or null.
            resolve: returns the absolute URI of a row that is not plain, or None if it names no image; it may raise a
                SourceError.
            is_odd: rows for which ``resolve`` is asked although their URI may be plain.
            source_columns: of each row; by default null.

        Raises:
            SourceError: as ``resolve`` raises it, or an id or URI is too long to be any; of several the first.
        """
        uris, is_plain = plain_uris(written, self.folder)
        is_left = ~is_plain if is_odd is None else ~is_plain | is_odd
        num_rows, failed, resolved = len(ids), None, list[str | None]()
        for row in np.flatnonzero(is_left).tolist():
            try:
                resolved.append(resolve(row))
            except SourceError as error:
                num_rows, failed = row, error
                break
        uris = pc.replace_with_mask(uris[:num_rows], pa.array(is_left[:num_rows]), pa.array(resolved, pa.string()))
        others = pa.nulls(len(ids), pa.string()) if source_columns is None else source_columns
        nothing = [pa.nulls(num_rows, LISTED.field(name).type) for name in ("num_bytes", "etag")]
        batch = pa.RecordBatch.from_arrays([ids[:num_rows], uris, *nothing, others[:num_rows]], schema=LISTED)
        batch = batch.filter(batch["uri"].is_valid()) if None in resolved else batch
        self._check_lengths(batch)
        if failed is not None:
            raise failed
        self.num_images += batch.num_rows
        return batch

    def _check_lengths(self, batch: pa.RecordBatch) -> None:
        names = [batch["image_id"], batch["uri"]]
        if max(pc.max(pc.binary_length(one)).as_py() or 0 for one in names) <= MAX_NAME_CHARS:
            return
        is_long = pc.or_(*(pc.greater(pc.utf8_length(one), MAX_NAME_CHARS) for one in names))
        if (row := pc.index(is_long, True).as_py()) >= 0:
            raise too_long(self.source, self.num_images + row, batch["image_id"][row].as_py())


def too_long(source: str, number: int, image_id: str) -> SourceError:
    """Return the error of an image with an id or URI that is too long to be any."""
    return SourceError(
        f"{source}: image {number:,} (from 0) has an id or a URI of more than {MAX_NAME_CHARS:,} characters, "
        f"{image_id[:40]!r}...; see source.image_id_column and source.uri_column"
    )
