"""Fits a name head: its classifier to the trunk that the model has by now, its reader to a teacher's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xsam_model.layers.name_head import XSamNameReader
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, clean_category

_RIDGE = 1e-3
_BATCHES_TOGETHER = 8
# How often a name comes with a word before it, which leaves what it means to the eye as it is.
_DESCRIBED = 0.3
_BEFORE = (
    "a, the, small, large, old, new, red, blue, green, yellow, white, black, brown, wooden, metal, plastic, glass, "
    "round, open, two, three, many, young, modern, little, bright, striped, broken, empty, pink, grey, orange"
)


def fit_features(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Find by least squares the linear map from a changed trunk's channels to those of the original one.

    Args:
        inputs: (P, C), channels of the model's trunk at many places of many pictures.
        wanted: (P, D), those of the original trunk at the same places.

    Returns:
        Weight (D, C) and bias (D,).
    """
    means = inputs.mean(0), wanted.mean(0)
    centered = inputs - means[0]
    products = centered.T @ centered
    products += torch.eye(len(products)) * products.diagonal().mean() * _RIDGE
    weight = torch.linalg.solve(products, centered.T @ (wanted - means[1])).T
    return weight, means[1] - weight @ means[0]


def tokenized(processor: XSamProcessor, names: Sequence[str]) -> list[Tensor]:
    """Return each name's token ids plus 1, as `gather_names` makes them of a conversation about categories."""
    marked = [f"{PHRASE_START}{clean_category(name)}{PHRASE_END}" for name in names]
    ids = processor.tokenizer(marked, add_special_tokens=False)["input_ids"]
    return [torch.tensor(row[1:-1]) + 1 for row in ids]


def described(names: Sequence[str], random: np.random.Generator) -> list[str]:
    """Put a word before some of the names."""
    before = _BEFORE.split(", ")
    return [
        f"{before[random.integers(len(before))]} {name}" if random.random() < _DESCRIBED else name for name in names
    ]


def train_reader(  # noqa: PLR0913  (each is a choice of its own)
    reader: XSamNameReader,
    processor: XSamProcessor,
    names: Sequence[str],
    targets: NDArray[np.float32],
    weights: NDArray[np.float32],
    *,
    steps: int,
    batch_size: int = 192,
    learning_rate: float = 3e-3,
    seed: int = 0,
    on_step: Callable[[int, float], object] = lambda _step, _loss: None,
) -> list[float]:
    """Train a reader to answer as the teacher does.

    Args:
        reader: trained in place.
        processor: the model's.
        names: what is read.
        targets: (names, classes), the teacher's distributions.
        weights: (names,), how often each comes in comparison.
        steps: updates.
        on_step: called after each with its number and its loss.

    Returns:
        The divergence from the teacher in each step, in nats.
    """
    random = np.random.default_rng(seed)
    spoken = [described(names, random) for _ in range(2)]
    tokens = [tokenized(processor, list(names)), *(tokenized(processor, texts) for texts in spoken)]
    shares = weights / weights.sum()
    reader.requires_grad_(True)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=learning_rate, weight_decay=1e-4)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        if not step % _BATCHES_TOGETHER:
            chosen = random.choice(len(names), size=_BATCHES_TOGETHER * batch_size, p=shares)
            drawn = [(tokens[random.integers(len(tokens))][place], place) for place in chosen]
            # Names of about one length together, so that hardly anything is padding.
            drawn.sort(key=lambda one: len(one[0]))
            order = random.permutation(_BATCHES_TOGETHER)
        rows, places = zip(*drawn[order[step % _BATCHES_TOGETHER] * batch_size :][:batch_size], strict=True)
        read = reader(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)).log_softmax(-1)
        wanted = torch.as_tensor(targets[list(places)], dtype=torch.float32)
        loss = F.kl_div(read, wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        on_step(step, losses[-1])
    reader.requires_grad_(False)
    return losses
