"""Scenes as data sets of a training run: what a `[[sources]]` of a TOML file names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xsam_model.training.scene_assets import DEFAULT_FOLDER, SceneAssets
from xsam_model.training.scene_source import SceneSource
from xsam_model.training.scene_tasks import AskConfig
from xsam_model.training.scenes import SceneConfig


def scenes(
    task: str,
    *,
    assets: str | None = None,
    split: str = "train",
    size: int = 100_000,
    scene: Mapping[str, Any] | None = None,
    ask: Mapping[str, Any] | None = None,
) -> SceneSource:
    """Open the scenes of one task.

    Args:
        task: one of `prompt_templates.TASKS`.
        assets: folder of the pictures; scene_assets' own by default. "builtin" for the few that need none.
        split: one of `scene_assets.SPLITS`.
        size: samples of one epoch: their ratio is how often each source's turn comes.
        scene, ask: fields of `SceneConfig` and `AskConfig`.
    """
    pictures = SceneAssets.builtin() if assets == "builtin" else SceneAssets.load(assets or DEFAULT_FOLDER)
    questions: dict[str, Any] = dict(ask or {})
    if "prompt_kinds" in questions:
        questions["prompt_kinds"] = tuple(questions["prompt_kinds"])
    return SceneSource(pictures, task, split, SceneConfig(**(scene or {})), AskConfig(**questions), size)


__all__ = ["scenes"]
