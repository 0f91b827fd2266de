"""Whether memory grows with the images that a replica labels: the peak of processes that label N and 4 N images."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.photos import describe_photos, write_photos
from benchmarks.report import Figure, Report
from benchmarks.timing import peak_rss_mb, run_child

NAME = "peak_memory"
_BATCH_SIZE = 4
_SHARD = 12


def run(*, tiny: bool = False) -> Report:
    """Label few and many images, each in a process of its own."""
    few = 2 if tiny else 2 * _SHARD
    shard = max(1, few // 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        refs = write_photos(folder / "photos", 4 * few)
        cases = {"load": (0, shard), "few": (few, shard), "many": (4 * few, shard), "one shard": (4 * few, 4 * few)}
        peak = {
            name: run_child("benchmarks.peak_memory", str(folder), str(count), str(size))["peak_rss_mb"]
            for name, (count, size) in cases.items()
        }
    figures = (
        Figure(what="model loaded, nothing labelled", value=peak["load"], unit="MB"),
        Figure(what=f"{few} images, shards of {shard}", value=peak["few"], unit="MB"),
        Figure(what=f"{4 * few} images, shards of {shard}", value=peak["many"], unit="MB"),
        Figure(what=f"{4 * few} images, all in one shard", value=peak["one shard"], unit="MB"),
        Figure(what="4 N images : N images, same shards", value=peak["many"] / peak["few"], unit="of the memory"),
        Figure(
            what="more memory for each image that one shard has more",
            value=(peak["one shard"] - peak["many"]) * 1000 / (4 * few - shard),
            unit="kB",
        ),
    )
    return Report(
        name=NAME,
        question="does memory grow with what is labelled?",
        method=(
            "Each case is a process of its own that labels photographs with the tiny model through the in-process "
            "runner, two shards in flight; the figure is the most memory that it ever held (VmHWM)."
        ),
        setup={"images": describe_photos(refs), "batch": f"{_BATCH_SIZE} images"},
        figures=figures,
        remarks=(
            "What a run holds does not depend on the number of its shards. Within a shard the masks' RLE is held until "
            "its commit. An untrained model's masks are ragged, so theirs are an upper bound: see the characters of "
            "RLE that pipeline_overhead reports.",
        ),
    )


def label(folder: Path, count: int, images_per_shard: int) -> None:
    """Label the first photographs of the folder with the tiny model."""
    from benchmarks.models import load_predictor, one_torch_thread
    from benchmarks.pipeline_overhead import label_all
    from pipelines.types import ImageRef

    photos = sorted((folder / "photos").iterdir())[:count]
    refs = [ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size) for path in photos]
    with one_torch_thread():
        predictor = load_predictor(folder / "model")
        label_all(predictor, refs, folder, batch_size=_BATCH_SIZE, images_per_shard=images_per_shard)


if __name__ == "__main__":
    label(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
