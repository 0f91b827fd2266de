"""SceneSource, an endless source of training samples for one task, generated on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.assets import CUTOUTS, DEFAULT_FOLDER, PARTS, SceneAssets
from xsam_model.training.scenes.asked.tasks import SCENE_TASKS, AskConfig, ask_scene
from xsam_model.training.scenes.scene import SceneConfig, make_scene

_TRIES = 40


class SceneSource:
    """An endless data set of one task, a `sources.SampleSource` that generates a scene for every sample.

    Args:
        assets: pictures and names; pickled as the folder's name if they were loaded from one.
        task: one of `prompts.templates.TASKS`.
        split: one of `art.assets.SPLITS`.
        scenes, questions: how scenes look and what is asked.
        size: number of samples that count as an epoch.
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
        """Return the number of samples that count as an epoch."""
        return self._size

    def draw(self, index: int, random: np.random.Generator) -> TrainingSample:
        """Return a sample of a new scene.

        Args:
            index: not used; the sample depends only on `random`.
            random: in the same state it gives the same sample.

        Raises:
            RuntimeError: if the settings of scenes leave nothing to ask about for this task.
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


def scenes(  # noqa: PLR0913  (each is a choice of its own)
    task: str,
    *,
    assets: str | None = None,
    split: str = "train",
    cutouts: bool = False,
    backgrounds: str | None = None,
    name: str | None = None,
    size: int = 100_000,
    scene: Mapping[str, Any] | None = None,
    ask: Mapping[str, Any] | None = None,
) -> SceneSource:
    """Open the scenes of one task.

    Args:
        task: one of `prompts.templates.TASKS`.
        assets: folder of the pictures, by default `art.assets.DEFAULT_FOLDER`; "builtin" for a few that need no folder.
        split: one of `art.assets.SPLITS`.
        cutouts: whether to use photographic cut-outs too, as far as they were prepared; `SceneConfig.photo_share` says
            how often.
        backgrounds: folder of more photographs to lay objects on. What they show themselves is not known, so only
            "intseg" may be asked, where it is no mistake.
        name: name of the source, by which stages choose among several of one task; by default "scenes-<task>".
        size: number of samples in an epoch, which sets how often this source is chosen among several.
        scene, ask: fields of `SceneConfig` and `AskConfig`.

    Raises:
        ValueError: if there are backgrounds and another task, or a setting is unknown.
        FileNotFoundError: if pictures are missing.
    """
    if backgrounds is not None and task != "intseg":
        raise ValueError(f"backgrounds: nobody says what is on them, so {task} cannot be asked there; only intseg can")
    parts = (*PARTS, *(f"{CUTOUTS}{part}" for part in PARTS if cutouts))
    pictures = (
        SceneAssets.builtin() if assets == "builtin" else SceneAssets.load(assets or DEFAULT_FOLDER, parts, backgrounds)
    )
    questions: dict[str, Any] = dict(ask or {})
    if "prompt_kinds" in questions:
        questions["prompt_kinds"] = tuple(questions["prompt_kinds"])
    source = SceneSource(pictures, task, split, SceneConfig(**(scene or {})), AskConfig(**questions), size)
    source.name = name or source.name
    return source
