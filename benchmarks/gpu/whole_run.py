"""A whole run on one GPU with the full-size network and random weights: images/s, and how busy the device is.

    python -m benchmarks.gpu.whole_run              # a CUDA device, under four minutes
    python -m benchmarks.gpu.whole_run --size tiny  # anywhere: shows that the program works

Everything of `xsam-label run` but Ray and Prefect: listing, plan, batch size, fetching, decoding, masks, RLE, Parquet,
commits. Writes whole_run.json to ``$OUT``, or to benchmarks/out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.dataset
import torch
from PIL import Image

from benchmarks.gpu.full_size_forward import build_model, make_processor
from benchmarks.photos import describe_photos, write_photos
from flows.config import parse_config
from flows.run import engine
from flows.run.observer import Silent
from pipelines.types import ImageRef, ShardReceipt
from xsam_model.configuration_xsam import XSamConfig
from xsam_model.segmenter import XSamSegmenter
from xsam_model.testing import untrained_tiny_config

CATEGORIES = ("person", "car", "dog", "tree", "chair", "table", "cup", "book", "lamp", "bird", "boat", "sign")
_SAMPLE_MS = 100


class Pace(Silent):
    """Notes when shards are committed."""

    def __init__(self) -> None:
        self.commits: list[tuple[float, int]] = []

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Note it."""
        self.commits.append((time.monotonic(), sum(receipt.status_counts.values())))
        print(f"{sum(images for _, images in self.commits)} images", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--images-per-shard", type=int, default=50)
    parser.add_argument("--masks", type=int, default=20, help="of each image, by the choice of min_score")
    parser.add_argument("--out", default=os.environ.get("OUT") or str(Path(__file__).parents[1] / "out"))
    arguments = parser.parse_args()
    if arguments.size == "full" and not torch.cuda.is_available():
        raise SystemExit("the full size needs a CUDA device; --size tiny runs anywhere")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), arguments)
    print(json.dumps(facts, indent=1), flush=True)
    (out / "whole_run.json").write_text(json.dumps(facts, indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Label photographs and return what was measured, from the first commit to the last."""
    photos = write_photos(folder / "photos", arguments.images)
    min_score = write_model(folder / "model", arguments.size, photos, arguments.masks)
    config = parse_config(
        {
            "source": str(folder / "photos"),
            "output": str(folder / "table"),
            "model": {"path": str(folder / "model"), "min_score": min_score},
            "categories": list(CATEGORIES),
            "plan": {"images_per_shard": arguments.images_per_shard},
            "pool": {"runner": "in_process"},
        }
    )
    pace, begun = Pace(), time.monotonic()
    with utilization() as samples:
        summary = engine.run_directly(config, pace)
    if not summary.ok or summary.ledger["quarantined"]:
        raise SystemExit(f"the run did not go well: {summary.ledger}, {summary.reason_counts}, {summary.problems}")
    first, last = pace.commits[0][0], pace.commits[-1][0]
    busy = [share for at, share in samples if first <= at <= last]
    return {
        "size": arguments.size,
        "device": summary.facts["predictor"]["device"],
        "dtype": summary.facts["predictor"]["dtype"],
        "batch_size": summary.facts["predictor"]["batch_size"],
        "images": describe_photos(photos),
        "categories": len(CATEGORIES),
        "masks_per_image": summary.num_annotations / arguments.images,
        "rle_characters_per_mask": rle_characters(folder / "table"),
        "seconds_until_the_first_commit": first - begun,
        "images_per_second": sum(images for _, images in pace.commits[1:]) / max(last - first, 1e-9),
        "device_busy_share": sum(busy) / len(busy) if busy else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "versions": summary.facts["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }


def write_model(folder: Path, size: str, photos: Sequence[ImageRef], masks: int) -> float:
    """Draw the weights on the device, write them as `from_pretrained` takes them, and return a least score.

    Scores of an untrained model are all alike: the least score leaves so many masks on average of the first photos.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = untrained_tiny_config() if size == "tiny" else XSamConfig()
    model, processor = build_model(config, device), make_processor(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    few = [np.asarray(Image.open(photo.uri).convert("RGB")) for photo in photos[:4]]
    found = XSamSegmenter(model, processor).segment(few, conditions=[CATEGORIES] * len(few), threshold=0.0)
    scores = torch.cat([one.segmentation.scores for one in found if one.segmentation is not None])
    del model, found
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return float(scores.sort(descending=True).values[min(masks * len(few), len(scores)) - 1])


def rle_characters(table: Path) -> float:
    """Return the mean length of a mask's RLE in characters."""
    rows = pyarrow.dataset.dataset(table / "annotations", format="parquet").to_table(columns=["segmentation"])
    lengths = pyarrow.compute.utf8_length(rows["segmentation"].combine_chunks().field("counts"))
    return float(pyarrow.compute.mean(lengths).as_py() or 0.0)


@contextmanager
def utilization() -> Iterator[list[tuple[float, float]]]:
    """Note, ten times a second, the share of time in which the device had a kernel to run, as its driver tells."""
    samples: list[tuple[float, float]] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={_SAMPLE_MS}"]
    if not shutil.which(command[0]):
        yield samples
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            samples.extend((time.monotonic(), float(line) / 100) for line in process.stdout if line.strip().isdigit())

        reader = Thread(target=read, daemon=True)
        reader.start()
        yield samples
        process.terminate()
        reader.join(timeout=5)


if __name__ == "__main__":
    main()
