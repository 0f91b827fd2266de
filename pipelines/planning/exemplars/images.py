"""The file of a plan that keeps the bytes of its exemplars' images, so that the run needs them nowhere else."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store

_SCHEMA = pa.schema(
    [pa.field("sha256", pa.string(), nullable=False), pa.field("image", pa.large_binary(), nullable=False)]
)


def exemplar_file(images: Mapping[str, bytes]) -> bytes:
    """Return the file with these images, by SHA-256; the same bytes for the same images."""
    rows = sorted(images.items())
    table = pa.table([[name for name, _ in rows], [data for _, data in rows]], schema=_SCHEMA)
    buffer = io.BytesIO()
    # Images are compressed already.
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def read_exemplar_file(data: bytes) -> dict[str, bytes]:
    """Return the images of such a file by SHA-256."""
    table = pq.read_table(io.BytesIO(data), schema=_SCHEMA)
    return dict(zip(table["sha256"].to_pylist(), table["image"].to_pylist(), strict=True))


def exemplar_images(store: Store, plan: Plan) -> dict[str, bytes]:
    """Return the images of a plan's exemplars by SHA-256, without those that were forgotten.

    Raises:
        DamagedError: the file is missing, or is not what the plan says.
    """
    if plan.exemplars is None:
        return {}
    with plan.open_part(store, plan.exemplars) as data:
        images = read_exemplar_file(data)
    for name, image in images.items():
        if hashlib.sha256(image).hexdigest() != name:
            raise DamagedError(
                f"{store.uri}: the plan of run {plan.run_id} has another image of an exemplar than it says"
            )
    return images
