"""Reads pickles of plain data only, because an unrestricted pickle may execute any code when it is opened."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

_ALLOWED: dict[str, type] = {"set": set, "frozenset": frozenset, "OrderedDict": OrderedDict}
_MODULES = ("builtins", "__builtin__", "collections")  # the second is Python 2's name of the first


class _PlainUnpickler(pickle.Unpickler):
    """Allows no classes but a few containers; numbers, text, lists, tuples and dictionaries need none."""

    def find_class(self, module_name: str, global_name: str) -> type:
        if module_name in _MODULES and global_name in _ALLOWED:
            return _ALLOWED[global_name]
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_plain_pickle(path: str | Path) -> Any:
    """Return the content of a pickle: numbers, text, None, and lists, tuples, sets and dictionaries of these.

    Args:
        path: path of the file. Byte strings of Python 2 are decoded as UTF-8.

    Raises:
        ValueError: if it is missing, broken, or refers to any other class, which is never loaded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    # The operations of a broken pickle on wrong values may raise almost anything.
    except (pickle.UnpicklingError, *_BROKEN) as error:
        raise ValueError(
            f"{path}: not a pickle of plain data ({error}); nothing but numbers, text and containers is loaded from "
            "pickles: write the list as JSON instead"
        ) from error


_BROKEN = (ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError, MemoryError, RecursionError)
