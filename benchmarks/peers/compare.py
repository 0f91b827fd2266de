"""Runs the engines and this project in turn, checks that all find the same masks, and compares what they took."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pyarrow.dataset
from PIL import Image

from benchmarks.peers.job import BATCH, FIRST, ROOT, SCENES, WORKERS, names
from benchmarks.peers.measured import Measured, measure
from benchmarks.report import Figure, Report
from benchmarks.timing import busy_elsewhere
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table

_HERE = Path(__file__).parent
_PACKAGES = ROOT / ".venv" / "peers"
_ROUNDS = 2

Mask = tuple[str, str, str]
"""Of which file, of which category, its run-length encoding."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to do the job.

    Attributes:
        program: the module of benchmarks.peers; empty for this project.
        options: of this project's command.
    """

    program: str = ""
    options: tuple[str, ...] = ()

    def command(self, images: Path, output: Path) -> list[str]:
        """Return the command that labels a folder of images."""
        if self.program:
            return [sys.executable, "-m", f"benchmarks.peers.{self.program}", str(images), str(output)]
        program = Path(sys.executable).with_name("xsam-label")
        asked = ("--source", str(images), "--output", str(output), "--categories", ", ".join(names()))
        config = output.with_suffix(".toml")
        config.write_text(f"label.batch_size = {BATCH}\n")
        return [str(program), "run", "--config", str(config), *asked, *self.options]

    def first(self, output: Path) -> str:
        """Return what is there once the first images are labeled, as a pattern; of this project, committed."""
        return str(output / (FIRST if self.program else "_runs/*/commits/*"))

    def masks(self, output: Path) -> Iterator[Mask]:
        """Read what was found."""
        if self.program == "loop":
            yield from _coco_masks(json.loads((output / "coco.json").read_text()))
        elif self.program:
            table = pyarrow.dataset.dataset(sorted(map(str, output.rglob("*.parquet")))).to_table()
            table = table.filter(table["counts"].is_valid())  # Daft explodes an image without masks to a row of nulls
            yield from zip(*(table[name].to_pylist() for name in ("file", "category", "counts")), strict=True)
        else:
            for row in open_table(open_store(str(output)), "annotations").to_table().to_pylist():
                yield row["image_id"], row["category_name"], row["segmentation"]["counts"]


_WITH = ("--replicas", str(WORKERS))
ENGINES = {
    "plain loop, 1 process": Engine("loop"),
    f"datasets.map, {WORKERS} processes": Engine("hf_datasets"),
    f"Ray Data, {WORKERS} actors": Engine("ray_data"),
    f"Daft, {WORKERS} processes": Engine("daft_udf"),
    "ours, in process": Engine(options=("--runner", "in_process", "--no-prefect")),
    f"ours, {WORKERS} replicas on Ray, no Prefect": Engine(options=(*_WITH, "--runner", "ray", "--no-prefect")),
    f"ours, {WORKERS} replicas, no Prefect": Engine(options=(*_WITH, "--no-prefect")),
    f"ours as shipped, {WORKERS} replicas": Engine(options=_WITH),
}
_SHIPPED = list(ENGINES)[-1]
_AT_LENGTH = [name for name in ENGINES if str(WORKERS) in name]


def run(*, tiny: bool = False) -> Report:
    """Run every engine once in each round, each round beginning with another one."""
    count, many, rounds = (16, 32, 1) if tiny else (400, 1600, _ROUNDS)
    _install()
    taken: dict[str, list[Measured]] = {name: [] for name in ENGINES}
    found: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", count)
        write_images(folder / "many", many)
        first = _run_one(ENGINES[_SHIPPED], folder / "images", folder / "first")
        others, begun = busy_elsewhere(), os.times().elapsed
        for number in range(rounds):
            order = list(ENGINES)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                output = folder / f"{order.index(name)}-{number}"
                engine = ENGINES[name]
                taken[name].append(_run_one(engine, folder / "images", output))
                found[name] = _digest(engine.masks(output))
        at_length = {name: _run_one(ENGINES[name], folder / "many", folder / f"many-{name}") for name in _AT_LENGTH}
        ours = sum(one.cpu_seconds for runs in (*taken.values(), at_length.values()) for one in runs)
        load = max(0.0, busy_elsewhere() - others - ours) / (os.times().elapsed - begun)
    _check_alike(found)
    steady = {name: (many - count) / (one.seconds - _middle(taken[name])) for name, one in at_length.items()}
    return _report(taken, first, steady, (count, many), rounds, found[_SHIPPED][0], load)


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files of 256 x 256 pixels: parts of the example scenes, no two alike."""
    folder.mkdir()
    drawn = random.Random(0)
    scenes = [Image.open(path).convert("RGB") for path in sorted(SCENES.glob("*.png"))]
    for number in range(count):
        scene, share = scenes[number % len(scenes)], drawn.uniform(0.6, 1.0)
        width, height = (int(share * side) for side in scene.size)
        left, top = drawn.randint(0, scene.width - width), drawn.randint(0, scene.height - height)
        part = scene.resize((256, 256), box=(left, top, left + width, top + height))
        part.save(folder / f"image-{number:04}.jpg", quality=90)


