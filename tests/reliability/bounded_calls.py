"""What is called in processes of their own, with input that is small on disk and claims to be large, or unfolds."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401 - and pandas with it, which pyarrow imports when it first needs it: none of what is measured

from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.images.decode import decode_image
from pipelines.labeling.shard import LabelConfig, LabelJob, load_images
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.prompt_table import read_prompt_table
from pipelines.sources import parquet_values
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.image_batches import to_batches
from pipelines.sources.listing import list_batches
from pipelines.storage.store import open_store
from pipelines.table.quarantined import quarantined_images
from pipelines.types import ImageRef


def fetch_bytes(uri: str, num_bytes: int | None, max_bytes: int) -> int:
    """Fetch an image that was listed with this size; the number of its bytes."""
    ref = ImageRef(image_id="x", uri=uri, num_bytes=num_bytes)
    return len(fetch(ref, options=None, max_bytes=max_bytes, timeout_s=30, allow_http=True))


def fetch_all(
    path: str, column: str, rows: int, max_bytes: int, chunk_bytes: int = parquet_values.MAX_CHUNK_BYTES
) -> str:
    """Fetch the first rows of a Parquet file, of whose row groups so much is read; their sizes, or reasons why not."""
    parquet_values.MAX_CHUNK_BYTES = chunk_bytes
    sizes = []
    for row in range(rows):
        ref = ImageRef(image_id=str(row), uri=f"{path}#column={column}&row={row}")
        try:
            sizes.append(str(len(fetch(ref, options=None, max_bytes=max_bytes, timeout_s=30))))
        except FetchError as error:
            sizes.append(f"{error.reason}: {error}")
    return " ".join(sorted(set(sizes)))


def count_listed(source: str, **options: Any) -> int:
    """List a source; the number of its images."""
    return sum(batch.num_rows for batch in list_batches(source, **options))


def plan(source: str) -> int:
    """List, sort and cut a source; the number of its images."""
    with draft_plan(list_batches(source), PlanConfig()) as draft:
        return draft.num_images


def count_prompts(table: str) -> str:
    """Read a prompt table; how many rows make a prompt, and why others do not."""
    found = read_prompt_table(table)
    reasons = {rejected.reason for rejected in found.rejected}
    return f"{sum(map(len, found.by_image.values()))} {' '.join(sorted(reasons))}"


def read_truth(path: str, file_name: str | None = None) -> str:
    """Read a ground truth, and the objects of one of its images."""
    truth = read_ground_truth(path)
    if file_name is None:
        return type(truth).__name__
    objects: Any = getattr(truth, "objects", None) or getattr(truth, "segments")  # noqa: B009
    return str(len(objects(file_name)))


def decode(path: str) -> str:
    """Decode a file; its size."""
    return str(decode_image(Path(path).read_bytes(), ImageRef(image_id="x", uri=path)).size_hw)


def count_quarantined(output: str, run_id: str) -> int:
    """Go through the images that a retry would label again; how many there are."""
    return sum(batch.num_rows for batch in to_batches(quarantined_images(open_store(output), run_id)))


def take(num_bytes: int) -> int:
    """Hold some memory, as a measure of measuring."""
    held = bytearray(num_bytes)
    held[::4096] = b"x" * len(held[::4096])
    return len(held)


_M_MMAP_THRESHOLD = -3  # of malloc.h


def load_all(paths: Sequence[str], max_bytes_ahead: int) -> str:
    """Fetch and decode images ahead of a consumer that takes its time; how many there were of which kind.

    What is freed goes back to the system at once: glibc would keep blocks of up to 32 MB for each of its threads, as
    many as chance will have, and what is held could not be told from what is kept.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)
    refs = [ImageRef(image_id=path, uri=path, num_bytes=Path(path).stat().st_size) for path in paths]
    config = LabelConfig(max_bytes_ahead=max_bytes_ahead, load_threads=4)
    kinds = []
    for loaded in load_images(refs, LabelJob(run_id="r", prompts=(), config=config)):
        kinds.append(type(loaded.value).__name__)
        loaded.release()
        del loaded
    return " ".join(kinds)
