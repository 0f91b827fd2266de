"""An image's split and number, computed from its id alone, so that neither changes when images are added."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from pipelines.errors import SourceError

# 52 bits for the split's position and 53 for the number, which doubles, and thus JSON readers, represent exactly.
_POSITION = "(('0x' || sha256('split:' || image_id)[:13])::UBIGINT::DOUBLE / 4503599627370496)"
NUMBER = "(('0x' || sha256(image_id)[:14])::UBIGINT >> 3)"
"""SQL of an image's number: the first 53 bits of the SHA-256 of its id."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Splits:
    """Names of splits with their shares of the images, which sum to 1; empty if images are not split."""

    shares: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``train=0.8,val=0.1,test=0.1``.

        Raises:
            SourceError: the text has another form, a name occurs twice, or the shares do not sum to 1.
        """
        shares = []
        for part in text.split(","):
            name, _, share = (piece.strip() for piece in part.partition("="))
            try:
                value = float(share)
            except ValueError:
                value = -1.0
            if not _NAME.fullmatch(name) or not 0 < value <= 1:
                raise SourceError(
                    f"split {part.strip()!r} is not NAME=SHARE with a share above 0; write train=0.8,val=0.1,test=0.1"
                )
            shares.append((name, value))
        if len({name.lower() for name, _ in shares}) < len(shares):
            raise SourceError(f"split {text!r} names one split twice")
        if abs(total := sum(share for _, share in shares) - 1) > 1e-6:
            raise SourceError(f"the shares of split {text!r} sum to {1 + total:g}, not to 1")
        return cls(tuple(shares))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits; one empty name if images are not split."""
        return tuple(name for name, _ in self.shares) or ("",)

    def sql(self) -> str:
        """Return an SQL expression for the name of an image's split, over its ``image_id``."""
        # The last split takes the rest, so that rounding of the shares leaves no image out.
        *first, last = self.names
        edge, cases = 0.0, ""
        for name, (_, share) in zip(first, self.shares, strict=False):
            edge += share
            cases += f" WHEN {_POSITION} < {edge!r} THEN '{name}'"
        return f"CASE{cases} ELSE '{last}' END" if cases else f"'{last}'"


def split_file(stem: str, split: str, suffix: str) -> str:
    """Return the name of a split's file: ``instances_train.json``, or ``instances.json`` if images are not split."""
    return f"{stem}_{split}{suffix}" if split else f"{stem}{suffix}"
