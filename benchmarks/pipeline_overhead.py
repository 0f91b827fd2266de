"""What everything around the network costs: the pipeline's images/s over those of bare loops on the same replica."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actors.pool.config import PoolConfig
from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ShardFailure
from actors.predictor.labeler import RunLabeler
from actors.predictor.predictor import XSamPredictor
from benchmarks.models import load_predictor, mid_config, num_parameters, one_torch_thread, prompts
from benchmarks.photos import describe_photos, write_photos
from benchmarks.report import Figure, Report
from benchmarks.timing import Timed, time_in_turn
from pipelines.labeling.shard import LabelConfig, LabelJob, load_images
from pipelines.planning.draft import PlanConfig, plan_shards
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import Image, ImageRef

NAME = "pipeline_overhead"
RUN_ID = "bench"
LOOPS = {
    "forward": "bare network",
    "predict": "bare predictor",
    "predict_in_two": "bare predictor, two batches at once",
    "pipeline": "pipeline",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One replica and the images that every loop goes over."""

    predictor: XSamPredictor
    refs: Sequence[ImageRef]
    images: Sequence[Image]
    inputs: Sequence[dict[str, Any]]
    folder: Path
    batch_size: int
    images_per_shard: int

    @torch.inference_mode()
    def forward(self) -> None:
        """The network alone: no preparation of images, no masks."""
        for inputs in self.inputs:
            self.predictor.segmenter.model(**inputs)

    def predict(self) -> None:
        """What the pipeline asks of the replica: prepare, network, masks at original size, RLE."""
        self.predict_all(self.images)

    def predict_all(self, images: Sequence[Image]) -> None:
        """Predict these images, one batch after the other."""
        for batch in in_batches(images, self.batch_size):
            self.predictor.predict(batch, [prompts()] * len(batch))

    def predict_in_two(self) -> None:
        """The same, with as many batches at once as the pipeline has shards in flight."""
        half = len(self.images) // 2
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(self.predict_all, (self.images[:half], self.images[half:])))

    def pipeline(self) -> Path:
        """The main job's path: fetch, decode, predict, rows, Parquet, commit."""
        return label_all(
            self.predictor,
            self.refs,
            self.folder,
            batch_size=self.batch_size,
            images_per_shard=self.images_per_shard,
        )


def run(*, tiny: bool = False) -> Report:
    """Compare the pipeline with the bare loops, on the tiny and on a mid-size model."""
    sizes = {"tiny": None} if tiny else {"tiny": None, "mid": mid_config()}
    counts, rounds = {"tiny": 4 if tiny else 40, "mid": 20}, 1 if tiny else 4
    figures: list[Figure] = []
    remarks = [SIZING]
    setup = {"threads": f"torch 1, loader {LabelConfig().load_threads}", "rounds": str(rounds)}
    with tempfile.TemporaryDirectory() as folder, one_torch_thread():
        for size, config in sizes.items():
            predictor = load_predictor(Path(folder, f"model-{size}"), config)
            bench = make_bench(predictor, Path(folder, size), counts[size], batch_size=2, shrink=4 if tiny else 1)
            setup[f"{size} model"] = describe(bench)
            loops = {name: getattr(bench, name) for name in LOOPS}
            timed = time_in_turn(loops, rounds=rounds, warm_up=False)
            setup[f"other programs beside the {size} model"] = timed.say_others()
            figures += measure(size, timed, len(bench.refs))
            remarks.append(remark(size, timed))
    return Report(
        name=NAME,
        question="what does everything around the network cost?",
        method=METHOD,
        setup=setup,
        figures=tuple(figures),
        remarks=tuple(remarks),
    )


METHOD = (
    "Loops over the same images on the same loaded replica, in batches of the same size. The bare network: "
    "`model(**inputs)` on inputs that were prepared before; it ends in logits, not in masks. The bare predictor: "
    "`predict(images)` on images that were decoded before; it prepares them, runs the network, enlarges each mask to "
    "its image and encodes it, one batch after the other; and with two at once, as the pipeline has them, for two busy "
    "cores that share caches or are threads of one take more processor time for the same work. The pipeline, as the "
    "main job runs it, through the "
    "in-process runner with two shards in flight: it fetches and decodes the files, asks the predictor, builds rows, "
    "writes Parquet and commits each shard to the local disk. torch computes on one thread in all of them, so that a "
    "second core is free for what surrounds the network; with more torch threads the two would take each other's "
    "cores. Processor time is that of all threads of the process."
)

SIZING = (
    "The pipeline can pass the bare predictor because one shard's batch is prepared or read out while the network "
    "computes the other's. It cannot pass the bare network; how close it comes depends on whether the cores beside the "
    "network keep up, and here there is one, which other programs use too. The untrained model is unkind: its masks "
    "are far more ragged than a trained one's, and nearly all its queries pass the score floor. A pass here is also "
    "short: the network waits for the first images and while the last masks are written, a few hundredths of it, "
    "which a shard of hundreds of images does not notice."
)


