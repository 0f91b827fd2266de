"""How fast dense masks become COCO RLE, against pycocotools on the same masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from benchmarks.photos import random_field
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from pipelines.masks import rle

NAME = "rle_rate"
SIZES_HW = {"640 x 480": (480, 640), "1080p": (1080, 1920), "4K": (2160, 3840)}
TINY_SIZES_HW = {"64 x 48": (48, 64)}
_MASKS = 50


def run(*, tiny: bool = False) -> Report:
    """Time both encoders at each size, on row-major masks as the network makes them, and on column-major ones."""
    sizes, rounds = (TINY_SIZES_HW, 1) if tiny else (SIZES_HW, 9)
    figures: list[Figure] = []
    for name, size_hw in sizes.items():
        masks = make_masks(size_hw)
        if [encode_pycocotools(mask) for mask in masks] != [rle.encode(mask).counts for mask in masks]:
            raise RuntimeError("the two encoders disagree")
        figures += measure(name, masks, rounds)
    return Report(
        name=NAME,
        question="how fast do masks become RLE?",
        method=(
            "`pipelines.masks.rle.encode` against `pycocotools.mask.encode` on the same bool masks, whose strings are "
            "equal byte for byte. pycocotools takes column-major uint8 only, so for the row-major masks that a network "
            "makes its time includes `np.asfortranarray`; for column-major masks it does not."
        ),
        setup={"masks": f"{_MASKS} of smooth random outlines at each size, one half set", "rounds": str(rounds)},
        figures=tuple(figures),
    )


def make_masks(size_hw: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Return masks of a few smooth blobs each, row-major."""
    rng = np.random.default_rng(0)
    return [np.ascontiguousarray(random_field(rng, *size_hw, exponent=2.5) > 0) for _ in range(_MASKS)]


def measure(name: str, masks: list[NDArray[np.bool_]], rounds: int) -> list[Figure]:
    """Return rate and ratio for one size."""
    columns = [np.asfortranarray(mask) for mask in masks]
    repeats = max(1, 2**26 // (masks[0].size * len(masks))) if rounds > 1 else 1
    loops = {
        "ours": lambda: [rle.encode(mask) for _ in range(repeats) for mask in masks],
        "coco": lambda: [encode_pycocotools(mask) for _ in range(repeats) for mask in masks],
        "ours by columns": lambda: [rle.encode(mask) for _ in range(repeats) for mask in columns],
        "coco by columns": lambda: [encode_pycocotools(mask) for _ in range(repeats) for mask in columns],
    }
    timed = time_in_turn(loops, rounds=rounds)
    length = int(np.mean([len(rle.encode(mask).counts) for mask in masks]))
    rates = tuple(len(masks) * repeats / seconds for seconds in timed.seconds["ours"])
    ratios = tuple(timed.speed_ratios("ours", "coco"))
    by_columns = tuple(timed.speed_ratios("ours by columns", "coco by columns"))
    return [
        Figure(what=f"{name}, row-major, RLE of {length} characters", value=max(rates), unit="masks/s", repeats=rates),
        Figure(
            what=f"{name}, row-major : pycocotools", value=timed.speed_ratio("ours", "coco"), unit="x", repeats=ratios
        ),
        Figure(
            what=f"{name}, column-major : pycocotools",
            value=timed.speed_ratio("ours by columns", "coco by columns"),
            unit="x",
            repeats=by_columns,
        ),
    ]


def encode_pycocotools(mask: NDArray[np.bool_]) -> str:
    """Encode as one does with pycocotools."""
    return str(coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"], "ascii")
