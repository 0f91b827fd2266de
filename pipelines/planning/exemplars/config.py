"""What a person gives of an exemplar, and what a plan freezes of it; from these the prompts. Reads nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from pydantic import model_validator

from pipelines.masks.regions import read_region
from pipelines.redaction import quoted, secret_in
from pipelines.settings import Settings
from pipelines.types import Exemplar, Prompt, Region, RegionKind


class ExemplarConfig(Settings):
    """A region of one image that shows what to find in others. Those with one label show it together."""

    label: str
    """The name of what is found; its ``prompt_id`` is ``vgdseg:`` and this."""
    image: str
    """The image that the region is of: an image_id of the source, or a URI or path, whatever the source is."""
    kind: RegionKind
    """How the region is drawn: point, box, scribble, polygon or mask."""
    coordinates: tuple[float | tuple[float, ...], ...] = ()
    """Absolute pixels of that image, as in the table of prompts: flat numbers, or pairs of x and y."""
    segmentation: dict[str, Any] | None = None
    """COCO RLE at the size of that image, for a mask."""
    images: str = ""
    """Of which images it is asked: a pattern of image ids, with ``*`` for any characters and ``?`` for one; all by
    default.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.label.strip() or not self.image.strip():
            raise ValueError("an exemplar needs a label and an image")
        if secret := secret_in(self.image):
            raise ValueError(f"the image of an exemplar carries {secret}, which would end up in plans and logs")
        try:
            _ = self.region
        except ValueError as error:
            raise ValueError(f"exemplar of {quoted(self.label)} in {quoted(self.image)}: {error}") from error
        return self

    @property
    def region(self) -> Region:
        """The region that is drawn."""
        flat = [list(one) if isinstance(one, tuple) else one for one in self.coordinates]
        return read_region(self.kind, coordinates=flat, segmentation=self.segmentation)


class FrozenExemplar(ExemplarConfig):
    """An exemplar as a plan has it: its image was found, and the plan keeps its bytes."""

    uri: str
    """Where its image was found; empty once that was forgotten."""
    sha256: str
    """Hex digest of the bytes of the image; empty once that was forgotten."""

    @property
    def given(self) -> ExemplarConfig:
        """What it was before it was frozen."""
        return ExemplarConfig(**{name: getattr(self, name) for name in ExemplarConfig.model_fields})


_Given = TypeVar("_Given", bound=ExemplarConfig)


def exemplar_prompts(exemplars: Sequence[FrozenExemplar]) -> list[Prompt]:
    """Return a prompt for each label, in the order in which the labels come first, with the id ``vgdseg:<label>``."""
    return [
        Prompt(
            prompt_id=f"vgdseg:{label}",
            task="vgdseg",
            text=label,
            category_id=number,
            category_name=label,
            # Sorted and each once: the answer does not depend on their order.
            exemplars=tuple(sorted(set(map(_exemplar, group)), key=_place)),
        )
        for number, (label, group) in enumerate(by_label(exemplars).items())
    ]


def by_label(exemplars: Sequence[_Given]) -> Mapping[str, list[_Given]]:
    """Return exemplars by label, in the order in which the labels come first."""
    found: dict[str, list[_Given]] = {}
    for exemplar in exemplars:
        found.setdefault(exemplar.label.strip(), []).append(exemplar)
    return found


def selections(exemplars: Sequence[ExemplarConfig]) -> dict[str, str]:
    """Return the pattern of the images that a label is asked of, by prompt_id, of labels not asked of all.

    Raises:
        ValueError: exemplars of one label have different patterns.
    """
    found = dict[str, str]()
    for label, group in by_label(exemplars).items():
        patterns = list(dict.fromkeys(one.images for one in group))
        if len(patterns) > 1:
            shown = ", ".join(quoted(pattern) if pattern else "all" for pattern in patterns)
            raise ValueError(f"exemplars of {quoted(label)} are to be asked of different images: {shown}; say one")
        if patterns[0]:
            found[f"vgdseg:{label}"] = patterns[0]
    return found


def exemplars_sha256(exemplars: Sequence[FrozenExemplar]) -> str:
    """Return the digest of what exemplars ask: bytes of images, regions, labels and selections, not names of images."""
    told = sorted(
        json.dumps([one.label.strip(), one.images, one.sha256, _region_values(one.region)]) for one in exemplars
    )
    return hashlib.sha256("\n".join(dict.fromkeys(told)).encode()).hexdigest()


def _exemplar(frozen: FrozenExemplar) -> Exemplar:
    return Exemplar(image_sha256=frozen.sha256, region=frozen.region)


def _place(exemplar: Exemplar) -> tuple[str, str]:
    return exemplar.image_sha256, json.dumps(_region_values(exemplar.region))


def _region_values(region: Region) -> list[Any]:
    return [region.kind, region.coordinates, region.mask and [region.mask.size_hw, region.mask.counts]]
