"""Large pictures with tiles and without: which objects are found, and the memory of a picture of 100 megapixels.

``SCENES=FOLDER python -m benchmarks --only tiles``, with the pictures of docs/scenes.md; ``SIDE=2000`` for less of it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image as PilImage

from benchmarks.report import Figure, Report
from benchmarks.timing import peak_rss_mb, run_child
from pipelines.labeling.isolation import ModelClock
from pipelines.labeling.shard import LabelConfig, LabelJob, label_images
from pipelines.labeling.tiles.asking import Tiling
from pipelines.labeling.tiles.config import TileConfig
from pipelines.masks import rle
from pipelines.masks.spans import Spans
from pipelines.types import Image, ImageRef, MaskPrediction, Predictor, Prompt

NAME = "tiles"
_SIDE = 8_000
_MEMORY_SIDE = 10_000
_SMALL, _LARGE = (18, 48), (200, 400)
"""Longer sides of the objects, in pixels: small ones, and some that no tile shows whole."""
_CELL = 128
_NAMES = 16
_CUT_OUTS = 400
_TILES = TileConfig(size=128, overlap=48)
_MEMORY_TILES = TileConfig(size=1024, overlap=128)
_SURE = 0.3
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composite:
    """A large picture of objects of scenes.

    Attributes:
        pixels: uint8 (side, side, 3).
        names: what is asked.
        truth: name and mask of each object, small ones first.
        num_small: how many are small.
    """

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    truth: tuple[tuple[str, Spans], ...]
    num_small: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The most memory of a process that labels one picture, MB of 10**6 bytes, and its seconds.

    Attributes:
        before_mb: resident with the model.
        peak_mb: the most that was resident.
        seconds: from the file to the masks.
        masks: found.
    """

    before_mb: float
    peak_mb: float
    seconds: float
    masks: int


def run(*, tiny: bool = False) -> Report:
    """Look for the same objects in tiles, in cut-outs around them and in the shrunk picture; label 100 megapixels."""
    side = 256 if tiny else int(os.environ.get("SIDE", _SIDE))
    composite = compose(side, built_in=tiny)
    started = time.perf_counter()
    figures = find(composite, built_in=tiny)
    seconds = time.perf_counter() - started
    memory_side = 1_200 if tiny else _MEMORY_SIDE
    for kind in ("jpg",) if tiny else ("jpg", "png", "tif"):
        found = Memory(**run_child("benchmarks.tiles", str(memory_side), kind))
        what = f"{memory_side:,} x {memory_side:,} pixels as {kind}"
        figures += [
            Figure(what=f"{what}: most memory of the process", value=found.peak_mb, unit="MB"),
            Figure(what=f"{what}: of it the model and what it needs", value=found.before_mb, unit="MB"),
            Figure(what=f"{what}: from the file to {found.masks} masks", value=found.seconds, unit="s"),
        ]
    return Report(
        name=NAME,
        question="are small objects of a large picture found in tiles as they are in cut-outs, and in how much memory?",
        method=(
            f"A picture of {side:,} x {side:,} pixels: drawings of scenes on photographs, {composite.num_small:,} of "
            f"{_SMALL[0]} to {_SMALL[1]} pixels and {len(composite.truth) - composite.num_small} of {_LARGE[0]} to "
            f"{_LARGE[1]}; xsam-tiny is asked {len(composite.names)} names, in tiles of {_TILES.size} that overlap by "
            f"{_TILES.overlap}. An object is found if a mask of its name with a score of {_SURE} or more has an IoU of "
            "0.5 with it. Cut-outs are as large as a tile, with the object in the middle. Memory: VmHWM of a process "
            f"that labels one picture from its file, in tiles of {_MEMORY_TILES.size}."
        ),
        setup={"objects": "built-in shapes" if tiny else "held-out backgrounds, the small vocabulary"},
        figures=(*figures, Figure(what="all of the search", value=seconds, unit="s")),
    )


