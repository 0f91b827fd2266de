"""The images of an output that a condition names, as a listing of them: what is to be labeled again."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import SourceError
from pipelines.query.database import open_database
from pipelines.query.files import query_errors
from pipelines.query.select_text import read_condition
from pipelines.query.user_select import condition_errors, describe_views
from pipelines.sources.image_batches import BATCH_SIZE, LISTED
from pipelines.storage.store import Store
from pipelines.types import Status

_NAMED = f"""
SELECT image_id, uri,
    CASE WHEN status <> '{Status.QUARANTINED}' THEN num_bytes END AS num_bytes,
    CASE WHEN status <> '{Status.QUARANTINED}' THEN etag END AS etag,
    source_columns, coalesce(image_version, 1) AS version, coalesce(len(corrections), 0) > 0 AS is_corrected
FROM images WHERE ({{where}}
)
"""
_SCHEMA = LISTED.append(pa.field("version", pa.int32()))


class NothingNamedError(SourceError):
    """No image fits a condition."""


class NamedImages:
    """The images that a condition names.

    Args:
        store: the output.
        where: SQL condition over the columns of ``images``.
        option: its name in errors.

    Attributes:
        num_corrected: how many of them people have corrected; complete once all batches have been read.
    """

    def __init__(self, store: Store, where: str, option: str = "--where") -> None:
        self._store, self._where, self._option = store, where, option
        self.num_corrected = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield them in batches of LISTED and ``version``, a batch in memory at a time.

        Size and version tag are those that they were labeled with, by which a tar or table that has changed is noticed.
        Of quarantined images they are left out, since the file may have been mended.

        Raises:
            SourceError: the condition is none; the message names the columns that there are.
            NothingNamedError: no image fits.
            StorageError: the output cannot be read.
        """
        own_files = read_condition(self._option, self._where)
        is_any = False
        with query_errors(self._store), open_database(self._store, own_files=own_files) as database:
            known = describe_views(database, "images")
            with condition_errors(self._option, known=known):
                found = database.sql(_NAMED.format(where=self._where))
                for batch in found.to_arrow_reader(BATCH_SIZE):
                    is_any = is_any or batch.num_rows > 0
                    self.num_corrected += pc.sum(batch["is_corrected"]).as_py() or 0
                    yield pa.RecordBatch.from_arrays(
                        [batch[field.name].cast(field.type) for field in _SCHEMA], schema=_SCHEMA
                    )
        if not is_any:
            raise NothingNamedError(f"no image of {self._store.uri} fits {self._option}")