def _run_one(engine: Engine, images: Path, output: Path) -> Measured:
    output.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(_PACKAGES))),
        "HF_HOME": str(images.with_name("hf")),
        "PREFECT_HOME": str(images.with_name("prefect")),
        "DO_NOT_TRACK": "true",  # Daft
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command, log = engine.command(images, output), output.with_suffix(".log")
    return measure(command, environment, engine.first(output), log, ROOT)


def _install() -> None:
    """Install what this project's own environment lacks, without its dependencies, into a folder of its own."""
    if not _PACKAGES.exists():
        pip = [str(Path(sys.executable).with_name("uv")), "pip", "install", "-q", "--python", sys.executable]
        links = {"UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")}
        wanted = ["--no-deps", "--target", str(_PACKAGES), "-r", str(_HERE / "requirements.txt")]
        subprocess.run([*pip, *wanted], check=True, env={**os.environ, **links})


def _coco_masks(document: dict[str, list[dict[str, object]]]) -> Iterator[Mask]:
    files = {one["id"]: str(one["file_name"]) for one in document["images"]}
    categories = {one["id"]: str(one["name"]) for one in document["categories"]}
    for one in document["annotations"]:
        yield files[one["image_id"]], categories[one["category_id"]], one["segmentation"]["counts"]  # type: ignore[index]


def _digest(masks: Iterator[Mask]) -> tuple[int, str]:
    held = sorted((file, category, _text(counts)) for file, category, counts in masks)
    return len(held), hashlib.sha256(json.dumps(held).encode()).hexdigest()


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def _check_alike(found: dict[str, tuple[int, str]]) -> None:
    if len(set(found.values())) > 1:
        raise RuntimeError(f"not all engines found the same masks: {found}")


def _report(
    taken: dict[str, list[Measured]],
    first: Measured,
    steady: dict[str, float],
    counts: tuple[int, int],
    rounds: int,
    masks: int,
    load: float,
) -> Report:
    count, many = counts
    figures = list[Figure]()
    for name, runs in taken.items():
        for what, unit, values in (
            ("whole command", "s", [one.seconds for one in runs]),
            ("until the first image", "s", [one.first_s for one in runs]),
            ("processor time", "ms/image", [1000 * one.cpu_seconds / count for one in runs]),
            ("peak memory", "MB", [one.peak_mb for one in runs]),
        ):
            figures.append(Figure(what=f"{name}: {what}", value=median(values), unit=unit, repeats=tuple(values)))
        if name in steady:
            figures.append(Figure(what=f"{name}: steady rate", value=steady[name], unit="images/s"))
    what = f"{_SHIPPED}, the first run of an account: whole command"
    best = max(rate for name, rate in steady.items() if ENGINES[name].program)
    figures.append(Figure(what=what, value=first.seconds, unit="s"))
    ratios = _ratios(taken)
    fastest = min((name for name, engine in ENGINES.items() if engine.program), key=lambda name: _middle(taken[name]))
    figures.append(
        Figure(
            what=f"whole command, {_SHIPPED} : fastest peer", value=median(ratios), unit="of the time", repeats=ratios
        )
    )
    figures.append(Figure(what=f"steady rate, {_SHIPPED} : best peer", value=steady[_SHIPPED] / best, unit="x"))
    return Report(
        name="peers",
        question="how does a whole command compare with that of other engines?",
        method=(
            "The same model, pictures, names and batches; every engine a program of its own that starts, loads the "
            "model, labels and ends (benchmarks/peers). The engines run in turn, and all find the same masks. "
            "Processor time is that of all processes of a command, memory the sum of their proportional set sizes. The "
            "first image: of this project, when it is committed; of the others, when the model has answered, which is "
            "before it is written. The first run of an account, which makes the database of Prefect's embedded server, "
            "is measured by itself, before the rounds. Figures are medians of the rounds. The steady rate is what "
            f"{many - count:,} further images took, once for each engine. torch computes on one thread in each process."
        ),
        setup={
            "images": f"{count} JPEG files of 256 x 256 pixels",
            "asked": f"{len(names())} names of xsam-tiny, batches of {BATCH}; {masks:,} masks by every engine",
            "rounds": str(rounds),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("datasets", "ray", "prefect"))
            + f", {(_HERE / 'requirements.txt').read_text().strip().replace('==', ' ')}",
            "other programs": f"{load:.1f} cores on average",
        },
        figures=tuple(figures),
        remarks=(f"The fastest of the other engines is {fastest}.",),
    )


def _middle(runs: Sequence[Measured]) -> float:
    return median(one.seconds for one in runs)


def _ratios(taken: dict[str, list[Measured]]) -> tuple[float, ...]:
    """Return for each round how many times the fastest other engine's time this project took."""
    others = [taken[name] for name, engine in ENGINES.items() if engine.program]
    return tuple(
        ours.seconds / min(runs[number].seconds for runs in others) for number, ours in enumerate(taken[_SHIPPED])
    )
