"""Puts a name head together: the trunk's classifier, refitted to the trained trunk, and a reader of names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xsam_model.configuration_xsam import XSamConfig, XSamNameHeadConfig, XSamTrunkConfig
from xsam_model.conversion.new_output import whole_folder
from xsam_model.layers.name_head import XSamNameHead
from xsam_model.layers.trunk import XSamTrunk
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.training.loop.start import NOTICE_FILE
from xsam_model.training.names.fitting import fit_features, train_reader
from xsam_model.training.names.inputs import NameInputs
from xsam_model.training.names.teacher import NameTeacher
from xsam_model.training.pretrained_trunk import folded, trunk_weights
from xsam_model.training.scenes.art.vocabulary import STUFF_NAMES, curated_categories, everyday_names

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Cuts of each picture: how large, as a share of its shorter side; the first is the whole picture.
_LEAST_CUT, _AT_A_TIME = 0.3, 2
_SEED = 0
_TOLD_EVERY = 50  # updates of the reader
# How often a name comes in training: one of the classifier's or the scenes', a common one, any other.
_WEIGHTS = (6.0, 4.0, 1.0)


def with_name_head(
    model: Path,
    output: Path,
    inputs: NameInputs,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    config: XSamNameHeadConfig | None = None,
    steps: int = 3000,
    names: Sequence[str] | None = None,
    say: Callable[[str], object] = lambda _line: None,
) -> float:
    """Write a model like another, with a name head.

    Args:
        model: folder of the other model, whose mask encoder is a trunk that was trained from `inputs.weights`.
        output: folder to write, which must not exist.
        inputs: what the head is made of.
        pictures: uint8 (S, S, 3) canvases on which the trunk as it is and the published one are compared.
        config: sizes of the head, by default those of the published classifier.
        steps: updates of the reader.
        names: what the reader learns, by default `names_to_learn`.
        say: receives lines of progress.

    Returns:
        The reader's divergence from its teacher at the end, in nats.

    Raises:
        ValueError: the model's mask encoder is no trunk.
    """
    old = XSamForSegmentation.from_pretrained(model, dtype=torch.float32)
    if not isinstance(old.config.mask_encoder_config, XSamTrunkConfig):
        raise ValueError(f"--model: the mask encoder of {model} is no convolutional trunk")
    head_config = XSamNameHeadConfig() if config is None else config
    fields = {**old.config.to_dict(), "name_head_config": head_config.to_dict(), "score_calibration": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        new = XSamForSegmentation(XSamConfig(**fields))
    new.load_state_dict(old.state_dict(), strict=False)
    processor = XSamProcessor.from_pretrained(model)
    assert new.name_head is not None
    trunk_config = old.config.mask_encoder_config
    say(f"fitting the classifier to {len(pictures)} cuts")
    fit_classifier(new.name_head, new.segmentor.encoder, trunk_config, inputs.weights, canvases(pictures, processor))
    learned = names_to_learn(inputs.teacher) if names is None else list(names)
    say(f"asking the teacher about {len(learned)} names")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        losses = train_reader(
            new.name_head.reader,
            processor,
            learned,
            inputs.teacher.distributions(learned),
            how_often(learned, inputs.teacher),
            steps=steps,
            on_step=lambda step, loss: step % _TOLD_EVERY or say(f"reader {step}/{steps}: {loss:.2f} nats"),
        )
    with whole_folder(output) as beside:
        new.save_pretrained(str(beside))
        processor.save_pretrained(str(beside))
        (beside / NOTICE_FILE).write_text(_with_notices(model, inputs.notices), encoding="utf-8")
    return float(np.mean(losses[-100:]))


def _with_notices(model: Path, notices: Sequence[str]) -> str:
    """Return the notice that goes with a model, and those that it lacks."""
    own = model / NOTICE_FILE
    said = own.read_text(encoding="utf-8") if own.is_file() else ""
    return "\n".join(filter(None, [said, *(notice for notice in notices if notice not in said)]))


@torch.no_grad()
def fit_classifier(
    head: XSamNameHead,
    trunk: XSamTrunk,
    config: XSamTrunkConfig,
    weights: dict[str, Tensor],
    pixel_values: Iterator[Tensor],
) -> None:
    """Give a head the published classifier, as it is to look at a trunk that has been trained since.

    Args:
        head: changed in place.
        trunk: the trunk as it is.
        config: its sizes.
        weights: published weights, see `pretrained_trunk.trunk_weights`.
        pixel_values: (B, 3, S, S) canvases.
    """
    last = config.num_hidden_layers
    published = XSamTrunk(config, (trunk.token_positions.shape[2], trunk.token_positions.shape[0]))
    published.load_state_dict(trunk_weights(weights, config), strict=False)
    seen, wanted = [], []
    for canvas in pixel_values:
        maps = trunk.encode(canvas, set(head.config.layers))
        seen.append(torch.cat([maps[layer] for layer in head.config.layers], dim=-1).flatten(0, 2))
        wanted.append(published.encode(canvas, {last})[last].flatten(0, 2))
    weight, bias = fit_features(torch.cat(seen), torch.cat(wanted))
    convolution = folded(weights, "_conv_head", "_bn1", "head")
    to_features = convolution["head.weight"][:, :, 0, 0]
    head.features.weight.copy_(to_features @ weight)
    head.features.bias.copy_(to_features @ bias + convolution["head.bias"])
    head.classes.weight.copy_(weights["_fc.weight"])
    head.classes.bias.copy_(weights["_fc.bias"])


def canvases(pictures: Sequence[NDArray[np.uint8]], processor: XSamProcessor) -> Iterator[Tensor]:
    """Yield pictures as the mask encoder reads them, a few at a time."""
    for start in range(0, len(pictures), _AT_A_TIME):
        pixels = processor.image_processor(list(pictures[start : start + _AT_A_TIME]))
        yield torch.as_tensor(np.asarray(pixels["segmentor_pixel_values"]))


def read_pictures(
    folders: Sequence[Path], count: int, side: int, on_skip: Callable[[str], object] = print
) -> list[NDArray[np.uint8]]:
    """Cut pictures out of all the photographs of some folders, the same ones each time.

    Args:
        folders: searched with all that is below them.
        count: number of cuts.
        side: longer side of a cut in pixels.
        on_skip: told of each file that cannot be read.

    Raises:
        ValueError: there is no photograph.
    """
    found, random = [], np.random.default_rng(0)
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES):
        try:
            with Image.open(path) as opened:
                opened.draft("RGB", (4 * side, 4 * side))
                picture = opened.convert("RGB")
            picture.thumbnail((4 * side, 4 * side))
            found.append(picture)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            on_skip(f"{path} is left out: {str(error)[:150]}")
    if not found:
        raise ValueError(f"--pictures: no photograph ({', '.join(_SUFFIXES)}) in {', '.join(map(str, folders))}")
    return [_cut(found[place % len(found)], side, random, whole=place < len(found)) for place in range(count)]


def _cut(picture: Image.Image, side: int, random: np.random.Generator, *, whole: bool) -> NDArray[np.uint8]:
    width, height = picture.size
    if not whole:
        length = random.uniform(_LEAST_CUT, 1) * min(width, height)
        narrow = np.exp(random.uniform(-0.2, 0.2))
        size = [min(width, length * narrow), min(height, length / narrow)]
        left, top = (random.uniform(0, total - part) for total, part in zip((width, height), size, strict=True))
        picture = picture.crop((int(left), int(top), int(left + size[0]) + 1, int(top + size[1]) + 1))
        if random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * part)) for part in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def names_to_learn(teacher: NameTeacher) -> list[str]:
    """Return the names that a reader learns: WordNet's of at most two words, the classes', and those of scenes."""
    return sorted({*teacher.nouns.names(2), *_often(teacher)})


def how_often(names: Sequence[str], teacher: NameTeacher) -> NDArray[np.float32]:
    """Return how often each name comes in training, compared with the others, float32 (names,)."""
    often, common = _often(teacher), teacher.nouns.common
    return np.array([_WEIGHTS[0 if name in often else 1 if name in common else 2] for name in names], dtype=np.float32)


def _often(teacher: NameTeacher) -> set[str]:
    scenes = {*STUFF_NAMES, *everyday_names(), *(one.name for one in curated_categories())}
    words = {word for sense in teacher.classes.senses for word in teacher.nouns.words[sense]}
    return scenes | {name.lower() for name in teacher.classes.names} | {word for word in words if word == word.lower()}
