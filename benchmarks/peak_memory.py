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
_SHARD = 16
_FEW = 64


def run(*, tiny: bool = False) -> Report:
    """Label few and many images, each in a process of its own."""
    few, shard = (2, 1) if tiny else (_FEW, _SHARD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        refs = write_photos(folder / "photos", 4 * few, shrink=2)
        cases = {"load": (0, shard), "few": (few, shard), "many": (4 * few, shard), "one shard": (4 * few, 4 * few)}
        peak = {
            name: run_child("benchmarks.peak_memory", str(folder), str(count), str(size))["peak_rss_mb"]
            for name, (count, size) in cases.items()
        }
    figures = (
        Figure(what="model loaded, nothing labeled", value=peak["load"], unit="MB"),
        Figure(what=f"N = {few} images, shards of {shard}", value=peak["few"], unit="MB"),
        Figure(what=f"4 N = {4 * few} images, shards of {shard}", value=peak["many"], unit="MB"),
        Figure(what=f"4 N = {4 * few} images, all in one shard", value=peak["one shard"], unit="MB"),
        Figure(what="memory for 4 N : for N", value=peak["many"] / peak["few"], unit="of the memory"),
        Figure(what="memory for 4 N in one shard : for N", value=peak["one shard"] / peak["few"], unit="of the memory"),
    )
    return Report(
        name=NAME,
        question="does memory grow with what is labeled?",
        method=(
            "Each case is a process of its own that labels photographs with the tiny model through the in-process "
            "runner, two shards in flight; the figure is the most memory that it ever held (VmHWM)."
        ),
        setup={"images": describe_photos(refs, shrink=2), "batch": f"{_BATCH_SIZE} images"},
        figures=figures,
        remarks=(
            f"Four times the images took {peak['many'] / peak['few']:.2f} times the memory. Nothing of a shard is kept "
            "after its commit; what little growth there is comes from the allocator, which keeps freed memory of many "
            "threads. Within a shard the masks' RLE is held until the commit: the untrained model's ragged masks are "
            "an upper bound for it (pipeline_overhead reports their characters).",
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
