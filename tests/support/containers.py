"""Files that hold images, as the tests write them: tars, Parquet with bytes, and how all forms are labeled alike."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.labeling.shard import LabelJob, label_shard
from pipelines.planning.draft import PlanConfig
from pipelines.sources.fetch import fetch
from pipelines.sources.listing import list_images
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import ImageRef
from tests.support.fakes import BrightPredictor, half_bright, png, text_prompt
from tests.support.labeled import RUN, plan_run

if TYPE_CHECKING:
    from datasets import Dataset


def picture(number: int) -> bytes:
    """A PNG of a size and brightness of its own."""
    return png(half_bright(width=20 + number % 7, height=12 + number % 5, bright_columns=1 + number % 9))


def tar_bytes(members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, **options))
    return path


def parquet_bytes(columns: Mapping[str, Any], **options: Any) -> bytes:
    """A Parquet file with these columns."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def dataset(pictures: Mapping[str, bytes], **columns: list[int]) -> Dataset:
    """A dataset of the `datasets` library: images by their names without the suffix, and columns beside them."""
    import datasets

    datasets.disable_progress_bars()
    features = {"image": datasets.Image(), **{name: datasets.Value("int64") for name in columns}}
    images = [{"bytes": data, "path": f"{name}.png"} for name, data in pictures.items()]
    return datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))


def content(ref: ImageRef, max_bytes: int = 10**6) -> bytes:
    """The bytes of a listed image."""
    return fetch(ref, options=None, max_bytes=max_bytes, timeout_s=30)


def listed(source: Any, **options: Any) -> dict[str, ImageRef]:
    """The images of a source by id, none of which occurs twice."""
    refs = list(list_images(str(source), **options))
    by_id = {ref.image_id: ref for ref in refs}
    assert len(by_id) == len(refs)
    return by_id


def label_all(source: str, output: str, **options: Any) -> dict[str, dict[str, Any]]:
    """List, plan, label and commit a source; the rows of ``images`` by id."""
    store = open_store(output)
    _, shards = plan_run(store, RUN, list_images(source, **options), PlanConfig(images_per_shard=3))
    job = LabelJob(
        run_id=RUN, prompts=(text_prompt("spot"),), source_options=dict(options.get("storage_options") or {})
    )
    for shard in shards:
        label_shard(shard, job=job, store=store, predictor=BrightPredictor(), attempt="d1-0")
    return {row["image_id"]: row for row in open_table(store, "images").to_table().to_pylist()}