def make_bench(predictor: XSamPredictor, folder: Path, count: int, *, batch_size: int, shrink: int = 1) -> Bench:
    """Write photographs, and prepare what the bare loops take for granted."""
    refs = write_photos(folder / "photos", count, shrink=shrink)
    job = LabelJob(run_id=RUN_ID, prompts=prompts())
    images = [loaded.value for loaded in load_images(refs, job) if isinstance(loaded.value, Image)]
    texts = [prompt.text for prompt in prompts()]
    inputs = [
        predictor.segmenter.processor(
            images=[i.pixels for i in batch], task="ovseg", conditions=[texts] * len(batch)
        ).for_model()
        for batch in in_batches(images, batch_size)
    ]
    return Bench(
        predictor=predictor,
        refs=refs,
        images=images,
        inputs=inputs,
        folder=folder,
        batch_size=batch_size,
        images_per_shard=max(1, count // 2),
    )


def label_all(
    predictor: XSamPredictor,
    refs: Sequence[ImageRef],
    folder: Path,
    *,
    batch_size: int,
    images_per_shard: int,
) -> Path:
    """Label images through the in-process runner into a new output below the folder, and return the output."""
    output = folder / f"output-{secrets.token_hex(4)}"
    job = LabelJob(run_id=RUN_ID, prompts=prompts(), config=LabelConfig(batch_size=batch_size))
    shards = plan_shards(refs, PlanConfig(images_per_shard=images_per_shard))
    config = PoolConfig(runner="in_process")
    with InProcessRunner(lambda: RunLabeler(predictor, job, str(output)), config) as runner:
        for result in runner.map(shards):
            if isinstance(result, ShardFailure) or result.status_counts.get("quarantined"):
                raise RuntimeError(f"a shard failed: {result}")
    return output


def in_batches(images: Sequence[Image], size: int) -> list[Sequence[Image]]:
    """Cut into batches."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def describe(bench: Bench) -> str:
    """Say what was labeled, how, and what came out."""
    masks = open_table(open_store(str(bench.pipeline())), "annotations", RUN_ID).to_table(columns=["segmentation"])
    lengths = [len(row["segmentation"]["counts"]) for row in masks.to_pylist()]
    return (
        f"{num_parameters(bench.predictor) / 1e6:.1f} M parameters, float32; {describe_photos(list(bench.refs))}; "
        f"shards of {bench.images_per_shard}, batches of {bench.batch_size}; "
        f"{len(lengths) / len(bench.refs):.1f} masks for each image, "
        f"RLE of {sum(lengths) / len(lengths):,.0f} characters"
    )


def measure(size: str, timed: Timed, count: int) -> list[Figure]:
    """Return rates, processor time and ratios for one model."""
    figures = []
    for name, what in LOOPS.items():
        rates = tuple(count / seconds for seconds in timed.seconds[name])
        figures.append(Figure(what=f"{size}: {what}", value=max(rates), unit="images/s", repeats=rates))
    for name, what in LOOPS.items():
        cost = tuple(1000 * seconds / count for seconds in timed.cpu_seconds[name])
        figures.append(Figure(what=f"{size}: processor time, {what}", value=min(cost), unit="ms/image", repeats=cost))
    for baseline in ("predict", "forward"):
        ratios = tuple(timed.speed_ratios("pipeline", baseline))
        what = f"{size}: pipeline : {LOOPS[baseline]}"
        figures.append(Figure(what=what, value=timed.speed_ratio("pipeline", baseline), unit="x", repeats=ratios))
    for baseline in ("predict", "predict_in_two", "forward"):
        ratios = tuple(timed.cpu_ratios("pipeline", baseline))
        what = f"{size}: processor time, pipeline : {LOOPS[baseline]}"
        value = timed.cpu_ratio("pipeline", baseline)
        figures.append(Figure(what=what, value=value, unit="of the time", repeats=ratios))
    return figures


def remark(size: str, timed: Timed) -> str:
    """Say what the ratios of one model mean."""
    predict, forward = (timed.speed_ratio("pipeline", name) for name in ("predict", "forward"))
    cpu_predict, cpu_in_two, cpu_forward = (
        timed.cpu_ratio("pipeline", name) for name in ("predict", "predict_in_two", "forward")
    )
    return (
        f"{size.capitalize()} model: the pipeline labels {predict:.2f} times as many images a second as the bare "
        f"predictor and {forward:.2f} times as many as the bare network. It takes {cpu_predict:.2f} times the "
        f"processor time of the bare predictor, and {cpu_in_two:.2f} times that of two batches at once: all that "
        "fetching, decoding, Parquet and commits add. It takes "
        f"{cpu_forward:.1f} times that of the bare network: so many cores would let the network compute all the time."
    )
