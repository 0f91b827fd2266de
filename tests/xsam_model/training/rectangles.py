"""Pictures of colored rectangles with exact masks: a data set that needs nothing. Also read by launched processes."""

from dataclasses import replace

import numpy as np

from xsam_model.training.samples.samples import TrainingSample

COLORS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 240), "white": (245, 245, 245)}
NAMES = tuple(f"{color} box" for color in COLORS)
_ANSWERS = {"gcgseg": "<p>{}</p> and more. <SEG>", "chat": "It shows a {}."}


class Rectangles:
    """Two rectangles of two colors in each picture, asked about in one task."""

    def __init__(self, task="ovseg", size=32, side=64, name=None):
        self.name, self.task, self.categories = name or task, task, NAMES
        self._size, self._side = size, side

    def __len__(self):
        return self._size

    def draw(self, index, random):
        side, half = self._side, self._side // 2
        image = np.full((side, side, 3), 20, dtype=np.uint8)
        chosen = random.permutation(len(NAMES))[:2]
        masks = np.zeros((2, side, side), dtype=np.bool_)
        for place, color in enumerate(chosen):
            y, x = random.integers(2, side // 4, 2)
            height, width = random.integers(side // 4, half - 4, 2)
            masks[place, y : y + height, place * half + x : min(side, place * half + x + width)] = True
            image[masks[place]] = COLORS[NAMES[color].split()[0]]
        fields = {"image": image, "task": self.task, "source": self.name}
        names = [NAMES[color] for color in chosen]
        if self.task in ("vgdseg", "intseg"):
            asked = {"conditions": tuple(names), "visual_prompts": tuple(masks), "labels": np.array([0, 1])}
        elif self.task in ("refseg", "reaseg"):
            asked = {"conditions": tuple(f"the {name}" for name in names), "labels": np.array([0, 1])}
        elif self.task == "gcgseg":
            asked = {"answer": _ANSWERS["gcgseg"].format(names[0]), "labels": np.array([0])}
            masks = masks[:1]
        elif self.task == "chat":
            asked = {"conditions": ("What is this?",), "answer": _ANSWERS["chat"].format(names[0])}
            masks = masks[:0]
        else:
            asked = {"conditions": NAMES, "labels": chosen.astype(np.int64)}
        return TrainingSample(**fields, **asked, masks=masks)


class HalfEmpty(Rectangles):
    """Every other picture shows nothing of what is asked."""

    def is_filled(self, index):
        return index % 2 == 0

    def draw(self, index, random):
        sample = super().draw(index, random)
        return sample if self.is_filled(index) else replace(sample, masks=sample.masks[:0], labels=sample.labels[:0])
