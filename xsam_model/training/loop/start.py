"""Creates the model that a run from scratch starts from: random weights, and a tokenizer trained on the data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from xsam_model.conversion.new_output import whole_folder
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.training.samples.sources import SampleSource
from xsam_model.training.tiny import build_processor, train_tokenizer, xsam_tiny_config

NOTICE_FILE = "NOTICE"
_SAMPLES_TO_READ = 200  # of each source, for the tokenizer


def start_model(folder: Path, sources: Sequence[SampleSource], seed: int = 0, size: str = "tiny") -> None:
    """Write a `from_pretrained` folder of `xsam_tiny_config`; the same sources and seed write the same files.

    Args:
        folder: must not exist; appears only when it is complete.
        sources: the tokenizer learns their categories and the words of some of their samples.
        seed: seed of the weights, and of the samples that are read.
        size: one of `tiny.SIZES`.
    """
    tokenizer = train_tokenizer(_read_phrases(sources, seed))
    config = xsam_tiny_config(tokenizer, size)
    # Leaves the caller's random state alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XSamForSegmentation(config)
    with whole_folder(folder) as beside:
        model.save_pretrained(str(beside))
        build_processor(config, tokenizer).save_pretrained(str(beside))


def check_model_folder(folder: Path) -> None:
    """Check what a command was given as ``--model``.

    Raises:
        ValueError: it holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model: {folder} holds no config.json: give the folder of a model")


def copy_notice(model: Path, output: Path) -> None:
    """Copy the notice that goes with a model's weights, if it has one: what is trained from them needs it too."""
    if (model / NOTICE_FILE).is_file():
        shutil.copyfile(model / NOTICE_FILE, output / NOTICE_FILE)


def _read_phrases(sources: Sequence[SampleSource], seed: int) -> list[str]:
    phrases = [name for source in sources for name in source.categories]
    for source in sources:
        for number in range(min(_SAMPLES_TO_READ, len(source))):
            sample = source.draw(number, np.random.default_rng([seed, number]))
            phrases += [*sample.conditions, *filter(None, (sample.question, sample.answer))]
    return sorted(set(phrases))