def compose(side: int, *, built_in: bool) -> Composite:
    """Return a picture of small objects in cells, and of a few large ones, on photographs of 512 pixels."""
    from xsam_model.training.scenes.art.assets import DEFAULT_FOLDER, SceneAssets
    from xsam_model.training.scenes.compose import blend_in, cut_out, draw_ground

    assets = SceneAssets.builtin() if built_in else SceneAssets.load(os.environ.get("SCENES", DEFAULT_FOLDER))
    pool, random = assets.pool("test", core_only=not built_in), np.random.default_rng(side)
    names = tuple(sorted(random.permutation(sorted(pool.sprites))[:_NAMES].tolist()))
    pixels = np.empty((side, side, 3), np.uint8)
    for top in range(0, side, 512):
        for left in range(0, side, 512):
            ground = draw_ground(pool.grounds, (), random, 512, stuff_share=0.0).pixels
            pixels[top : top + 512, left : left + 512] = ground[: side - top, : side - left]
    centers = [(y + 0.5, x + 0.5) for y in range(side // _CELL) for x in range(side // _CELL)]
    every = max(6, side // _CELL // 4)
    large = [(y, x) for y, x in centers if int(y) % every == every // 2 == int(x) % every and side > 4 * _LARGE[1]]
    reach = _LARGE[1] / 2 / _CELL + 1
    small = [(y, x) for y, x in centers if all(max(abs(y - v), abs(x - u)) > reach for v, u in large)]
    truth: dict[bool, list[tuple[str, Spans]]] = {False: [], True: []}
    for is_large, places in ((False, small), (True, large)):
        for place in places:
            name = names[random.integers(len(names))]
            sprite = pool.sprites[name][random.integers(len(pool.sprites[name]))]
            shift = np.zeros(2) if is_large else random.uniform(-0.2, 0.2, 2)
            at = (np.add(place, shift) * _CELL).tolist()
            length = random.uniform(*(_LARGE if is_large else _SMALL))
            drawn = cut_out(sprite, None, random, side, length, (at[0], at[1]))
            if drawn is not None:
                blend_in(pixels, drawn, None)
                inside = Spans.of(rle.encode(drawn.solid))
                truth[is_large].append((name, inside.placed((drawn.top, drawn.left), (side, side))))
    return Composite(pixels=pixels, names=names, truth=(*truth[False], *truth[True]), num_small=len(truth[False]))


def find(composite: Composite, *, built_in: bool) -> list[Figure]:
    """Return which objects are found in tiles, in cut-outs and in the shrunk picture."""
    predictor, prompts = load(composite.names)
    image = Image(ref=ImageRef(image_id="composite", uri="composite"), pixels=composite.pixels)
    tiling = Tiling(tiles=_TILES, max_masks=1_000_000)
    tiled = tiling.ask([image], [prompts], predictor, ModelClock(), _BATCH)[0].answer.masks
    untiled = predictor.predict([image], [prompts])[0].masks
    small, large = composite.truth[: composite.num_small], composite.truth[composite.num_small :]
    chosen = small[:: max(1, len(small) // (20 if built_in else _CUT_OUTS))]
    figures = [
        Figure(
            what="small objects in cut-outs: found",
            value=100 * in_cut_outs(composite, chosen, predictor, prompts),
            unit="%",
        ),
        Figure(what="the same in tiles", value=100 * recall(chosen, tiled), unit="%"),
        Figure(what="all small objects in tiles", value=100 * recall(small, tiled), unit="%"),
        Figure(
            what="all small objects in the shrunk picture, without tiles", value=100 * recall(small, untiled), unit="%"
        ),
    ]
    if large:
        figures += [
            Figure(
                what="objects larger than a tile, in tiles and the whole", value=100 * recall(large, tiled), unit="%"
            ),
            Figure(what="objects larger than a tile, without tiles", value=100 * recall(large, untiled), unit="%"),
        ]
    for what, masks in (("in tiles", tiled), ("without tiles", untiled)):
        sure = [mask for mask in masks if mask.score >= _SURE]
        figures.append(Figure(what=f"masks {what} with a score of {_SURE} or more", value=len(sure), unit="masks"))
        if sure:
            right = precision(composite.truth, sure)
            figures.append(Figure(what="of these an object of the name", value=100 * right, unit="%"))
    return figures


def load(names: Sequence[str]) -> tuple[Predictor, tuple[Prompt, ...]]:
    """Return xsam-tiny on one thread, and the prompts for some names."""
    import torch

    from actors.predictor.config import PredictorConfig
    from actors.predictor.predictor import XSamPredictor
    from flows.prompts import named_prompts

    torch.set_num_threads(1)
    return XSamPredictor(PredictorConfig(device="cpu")), tuple(named_prompts("ovseg", names))


def in_cut_outs(
    composite: Composite, objects: Sequence[tuple[str, Spans]], predictor: Predictor, prompts: Sequence[Prompt]
) -> float:
    """Return the share of objects that are found in cut-outs around them."""
    side, size, found = composite.pixels.shape[0], _TILES.size, 0
    for start in range(0, len(objects), _BATCH):
        some, places, images = objects[start : start + _BATCH], [], []
        for _, mask in some:
            left, top, right, bottom = mask.box
            y, x = (min(max(0, (a + b - size) // 2), side - size) for a, b in ((top, bottom), (left, right)))
            places.append((y, x))
            pixels = np.ascontiguousarray(composite.pixels[y : y + size, x : x + size])
            images.append(Image(ref=ImageRef(image_id="cut-out", uri="cut-out"), pixels=pixels))
        answers = predictor.predict(images, [prompts] * len(some))
        for (name, mask), place, answer in zip(some, places, answers, strict=True):
            found += recall([(name, mask.window(place, (size, size)))], answer.masks) > 0
    return found / len(objects)


def recall(objects: Sequence[tuple[str, Spans]], masks: Sequence[MaskPrediction]) -> float:
    """Return the share of objects that have a mask of their name."""
    found = _matches(objects, [mask for mask in masks if mask.score >= _SURE])
    return float(found.any(axis=1).mean()) if found.size else 0.0


def precision(objects: Sequence[tuple[str, Spans]], masks: Sequence[MaskPrediction]) -> float:
    """Return the share of masks that have an object of their name."""
    return float(_matches(objects, masks).any(axis=0).mean())


def _matches(objects: Sequence[tuple[str, Spans]], masks: Sequence[MaskPrediction]) -> NDArray[np.bool_]:
    """Return which mask is of which object: bool (objects, masks)."""
    found = np.zeros((len(objects), len(masks)), np.bool_)
    shapes = [Spans.of(mask.segmentation) for mask in masks]
    names = np.array([mask.prompt.category_name for mask in masks])
    boxes = np.array([shape.box for shape in shapes]).reshape(-1, 4)
    for row, (name, wanted) in enumerate(objects):
        left, top, right, bottom = wanted.box
        near = (boxes[:, 0] < right) & (left < boxes[:, 2]) & (boxes[:, 1] < bottom) & (top < boxes[:, 3])
        for column in np.flatnonzero(near & (names == name)):
            both = wanted.intersection(shapes[column])
            found[row, column] = both >= 0.5 * (wanted.area + shapes[column].area - both)
    return found


def label_one(side: int, kind: str) -> Memory:
    """Label one picture from its file in this process, which should have done nothing before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"large.{kind}"
        # In a process of its own, as this takes more memory than what is measured.
        if os.fork() == 0:
            write_picture(path, side)
            os._exit(0)
        os.wait()
        predictor, prompts = load(("cat", "dog", "house", "tree"))
        predictor.predict(
            [Image(ref=ImageRef(image_id="a", uri="a"), pixels=np.zeros((64, 64, 3), np.uint8))], [prompts]
        )
        before_mb, started = psutil.Process().memory_info().rss / 1e6, time.perf_counter()
        job = LabelJob(
            run_id="bench",
            prompts=prompts,
            config=LabelConfig(batch_size=_BATCH),
            tiling=Tiling(tiles=_MEMORY_TILES, max_masks=1000),
        )
        ref = ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size)
        (found,) = label_images([ref], job, predictor, ModelClock())
    assert found.error is None, found.error
    seconds = time.perf_counter() - started
    return Memory(before_mb=before_mb, peak_mb=peak_rss_mb(), seconds=seconds, masks=len(found.masks))


def write_picture(path: Path, side: int) -> None:
    """Write a picture of blocks of random colors, of which every format makes a small file."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 50, side // 50, 3), dtype=np.uint8)
    picture = PilImage.fromarray(noise).resize((side, side), PilImage.Resampling.NEAREST)
    picture.save(path, **({"compression": "tiff_deflate"} if path.suffix == ".tif" else {}))


if __name__ == "__main__":
    print(json.dumps(asdict(label_one(int(sys.argv[1]), sys.argv[2]))))
