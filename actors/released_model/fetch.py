"""Makes a model folder of the released checkpoint: told, fetched, converted, tried; whole at the end or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from huggingface_hub.utils import logging as hub_logging
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from actors.released_model.choice import ReleasedModel
from actors.released_model.hub_files import FetchError, HubFiles, cache_folder, fetch_files, find_files
from pipelines.images.decode import DecodeError, decode_image
from pipelines.masks import rle
from pipelines.masks.drawing import LabeledMask, contact_sheet, draw_masks
from pipelines.redaction import redacted
from pipelines.types import ImageRef
from xsam_model.conversion.base_models import CONFIG_FILE, read_base_models, read_json
from xsam_model.conversion.checkpoints import CheckpointError
from xsam_model.conversion.new_output import OTHER_BYTES, check_new_folder, whole_folder
from xsam_model.convert_xsam_to_hf import DTYPES, Conversion, convert
from xsam_model.post_processing.instances import InstanceSegmentation
from xsam_model.segmenter import XSamSegmenter

EXAMPLE = "example.png"
_SUFFIXES = (".json", ".model", ".txt")  # of configuration and tokenizer
_TASK, _DRAWN_MASKS, _DRAWN_SCORE = "ovseg", 12, 0.3


def fetch_model(
    wanted: ReleasedModel, say: Callable[[str], None], *, with_bar: bool = False, is_dry_run: bool = False
) -> None:
    """Fetch a checkpoint and its base models, convert them, and label a picture with the result.

    Args:
        wanted: what, and where to.
        say: receives what the user is told.
        with_bar: whether a terminal shows how far a large file is.
        is_dry_run: only tell what would be fetched, and whether there is room for it.

    Raises:
        FetchError: something is not there, cannot be fetched, does not fit on the disk or into the model, or the model
            cannot be used. The output is untouched; what was fetched stays in the cache. Or the model is written, and
            the picture could not be labeled; the message says so.
    """
    # One would warn of each connection that breaks, before it tries again, the other draw a bar while it loads.
    hub_logging.set_verbosity(hub_logging.ERROR)
    transformers_logging.disable_progress_bar()
    _check(wanted)
    found = {
        "checkpoint": _find("--checkpoint", wanted.checkpoint, wanted.checkpoint_file, lambda _name: False),
        "text_model": _find("--text-model", wanted.text_model, CONFIG_FILE, _is_small),
        "vision_model": _find("--vision-model", wanted.vision_model, CONFIG_FILE, _is_small),
        "mask_encoder": _find("--mask-encoder", wanted.mask_encoder, CONFIG_FILE, _is_small),
    }
    for part in found.values():
        if isinstance(part, HubFiles):
            here = part.num_bytes - (left := part.num_bytes_left())
            say(f"{part}: {_size(part.num_bytes)}" + (f", {_size(here)} of it here" * bool(here) if left else ", here"))
        else:
            say(f"{part}: used as it is")
    _check_room(found, wanted, say)
    if is_dry_run:
        return
    with _written(wanted.output) as folder:
        places: dict[str, Path] = {}
        # The checkpoint comes last: what is wrong with the rest is found before hours of waiting.
        for name in reversed(found):
            if name == "checkpoint":
                _check_small(wanted, places)
            part = found[name]
            places[name] = fetch_files(part, with_bar=with_bar) if isinstance(part, HubFiles) else part
        _convert(wanted, places, folder, say)
    # Only now, since a machine without the memory for it may kill the process.
    if wanted.picture:
        _try(wanted.output, wanted.picture, wanted.categories, say)


def _check(wanted: ReleasedModel) -> None:
    """Refuse what needs no network to be seen as wrong."""
    try:
        check_new_folder(wanted.output)
    except CheckpointError as error:
        raise FetchError(str(error)) from error
    if wanted.dtype not in DTYPES:
        raise FetchError(f"--dtype: {wanted.dtype} is none of {', '.join(DTYPES)}")
    if wanted.config and not wanted.config.is_file():
        raise FetchError(f"--config: {wanted.config} does not exist")
    if wanted.picture:
        if not wanted.categories:
            raise FetchError("--categories: nothing is asked of the picture; name something, or give --no-picture")
        _read(wanted.picture)


def _find(option: str, named: str, needed: str, is_wanted: Callable[[str], bool]) -> HubFiles | Path:
    """Return a folder or file of this machine as it is, else what is to be fetched."""
    place = Path(named).expanduser()
    if place.exists():
        return place
    if place.is_absolute() or named.startswith((".", "~")):
        raise FetchError(f"{option}: {named} does not exist")
    return find_files(option, named, needed, is_wanted)


def _is_small(name: str) -> bool:
    return "/" not in name and PurePosixPath(name).suffix in _SUFFIXES and not name.endswith(".index.json")


def _check_room(found: dict[str, HubFiles | Path], wanted: ReleasedModel, say: Callable[[str], None]) -> None:
    """Tell and compare what is needed and what is free, on the disk of the cache and on that of the output."""
    fetched = sum(part.num_bytes_left() for part in found.values() if isinstance(part, HubFiles))
    weights = _checkpoint(found["checkpoint"], wanted)
    # A cast to float32 doubles what is half precision; to less than the checkpoint has it halves it, but who knows.
    written = weights * (2 if wanted.dtype == "float32" else 1) + OTHER_BYTES
    cache, output = _existing(cache_folder()), _existing(wanted.output.absolute())
    needs = {cache: fetched} if fetched else {}
    if fetched and cache.stat().st_dev == output.stat().st_dev:
        needs[cache] += written
    else:
        needs[output] = written
    for place, num_bytes in needs.items():
        free = shutil.disk_usage(place).free
        told = f"{_size(num_bytes)} are needed, {_size(free)} are free in {place}"
        if free < num_bytes:
            parts = f"{_size(fetched)} to fetch (into {cache_folder()}), up to {_size(written)} for {wanted.output}"
            raise FetchError(f"no room: {told}: {parts}; free some, or choose another --output or HF_HOME")
        say(told)


def _checkpoint(part: HubFiles | Path, wanted: ReleasedModel) -> int:
    """Return the size of the checkpoint."""
    if isinstance(part, HubFiles):
        return part.num_bytes
    file = _file_of(part, wanted)
    return file.stat().st_size if file.exists() else 0


def _file_of(place: Path, wanted: ReleasedModel) -> Path:
    return place / wanted.checkpoint_file if place.is_dir() else place


def _existing(place: Path) -> Path:
    return next(one for one in (place, *place.parents) if one.is_dir())


@contextmanager
def _written(output: Path) -> Iterator[Path]:
    """Provide a folder that becomes the output, or is removed; nobody else writes this output meanwhile."""
    try:
        with whole_folder(output.absolute()) as folder:
            try:
                check_new_folder(output)  # again: another process may have written it by now
                yield folder
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except FetchError:
        raise
    except (CheckpointError, OSError) as error:
        raise FetchError(f"{error}; nothing was written") from error


def _check_small(wanted: ReleasedModel, places: dict[str, Path]) -> None:
    """Refuse base models that do not fit, and categories that their tokenizer cannot ask for."""
    _, processor, _ = read_base_models(
        places["text_model"],
        places["vision_model"],
        places["mask_encoder"],
        read_json(wanted.config) if wanted.config else {},
    )
    if wanted.picture:
        try:
            processor.token_ids(wanted.categories, task=_TASK)
        except ValueError as error:
            raise FetchError(
                f"--categories: the picture cannot be asked for these: {error} Name others, or give --no-picture; "
                "nothing was written"
            ) from error


def _convert(wanted: ReleasedModel, places: dict[str, Path], folder: Path, say: Callable[[str], None]) -> None:
    convert(
        Conversion(
            checkpoint=_file_of(places["checkpoint"], wanted),
            text_model=places["text_model"],
            vision_model=places["vision_model"],
            mask_encoder=places["mask_encoder"],
            output=folder,
            config=wanted.config,
            dtype=wanted.dtype,
        ),
        lambda text: say(text.replace(str(folder), str(wanted.output))),
    )
    # Its command names the folder that was written to, which is renamed in the end.
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(folder.name, wanted.output.name), "utf-8")


def _try(model: Path, picture: Path, categories: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Label a picture with a model that is written; hours of work are not lost if that cannot be done."""
    try:
        told = _label(model, picture, categories)
    except Exception as error:
        # no room on the GPU or in memory, a picture that has gone, no room on the disk for the drawing, ...
        reason = redacted(f"{type(error).__name__}: {error}").partition("\n")[0]
        raise FetchError(
            f"the model is written to {model}, and whole; the picture {picture} could not be labeled: {reason}. Use "
            "the model as any other (`xsam-label run --model`); another time give --no-picture, or other --categories"
        ) from error
    say(told)


