"""Read a listing beside what earlier runs have planned, both sorted by image id, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from pipelines.planning.external_sort import count_up_to
from pipelines.planning.plan_files import PLANNED

PLACE = pa.field("place", pa.int32(), nullable=False)
"""The place of the run that planned a row, among all runs."""
PLACED = pa.schema([PLACE, *PLANNED])


def side_by_side(
    listing: Iterable[pa.RecordBatch], planned: Sequence[Iterator[pa.RecordBatch]]
) -> Iterator[tuple[pa.RecordBatch | None, pa.Table]]:
    """Yield listed images together with all planned rows of the same ids, in order.

    Args:
        listing: sorted by ``image_id``.
        planned: rows of PLACED, each of them sorted by ``image_id`` and cut between ids.

    Yields:
        Listed images, None if there are none among the next ids; and the planned rows with these ids and those between
        them, not sorted.
    """
    listed, streams = _Stream(iter(listing)), [_Stream(one) for one in planned]
    while alive := [stream for stream in (listed, *streams) if stream.batch is not None]:
        # Behind it, a stream may have more than what is in memory.
        bound = min(stream.last for stream in alive)
        images = listed.take(bound)
        rows = [batch for stream in streams if (batch := stream.take(bound)) is not None]
        yield images, pa.Table.from_batches(rows, PLACED)


def between_ids(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut sorted batches anew, so that no two of them have rows of the same image."""
    held: pa.Table | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        table = pa.Table.from_batches([batch])
        table = table if held is None else pa.concat_tables([held, table])
        last = table["image_id"][-1].as_py()
        is_last = range(table.num_rows - 1, -1, -1)
        begun = next((row + 1 for row in is_last if table["image_id"][row].as_py() != last), 0)
        held = table.slice(begun)
        yield from table.slice(0, begun).combine_chunks().to_batches()
    if held is not None:
        yield from held.combine_chunks().to_batches()


class _Stream:
    """A stream of sorted batches; ``batch`` is what is left of the one in memory, and ``last`` the last id of it."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.batch: pa.RecordBatch | None = None
        self.last = ""
        self._load()

    def _load(self) -> None:
        self.batch = next((batch for batch in self._batches if batch.num_rows), None)
        if self.batch is not None:
            self.last = self.batch["image_id"][-1].as_py()

    def take(self, bound: str) -> pa.RecordBatch | None:
        """Take the rows up to an id out of the batch; None if there are none."""
        if self.batch is None or not (count := count_up_to(self.batch["image_id"], bound)):
            return None
        taken, rest = self.batch.slice(0, count), self.batch.slice(count)
        self.batch = rest
        if not rest.num_rows:
            self._load()
        return taken
