"""What a classifier's classes say of a name: a distribution over the classes that things of the name are taken for.

Half of it is WordNet's word: a name stands for the classes at or below its senses, and less and less for those that it
shares ever wider kinds with. The other half is that of a sentence encoder, in which names of similar things are near
each other. As far as neither knows the name it says nothing: all classes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.names.nouns import PEOPLE, Nouns

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts -> float32 (number, channels) of length 1."""
_Floats = NDArray[np.float32]

# A kind that spans more of the classes than this share says too little of the things in it.
_WIDEST_KIND = 0.35
# What a step to a wider kind keeps; what a step up loses as long as no class is below.
_STEP, _EMPTY_STEP = 0.35, 0.6
_MOST_SENSES, _NEXT_SENSE, _ALSO_A_PERSON = 5, 0.5, 0.15
_ENCODER_SHARE, _TEMPERATURE = 0.5, 0.06
# The teacher is never surer than this, nor less sure than this of a name of its own.
_MOST_SURE, _LEAST_SURE = 0.9, 0.2
# Similarity from which a name is near a class, and by how much more it is as good as the class's own.
_NEAR, _NEARER = 0.3, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """The classes of a classifier.

    Attributes:
        names: what people call each.
        senses: WordNet's place of each.
    """

    names: tuple[str, ...]
    senses: tuple[str, ...]


@dataclass(slots=True)
class NameTeacher:
    """Says which classes things of a name are taken for.

    Attributes:
        classes: the classifier's classes.
        nouns: WordNet.
        embed: the sentence encoder.
    """

    classes: ClassNames
    nouns: Nouns
    embed: Embed
    _below: dict[str, list[int]] = field(init=False)
    _class_texts: _Floats = field(init=False)

    def __post_init__(self) -> None:
        self._below = {}
        for number, sense in enumerate(self.classes.senses):
            for kind in self.nouns.above(sense):
                self._below.setdefault(kind, []).append(number)
        plain = self.embed(self.classes.names)
        described = [
            f"{name}: {self.nouns.glosses[sense]}"
            for name, sense in zip(self.classes.names, self.classes.senses, strict=True)
        ]
        self._class_texts = np.asarray((plain + self.embed(described)) / 2, dtype=np.float32)

    def distributions(self, names: Sequence[str]) -> _Floats:
        """Return for each name the probabilities of the classes, float32 (names, classes)."""
        similar = self.embed(names) @ self._class_texts.T
        near = np.exp((similar - similar.max(1, keepdims=True)) / _TEMPERATURE)
        near /= near.sum(1, keepdims=True)
        rows = np.empty_like(near)
        for row, name in enumerate(names):
            by_kind, own = self._by_kind(name)
            told = near[row] if by_kind is None else (1 - _ENCODER_SHARE) * by_kind + _ENCODER_SHARE * near[row]
            sure = max(_MOST_SURE * own, np.clip((similar[row].max() - _NEAR) / _NEARER, _LEAST_SURE, _MOST_SURE))
            rows[row] = sure * told + (1 - sure) / len(told)
        return rows

    def _by_kind(self, name: str) -> tuple[_Floats | None, float]:
        """Return WordNet's distribution, None if it has none, and how much of the name has classes of its own."""
        senses = self.nouns.visible_senses(name)[:_MOST_SENSES]
        is_thing = any(self.nouns.files[sense] != PEOPLE for sense in senses)
        total, own = np.zeros(len(self.classes.names), dtype=np.float32), 0.0
        for rank, sense in enumerate(senses):
            weight = _NEXT_SENSE**rank
            if is_thing and self.nouns.files[sense] == PEOPLE:
                weight *= _ALSO_A_PERSON  # a dog, a tiger and a plate are people too, but hardly ever in pictures
            of_sense = self._of_sense(sense)
            total += weight * of_sense
            if sense in self._below:
                own = max(own, min(1.0, 1.5 * weight))
        return (total / total.sum() if total.any() else None), own

    def _of_sense(self, sense: str) -> _Floats:
        """Spread a sense over the classes below it, and over those of the kinds that it belongs to."""
        spread, left = np.zeros(len(self.classes.names), dtype=np.float32), 1.0
        seen: set[tuple[int, ...]] = set()
        for kind, steps in self.nouns.above(sense).items():
            below = tuple(self._below.get(kind, ()))
            if not below or below in seen or len(below) > _WIDEST_KIND * len(spread):
                continue
            share = left * (1 - _STEP) * (1.0 if seen else _EMPTY_STEP**steps)
            seen.add(below)
            spread[list(below)] += share / len(below)
            left -= share
        return spread