def _read(picture: Path) -> NDArray[np.uint8]:
    """Return the pixels of a picture, uint8 (H, W, 3)."""
    try:
        return decode_image(picture.read_bytes(), ImageRef(image_id=picture.name, uri=str(picture))).pixels
    except (OSError, DecodeError) as error:
        raise FetchError(
            f"--picture: {picture} cannot be read ({error}); name another, and with --categories what to look for in "
            "it, or give --no-picture"
        ) from error


def _label(folder: Path, picture: Path, categories: tuple[str, ...]) -> str:
    """Label a picture with the model of a folder, and draw there what it found; return what to say about it."""
    pixels = _read(picture)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Half the memory of float32: a model of this size is also looked at on machines that will never label with it.
    segmenter = XSamSegmenter.from_pretrained(folder, dtype=torch.bfloat16, device_map=device)
    (result,) = segmenter.segment(
        [pixels], task=_TASK, conditions=[list(categories)], threshold=_DRAWN_SCORE, top_k=_DRAWN_MASKS
    )
    found = result.segmentation
    assert isinstance(found, InstanceSegmentation)
    drawn = [
        LabeledMask(segmentation=rle.encode(mask.numpy()), name=categories[label], score=float(score), color=number)
        for number, (mask, label, score) in enumerate(zip(found.masks.cpu(), found.labels, found.scores, strict=True))
    ]
    sheet = contact_sheet([(picture.name, draw_masks(pixels, drawn), drawn)], columns=1, cell=800)
    sheet.save(folder / EXAMPLE)
    told = ", ".join(f"{one.name} {one.score:.2f}" for one in drawn) or f"none of {', '.join(categories)}"
    return f"found in {picture} with a score of {_DRAWN_SCORE} or more: {told}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
