"""Settings of tiles."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pipelines.settings import Settings


class TileConfig(Settings):
    """How pictures with a side longer than a tile are asked: in tiles that overlap, and shrunk to one as a whole."""

    size: int
    """Height and width of a tile in pixels; no less than the canvas on which the model sees a picture."""
    overlap: int
    """Pixels that neighboring tiles share at least; an object no larger is whole in one of them. At most half a tile.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; allowed: 1 or more")
        if not 1 <= self.overlap <= self.size // 2:
            raise ValueError(
                f"overlap is {self.overlap}; allowed: 1 to {self.size // 2}, half of a tile, since neighbors are put "
                "together by what both show"
            )
        return self
