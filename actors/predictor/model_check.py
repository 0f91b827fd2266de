"""Checks that a model can be loaded and asked a run's prompts, without torch where the tokenizer can be read so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError, safe_open

from actors.predictor.config import PredictorConfig, model_folder
from actors.predictor.conversations import Ask, check_prompts, try_words
from pipelines.bounded_json import load_json
from pipelines.labeling.tiles.config import TileConfig
from pipelines.types import Prompt
from xsam_model.prompts.conversations import ConversationEncoder

# Sentences of a prompt table that are checked when a run is planned; more would make planning slow.
MAX_TRIED = 20_000
_CANVAS = 1024  # of a processor that says nothing else


def check_model(
    config: PredictorConfig,
    prompts: Sequence[Prompt],
    sentences: Iterable[Prompt] = (),
    *,
    tiles: TileConfig | None = None,
) -> dict[int, str]:
    """Check a run's text prompts with the model's processor, and that its weight files are whole, without loading them.

    Args:
        config: which model.
        prompts: prompts asked of every image.
        sentences: sentences of the prompt table. The first MAX_TRIED are checked here, which keeps planning quick; the
            others when they are asked.
        tiles: how large pictures are to be cut.

    Returns:
        For each sentence that cannot be asked, the reason, by its row.

    Raises:
        ValueError: the prompts do not fit the model (see check_prompts), a tile is smaller than its canvas, or a weight
            file is truncated or damaged.
        OSError: the folder holds no processor, or no weights.
    """
    folder = model_folder(config.path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    for file in weights:
        try:
            # Opening reads the header alone and compares the sizes in it with that of the file.
            with safe_open(file, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file.name} is cut short or damaged ({error}); copy it again") from error
    if tiles is not None and tiles.size < (canvas := _canvas(folder)):
        raise ValueError(
            f"tiles.size is {tiles.size}, and the model sees a picture on {canvas} x {canvas} pixels; smaller tiles "
            f"would only be enlarged: give at least {canvas}"
        )
    processor = _read_processor(folder)
    processor.category_text = config.category_text
    check_prompts(processor, prompts)
    reasons: dict[int, str] = {}
    for prompt in islice(sentences, MAX_TRIED):
        try:
            try_words(processor, Ask(prompt.task, prompt.explain), [prompt])
        except ValueError as error:
            reasons[prompt.source_row] = str(error)
    return reasons


def _canvas(folder: Path) -> int:
    """Return the height and width, in pixels, at which a model's mask encoder sees every picture."""
    settings = load_json((folder / "processor_config.json").read_bytes()).get("image_processor", {})
    return int(settings.get("segmentor_size", _CANVAS))


def _read_processor(folder: Path) -> ConversationEncoder:
    """Return the text half of a model's processor, or the whole where only transformers can read the tokenizer."""
    try:
        return ConversationEncoder.from_folder(folder)
    except (OSError, ValueError):
        from xsam_model.processing_xsam import XSamProcessor

        processor: XSamProcessor = XSamProcessor.from_pretrained(str(folder))
        return processor
