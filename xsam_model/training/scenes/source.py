"""The tasks of scenes as sources of training samples: as many as are asked for, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.assets import DEFAULT_FOLDER, SceneAssets
from xsam_model.training.scenes.asked.tasks import SCENE_TASKS, AskConfig, ask_scene
from xsam_model.training.scenes.scene import SceneConfig, make_scene

_TRIES = 40


class SceneSource:
    """An endless data set of one task, as `sources.SampleSource`: scenes made as they are asked for.

    Args:
        assets: pictures and names; pickled as a folder's name where they were loaded from one.
        task: one of `prompt_templates.TASKS`.
        split: one of `scenes.assets.SPLITS`.
        scenes, questions: how scenes look and what is asked.
        size: how many samples are called an epoch.
    """

    def __init__(
        self,
        assets: SceneAssets,
        task: str,
        split: str = "train",
        scenes: SceneConfig | None = None,
        questions: AskConfig | None = None,
        size: int = 100_000,
    ) -> None:
        if task not in SCENE_TASKS:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(SCENE_TASKS)}")
        self.assets, self.task, self.split = assets, task, split
        self.scenes, self.questions = scenes or SceneConfig(), questions or AskConfig()
        self.name = f"scenes-{task}"
        pool = assets.pool(split, self.scenes.core_only)
        self.categories = (*pool.asked, *pool.asked_stuff) if task == "genseg" else ()
        self._size = size

    def __len__(self) -> int:
        """Return how many samples are called an epoch."""
        return self._size

    def draw(self, index: int, random: np.random.Generator) -> TrainingSample:
        """Return a sample of a new scene.

        Args:
            index: says nothing: all of the sample comes from `random`.
            random: the same gives the same sample.

        Raises:
            RuntimeError: if no scene can be asked this task: their config leaves nothing to ask about.
        """
        del index
        for _ in range(_TRIES):
            scene = make_scene(int(random.integers(2**62)), self.assets, self.split, self.scenes)
            sample = ask_scene(
                scene, self.task, self.assets, random, config=self.questions, core_only=self.scenes.core_only
            )
            if sample is not None:
                return sample
        raise RuntimeError(f"none of {_TRIES} scenes can be asked the task {self.task}: {self.scenes}")


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
        assets: folder of the pictures; that of `scenes.assets` by default. "builtin" for the few that need none.
        split: one of `scenes.assets.SPLITS`.
        size: samples of one epoch: their ratio is how often each source's turn comes.
        scene, ask: fields of `SceneConfig` and `AskConfig`.
    """
    pictures = SceneAssets.builtin() if assets == "builtin" else SceneAssets.load(assets or DEFAULT_FOLDER)
    questions: dict[str, Any] = dict(ask or {})
    if "prompt_kinds" in questions:
        questions["prompt_kinds"] = tuple(questions["prompt_kinds"])
    return SceneSource(pictures, task, split, SceneConfig(**(scene or {})), AskConfig(**questions), size)


__all__ = ["SceneSource", "scenes"]
