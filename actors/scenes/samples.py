"""Draws and batches the scenes that a model is tested on, and reports progress. No model, no metrics."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.assets import DEFAULT_FOLDER, SPLITS, SceneAssets
from xsam_model.training.scenes.asked.tasks import AskConfig
from xsam_model.training.scenes.scene import SceneConfig
from xsam_model.training.scenes.source import SceneSource

# Part of each sample's seed: results are comparable over time only while a task keeps its number.
_TASK_NUMBERS = {"ovseg": 1, "vgdseg": 2, "refseg": 3, "intseg": 4, "gcgseg": 5, "genseg": 6}
_EXEMPLARS = 7
# Most scenes drawn for each one wanted; without a limit a condition that hardly any scene meets would never end.
_MAX_DRAWS = 30


@dataclass(frozen=True, kw_only=True)
class SceneTest:
    """Selects the scenes to test on; the same fields give the same scenes.

    Attributes:
        assets: pictures that scenes are composed of.
        split: one of `scenes.art.assets.SPLITS`. Training draws from "train" alone.
        seed: seed of the scenes.
        count: number of scenes for each test.
        scene: how scenes look.
        num_names: names asked at once in the shorter of the two open-vocabulary tests.
        batch_size: images that go through the model together.
        on_asked: called with the number of scenes just asked about.
    """

    assets: SceneAssets
    split: str = "test"
    seed: int = 0
    count: int = 160
    scene: SceneConfig = field(default_factory=SceneConfig)
    num_names: int = 16
    batch_size: int = 8
    on_asked: Callable[[int], object] = lambda _count: None

    @property
    def num_asked(self) -> int:
        """Number of object names that may be asked for."""
        return len(self.assets.pool(self.split, self.scene.core_only).asked)

    @property
    def stuff_names(self) -> tuple[str, ...]:
        """Names of the surfaces that may be asked for."""
        return tuple(self.assets.pool(self.split, self.scene.core_only).asked_stuff)

    def samples(
        self, task: str, *, wanted: Callable[[TrainingSample], bool] | None = None, **asked: Any
    ) -> list[TrainingSample]:
        """Draw scenes with their prompts.

        Args:
            task: which task's prompts.
            wanted: condition on samples; scenes are drawn until `count` of them meet it.
            asked: fields of `AskConfig`.

        Returns:
            `count` samples; fewer if hardly any scene meets the condition.
        """
        config = AskConfig(nothing_present_share=0.0, synonym_share=0.0, **asked)
        source = SceneSource(self.assets, task, self.split, self.scene, config)
        number = self.count if wanted is None else self.count * _MAX_DRAWS
        seeds = ([self.seed, _TASK_NUMBERS[task], index] for index in range(number))
        drawn = (source.draw(0, np.random.default_rng(seed)) for seed in seeds)
        return list(itertools.islice((one for one in drawn if wanted is None or wanted(one)), self.count))

    def exemplars(self, names: Iterable[str], number: int, **asked: Any) -> dict[str, list[TrainingSample]]:
        """Draw other scenes, in each of which one object is marked that has a name.

        Args:
            names: the names.
            number: scenes for each name.
            asked: fields of `AskConfig`.

        Returns:
            By name `number` samples with one visual prompt; fewer if hardly any scene shows such an object.
        """
        config = AskConfig(nothing_present_share=0.0, synonym_share=0.0, **asked)
        source = SceneSource(self.assets, "vgdseg", self.split, self.scene, config)
        found: dict[str, list[TrainingSample]] = {name: [] for name in names}
        for index in range(number * len(found) * _MAX_DRAWS):
            if all(len(samples) == number for samples in found.values()):
                break
            drawn = source.draw(0, np.random.default_rng([self.seed, _EXEMPLARS, index]))
            for place, (name, prompt) in enumerate(zip(drawn.conditions, drawn.visual_prompts, strict=True)):
                if name in found and len(found[name]) < number:
                    masks = drawn.masks[drawn.labels == place]
                    labels = np.zeros(len(masks), dtype=np.int64)
                    one = replace(drawn, conditions=(name,), visual_prompts=(prompt,), masks=masks, labels=labels)
                    found[name].append(one)
        return found

    def batches(self, samples: Sequence[TrainingSample], size: int | None = None) -> Iterator[Sequence[TrainingSample]]:
        """Yield batches of `size` samples, by default `batch_size`; a batch is reported when the next is taken."""
        return reported_batches(samples, size or self.batch_size, self.on_asked)


def reported_batches(
    samples: Sequence[TrainingSample], size: int, on_asked: Callable[[int], object]
) -> Iterator[Sequence[TrainingSample]]:
    """Yield batches of samples; the size of a batch is reported when the next is taken."""
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        yield batch
        on_asked(len(batch))


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a model and its test scenes; `read_test` reads them."""
    parser.add_argument("--model", required=True, help="folder of save_pretrained")
    parser.add_argument("--assets", default=str(DEFAULT_FOLDER), help="folder of the scenes' pictures")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=160, help="scenes for each test")
    parser.add_argument("--side", type=int, default=128, help="pixels of a scene")
    parser.add_argument("--core", action="store_true", help="the small vocabulary")


def read_test(options: argparse.Namespace) -> SceneTest:
    """Return the test scenes that a command's options select."""
    return SceneTest(
        assets=SceneAssets.load(options.assets),
        split=options.split,
        seed=options.seed,
        count=options.count,
        scene=SceneConfig(side_pixels=options.side, core_only=options.core),
    )
