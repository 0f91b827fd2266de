"""Opens weight files without executing anything in them: torch pickles, safetensors, and `from_pretrained` folders.

Knows files, not what their tensors are for.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
NESTING_KEY = "state_dict"
_ZIP, _PICKLE, _GIT_LFS = b"PK\x03\x04", b"\x80", b"version https://git-lfs"
_TRUNCATED = re.compile(
    r"central directory|EOF|out of input|not fully covered|truncated|too large|invalid header", re.I
)
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class)[: ]+(?:GLOBAL )?([\w.]+)")
_UNREAD_PICKLE = re.compile(r"WeightsUnpickler error:\s*([^\n]+)")


class CheckpointError(ValueError):
    """A conversion is not possible; the message tells the user why."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of its elements in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Named tensors on disk.

    Attributes:
        path: file or folder.
        tensors: its tensors, in the order of the file.
        others: entries that are not dense tensors, with a description of each.
        load: reads tensors by name, on the CPU. They may be views of the mapped file, whose pages stay in memory until
            the tensors are dropped.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    others: Mapping[str, str]
    load: Callable[[Sequence[str]], dict[str, Tensor]]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a weight file: .safetensors, or a state dict from `torch.save`, flat or under "state_dict".

    Args:
        path: the file. Nothing in it is executed, and tensors stay on disk, except for the format that torch wrote
            before 1.6, which must be read whole.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, not a checkpoint, or holds code or no tensors.
    """
    start = _first_bytes(path)
    if start.startswith(_GIT_LFS):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    # Safetensors begin with the length of a JSON header in eight bytes, then the header.
    if path.suffix == ".safetensors" or start[8:10] == b'{"':
        return _open_safetensors(path, {None: path})
    if start.startswith(_ZIP):
        _check_archive(path)
        return _from_pickle(path, lambda: _unpickle(path, mmap=True))
    if not start.startswith(_PICKLE):
        raise CheckpointError(
            f"{path} is no checkpoint: it begins with {start[:8]!r}, unlike safetensors and what `torch.save` writes"
        )
    entries = _unpickle(path, mmap=False)
    return _from_pickle(path, lambda: entries)


def open_folder(folder: Path) -> Checkpoint:
    """Open the weights of a `from_pretrained` folder, in one file or sharded.

    Raises:
        CheckpointError: if there are none, or a file is missing or truncated.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder" if folder.exists() else f"{folder} does not exist")
    index = folder / INDEX_FILE
    if not index.is_file():
        if not (folder / WEIGHTS_FILE).is_file():
            raise CheckpointError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
        return _open_safetensors(folder, {None: folder / WEIGHTS_FILE})
    try:
        places = json.loads(index.read_text())["weight_map"]
        # The bare name: an index must not lead outside its folder.
        files = {name: folder / Path(file).name for name, file in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weights: {error!r}") from error
    return _open_safetensors(folder, files)


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the file of weights in it")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise CheckpointError(f"{path} is empty")
    return start


def _open_safetensors(path: Path, files: Mapping[str | None, Path]) -> Checkpoint:
    """Open files, given by the tensors expected in them; the key None stands for any tensors."""
    places: dict[str, Path] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in dict.fromkeys(files.values()):
        _first_bytes(file)
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                    part = opened.get_slice(name)
                    places[name] = file
                    # Of a type that is refused only the name in the message depends on what stands for it.
                    dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8)
                    tensors[name] = TensorInfo(tuple(part.get_shape()), dtype)
        except (SafetensorError, struct.error, OSError) as error:
            raise CheckpointError(_unreadable(file, error)) from error
    lost = [name for name in files if name is not None and name not in places]
    if lost:
        raise CheckpointError(f"{path}: {files[lost[0]].name} lacks {lost[0]}, which the index names")
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")

    def load(names: Sequence[str]) -> dict[str, Tensor]:
        loaded = {}
        for file in dict.fromkeys(places[name] for name in names):
            with safe_open(file, framework="pt") as opened:
                loaded.update({name: opened.get_tensor(name) for name in names if places[name] == file})
        return loaded

    return Checkpoint(path=path, tensors=tensors, others={}, load=load)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} is cut short or damaged: fetch it again ({error})") from error
    # Records are mapped into memory as they are, so the bytes of a compressed one would be taken for numbers.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} is a compressed archive, which torch does not write: unpack it first")
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is no checkpoint: a zip archive, but not one of `torch.save`")


def _unpickle(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns about pickles that it did not write, which are refused anyway.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error) or repr(error)
    refused = _REFUSED_GLOBAL.search(reason)
    if refused:
        return (
            f"{path} holds more than tensors: unpickling it would call {refused[1] or refused[2]}, so it was not "
            "loaded and nothing in it was run. Ask its author for a file of plain tensors. If you trust it, load it "
            "with torch elsewhere and save its state dict alone: torch.save(state_dict, ...), or safetensors."
        )
    if isinstance(error, EOFError) or _TRUNCATED.search(reason):
        return f"{path} is cut short or damaged: fetch it again ({reason.splitlines()[0]})"
    # Cut torch's message, which goes on to recommend executing what is in the file.
    unread = _UNREAD_PICKLE.search(reason)
    detail = unread[1] if unread else reason.splitlines()[0]
    return f"{path} is no checkpoint that could be read without running what is in it ({detail})"


def _from_pickle(path: Path, read: Callable[[], Any]) -> Checkpoint:
    """Make a checkpoint of a pickle; `read` is called again for every load, to release mapped memory in between."""
    entries = _state_dict(read())
    if entries is None:
        raise CheckpointError(f"{path} holds no state dict, but {_name(read())}")
    tensors, others = {}, {}
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided:
            tensors[name] = TensorInfo(tuple(value.shape), value.dtype)
        else:
            others[str(name)] = _name(value)
    if not tensors:
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(others.items())[:8])
        raise CheckpointError(
            f"{path} holds no tensors, neither at its top nor under {NESTING_KEY!r}: {listed or 'nothing'}"
        )
    del entries

    def load(names: Sequence[str]) -> dict[str, Tensor]:
        values = _state_dict(read()) or {}
        return {name: values[name].detach() for name in names}

    return Checkpoint(path=path, tensors=tensors, others=others, load=load)


def _state_dict(entries: Any) -> Mapping[Any, Any] | None:
    if not isinstance(entries, Mapping):
        return None
    nested = entries.get(NESTING_KEY)
    return nested if isinstance(nested, Mapping) else entries


def _name(value: Any) -> str:
    return f"a {type(value).__name__}"
