"""Writes converted weights to disk: sharded safetensors for us, one file for the reference implementation."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from xsam_model.conversion.checkpoints import INDEX_FILE, Checkpoint, CheckpointError, TensorInfo

# A checkpoint is opened anew for each of at most 32 parts, which releases the mapped memory of what was copied.
_PART_BYTES, _MOST_PARTS = 32 * 2**20, 32
_HASH_BYTES = 8 * 2**20
_LARGE = 10**9
_PATTERN = "model{suffix}.safetensors"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file, _progress("hashing", path.stat().st_size) as bar:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def plan_shards(targets: Mapping[str, TensorInfo], shard_size: str) -> StateDictSplit:
    """Assign tensors in order to files of at most `shard_size`, such as "2GB".

    Raises:
        CheckpointError: if `shard_size` is not a size.
    """
    try:
        return split_state_dict_into_shards_factory(
            dict(targets),
            get_storage_size=lambda info: info.nbytes,
            filename_pattern=_PATTERN,
            max_shard_size=shard_size,
        )
    except ValueError as error:
        raise CheckpointError(f"--max-shard-size: {shard_size!r} is no size; write 500MB or 2GB") from error


def write_shards(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    targets: Mapping[str, TensorInfo],
    plan: StateDictSplit,
    folder: Path,
) -> None:
    """Write weights for `from_pretrained`, holding one shard in memory at a time.

    Args:
        checkpoint: source of the tensors.
        names: name to write -> name in the checkpoint.
        targets: name to write -> shape and dtype to write; rows beyond the shape are left out.
        plan: result of `plan_shards`.
        folder: an existing folder.

    Raises:
        CheckpointError: if a value is not finite, or too large for its new dtype.
    """
    with _progress("writing", plan.metadata["total_size"]) as bar:
        for file, held in plan.filename_to_tensors.items():
            tensors = dict(_converted(checkpoint, [(name, names[name]) for name in held], targets, bar.update))
            _save_safetensors(tensors, folder / file)
            # Otherwise this shard would stay in memory while the next one is read.
            del tensors
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_single(
    checkpoint: Checkpoint, names: Mapping[str, str], targets: Mapping[str, TensorInfo], path: Path
) -> None:
    """Write weights into one file, .safetensors or of `torch.save` by its suffix; arguments as of `write_shards`."""
    with _progress("reading", sum(info.nbytes for info in targets.values())) as bar:
        tensors = dict(_converted(checkpoint, list(names.items()), targets, bar.update))
    if path.suffix == ".safetensors":
        _save_safetensors(tensors, path)
    else:
        torch.save(tensors, path)


def _save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    # The library creates files that only their owner may read; keep the usual permissions instead.
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _converted(
    checkpoint: Checkpoint,
    names: Sequence[tuple[str, str]],
    targets: Mapping[str, TensorInfo],
    advance: Callable[[int], object],
) -> Iterator[tuple[str, Tensor]]:
    taken: set[int] = set()
    for group in _groups(checkpoint, names):
        tensors = checkpoint.load([source for _, source in group])
        for name, source in group:
            converted = _convert(source, tensors.pop(source), targets[name])
            storage = converted.untyped_storage()
            # Safetensors refuses tensors that share memory, and torch.save would write the whole storage of a view.
            if storage.nbytes() != converted.nbytes or storage.data_ptr() in taken:
                converted = converted.clone()
            taken.add(storage.data_ptr())
            yield name, converted
            advance(converted.nbytes)


def _groups(checkpoint: Checkpoint, names: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    most = max(_PART_BYTES, sum(info.nbytes for info in checkpoint.tensors.values()) // _MOST_PARTS)
    group: list[tuple[str, str]] = []
    size = 0
    for pair in names:
        nbytes = checkpoint.tensors[pair[1]].nbytes
        if group and size + nbytes > most:
            yield group
            group, size = [], 0
        group.append(pair)
        size += nbytes
    yield group


def _convert(source: str, tensor: Tensor, target: TensorInfo) -> Tensor:
    kept = tensor[: target.shape[0]] if tensor.shape != target.shape else tensor
    converted = kept.to(target.dtype).contiguous()
    if not _is_finite(converted):
        if not _is_finite(kept):
            raise CheckpointError(f"{source} holds NaN or infinite values: the file is damaged, or its training failed")
        raise CheckpointError(f"{source} holds values too large for {target.dtype}: choose bfloat16 or float32")
    return converted


def _is_finite(tensor: Tensor) -> bool:
    # Allocates no mask, unlike isfinite on the whole tensor; NaN propagates to minimum and maximum.
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _progress(what: str, total: int) -> tqdm:
    """Return a progress bar, shown on a terminal or if there are at least `_LARGE` bytes."""
    shown = sys.stderr.isatty() or total >= _LARGE
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=not shown, mininterval=interval)
