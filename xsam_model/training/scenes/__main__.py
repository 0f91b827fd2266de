"""Shows or exports scenes: python -m xsam_model.training.scenes --sheet out.jpg --seed 0."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from xsam_model.training.scenes.art.assets import SPLITS, SceneAssets
from xsam_model.training.scenes.export import export_scenes
from xsam_model.training.scenes.scene import SceneConfig, make_scene
from xsam_model.training.scenes.sheet import draw_samples, draw_sheet
from xsam_model.training.scenes.source import SceneSource


def main() -> None:
    """Write a sheet of scenes with their ground truth, export them, or both."""
    parser = argparse.ArgumentParser(description="Show scenes, their masks and what could be asked about them.")
    parser.add_argument("--sheet", type=Path, help="picture to write, .jpg or .png")
    parser.add_argument("--export", type=Path, help="folder to write the pictures and their truth (COCO) to")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene (default: %(default)s)")
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    parser.add_argument("--side", type=int, default=256, help="pixels of a scene (default: %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="scenes (default: %(default)s)")
    parser.add_argument("--core", action="store_true", help="the small vocabulary")
    parser.add_argument("--task", help="show what this task asks, instead of everything that scenes show")
    parser.add_argument("--assets", type=Path, help="folder of scenes.assets; without it a few built-in shapes")
    arguments = parser.parse_args()
    if not (arguments.sheet or arguments.export):
        parser.error("give --sheet, --export, or both")
    assets = SceneAssets.builtin() if arguments.assets is None else SceneAssets.load(arguments.assets)
    config = SceneConfig(side_pixels=arguments.side, core_only=arguments.core)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    scenes = [make_scene(seed, assets, arguments.split, config) for seed in seeds]
    if arguments.export:
        print(export_scenes(scenes, arguments.export))
    if not arguments.sheet:
        return
    if arguments.task is None:
        sheet = draw_sheet(scenes)
    else:
        source = SceneSource(assets, arguments.task, arguments.split, config)
        sheet = draw_samples([source.draw(0, np.random.default_rng(seed)) for seed in seeds])
    sheet.save(arguments.sheet)


if __name__ == "__main__":
    main()
