"""Which scenes a model is tested on, and how far the test is: drawing, batches, progress. No model, no metrics."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.assets import DEFAULT_FOLDER, SPLITS, SceneAssets
from xsam_model.training.scenes.asked.tasks import AskConfig
from xsam_model.training.scenes.scene import SceneConfig
from xsam_model.training.scenes.source import SceneSource

_TASK_NUMBERS = {"ovseg": 1, "vgdseg": 2, "refseg": 3, "intseg": 4, "gcgseg": 5, "genseg": 6}
# Scenes drawn for each one that is wanted, at most.
_MAX_DRAWS = 30


def _nobody_asks(_count: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class SceneTest:
    """Which scenes to test on; the same fields give the same scenes.

    Attributes:
        assets: pictures.
        split: one of `scenes.assets.SPLITS`.
        seed: of the scenes; training never draws from these splits.
        count: scenes for each question.
        scene: how scenes look.
        num_names: names asked at once in the shorter of the two open-vocabulary tests.
        batch_size: images that go through the model together.
        on_asked: told how many scenes have just been asked about; by default nobody is.
    """

    assets: SceneAssets
    split: str = "test"
    seed: int = 0
    count: int = 160
    scene: SceneConfig = field(default_factory=SceneConfig)
    num_names: int = 16
    batch_size: int = 8
    on_asked: Callable[[int], object] = _nobody_asks

    @property
    def num_asked(self) -> int:
        """How many names of objects may be asked for."""
        return len(self.assets.pool(self.split, self.scene.core_only).asked)

    @property
    def stuff_names(self) -> tuple[str, ...]:
        """Names of the surfaces that may be asked for."""
        return tuple(self.assets.pool(self.split, self.scene.core_only).asked_stuff)

    def samples(
        self, task: str, *, wanted: Callable[[TrainingSample], bool] | None = None, **asked: Any
    ) -> list[TrainingSample]:
        """Draw scenes with their questions.

        Args:
            task: what is asked.
            wanted: which samples to take; further scenes are drawn until there are `count`.
            asked: fields of `AskConfig`.

        Returns:
            `count` samples; fewer where hardly any is wanted.
        """
        config = AskConfig(nothing_present_share=0.0, synonym_share=0.0, **asked)
        source = SceneSource(self.assets, task, self.split, self.scene, config)
        number = self.count if wanted is None else self.count * _MAX_DRAWS
        seeds = ([self.seed, _TASK_NUMBERS[task], index] for index in range(number))
        drawn = (source.draw(0, np.random.default_rng(seed)) for seed in seeds)
        return list(itertools.islice((one for one in drawn if wanted is None or wanted(one)), self.count))

    def batches(self, samples: Sequence[TrainingSample], size: int | None = None) -> Iterator[Sequence[TrainingSample]]:
        """Cut samples into batches of `size`, by default `batch_size`; a batch counts as asked once it is left."""
        step = size or self.batch_size
        for start in range(0, len(samples), step):
            batch = samples[start : start + step]
            yield batch
            self.on_asked(len(batch))


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Let a command say which model is tested on which scenes; `read_test` reads what was said."""
    parser.add_argument("--model", required=True, help="folder of save_pretrained")
    parser.add_argument("--assets", default=str(DEFAULT_FOLDER), help="folder of scenes.assets")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=160, help="scenes for each test")
    parser.add_argument("--side", type=int, default=128, help="pixels of a scene")
    parser.add_argument("--core", action="store_true", help="the small vocabulary")


def read_test(options: argparse.Namespace) -> SceneTest:
    """Return the scenes that a command's options name."""
    return SceneTest(
        assets=SceneAssets.load(options.assets),
        split=options.split,
        seed=options.seed,
        count=options.count,
        scene=SceneConfig(side_pixels=options.side, core_only=options.core),
    )


__all__ = ["SceneTest", "add_test_options", "read_test"]
