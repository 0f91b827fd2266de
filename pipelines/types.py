"""The nouns of the pipeline and the one protocol (Predictor) that a model must meet. No I/O, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

RegionKind = Literal["point", "box", "scribble", "polygon", "mask"]
REGION_KINDS: tuple[RegionKind, ...] = ("point", "box", "scribble", "polygon", "mask")

Task = Literal["genseg", "ovseg", "vgdseg"]
TEXT_TASKS: tuple[Task, ...] = ("genseg", "ovseg")
TASKS: tuple[Task, ...] = ("genseg", "ovseg", "vgdseg")


class Status(StrEnum):
    """What became of a planned image. Every planned image ends in exactly one of these."""

    OK = "ok"
    EMPTY = "empty"
    QUARANTINED = "quarantined"


class Reason(StrEnum):
    """Why an image is quarantined: a closed list, so that SQL can group by it."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    FETCH_FAILED = "fetch_failed"
    FETCH_TIMEOUT = "fetch_timeout"
    ZERO_BYTES = "zero_bytes"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_MODE = "unsupported_mode"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_SCORES = "non_finite_scores"
    MODEL_FAILED = "model_failed"


@dataclass(frozen=True, slots=True)
class Rle:
    """A COCO compressed RLE mask.

    Attributes:
        size_hw: (height, width) of the mask, pixels of the original image after EXIF orientation.
        counts: COCO's compressed run lengths, column-major, ASCII.
    """

    size_hw: tuple[int, int]
    counts: str

    def to_coco(self) -> dict[str, Any]:
        """Return ``{"size": [h, w], "counts": str}``: what pycocotools and the table's ``segmentation`` hold."""
        return {"size": list(self.size_hw), "counts": self.counts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One visual prompt, in absolute pixels of the original image after EXIF orientation, origin top left.

    Attributes:
        kind: point, box, scribble, polygon or mask.
        coordinates: flat floats. point: x, y (several points may follow one another). box: x, y, w, h as in COCO.
            scribble: x0, y0, x1, y1, ... along the stroke. polygon: x0, y0, ... of its corners. Empty for a mask.
        mask: the mask itself when kind is "mask", else None.
        source_row: zero-based row of the prompt table that it came from, for reports.
    """

    kind: RegionKind
    coordinates: tuple[float, ...] = ()
    mask: Rle | None = None
    source_row: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing asked of an image: a phrase, or a region that stands for a category.

    Attributes:
        prompt_id: stable id, e.g. ``ovseg:forklift``, or the id given in the prompt table.
        task: genseg, ovseg or vgdseg.
        text: the phrase as asked, or a short description of the region: the table's ``prompt`` column.
        category_id: position of the category in its list (text), or numbering of the distinct labels (regions).
        category_name: the phrase, or the label of the region.
        region: the visual prompt; None for text.
    """

    prompt_id: str
    task: Task
    text: str
    category_id: int
    category_name: str
    region: Region | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One listed image: a reference, never pixels.

    Attributes:
        image_id: the source's key carried unchanged to the last row; unique in its collection.
        uri: absolute URI or path that fsspec opens.
        num_bytes: size as listed, None where the source does not say.
        etag: version tag as listed, None where the source does not say.
        source_columns: further columns of a table source as a JSON object, None where there are none.
        regions: visual prompts asked of this image alone.
    """

    image_id: str
    uri: str
    num_bytes: int | None = None
    etag: str | None = None
    source_columns: str | None = None
    regions: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of work, commit and retry: a frozen, ordered list of images."""

    shard_id: str
    images: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One decoded image.

    Attributes:
        ref: the reference it was fetched from.
        pixels: uint8, (height, width, 3), RGB, 0-255, EXIF orientation applied, C-contiguous.
        exif_orientation: the EXIF tag as found, 1-8 (1 where absent).
        num_bytes: bytes fetched.
        content_sha256: hex digest of the fetched bytes.
        decode_ms: time spent decoding, milliseconds.
    """

    ref: ImageRef
    pixels: NDArray[np.uint8]
    exif_orientation: int = 1
    num_bytes: int = 0
    content_sha256: str = ""
    decode_ms: float = 0.0

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) after EXIF orientation."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPrediction:
    """One mask that the model found for a prompt; the dense mask is already gone.

    Attributes:
        prompt: what was asked.
        score: in [0, 1]: class probability times mean mask probability inside the mask.
        mask_score: in [0, 1]: mean mask probability inside the mask.
        segmentation: RLE at the image's size.
        bbox_xywh: COCO box of the mask, absolute pixels.
        area: pixels in the mask.
    """

    prompt: Prompt
    score: float
    mask_score: float
    segmentation: Rle
    bbox_xywh: tuple[float, float, float, float]
    area: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedPrompt:
    """A visual prompt that could not be asked, with the reason; its image is labelled with the others.

    Attributes:
        row: zero-based row of the prompt table.
        prompt_id: id given in the table.
        image: the image_id or URI as written in the table.
        reason: what is wrong with it, in words.
    """

    row: int
    prompt_id: str
    image: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a predictor says about one image: masks in no particular order, and prompts it could not ask."""

    masks: tuple[MaskPrediction, ...] = ()
    rejected: tuple[RejectedPrompt, ...] = ()


class PredictionError(Exception):
    """The model failed on a batch in a way that has its own reason, e.g. out of memory."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Predictor(Protocol):
    """A loaded model: images and prompts in, RLE masks out. Called from several threads at once, one for each shard."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """Answer every image's prompts, in order.

        Args:
            images: decoded images of any sizes.
            prompts: for each image the prompts to ask of it; the list may be empty for some images.

        Returns:
            One Answer for each image.

        Raises:
            PredictionError: with the reason, where the model knows it; any other exception counts as "model failed".
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance: weights hash, device, dtype, library versions."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrediction:
    """The outcome of one planned image, whatever became of it: one row of ``images``, its masks in ``annotations``.

    Attributes:
        ref: the planned image.
        status: ok (at least one mask), empty (asked, nothing found) or quarantined.
        masks: its masks.
        prompts: the prompts that were asked.
        rejected: prompts that could not be asked.
        reason, stage, error: why it is quarantined, where (fetch, decode, model), and the message; None otherwise.
        size_hw: (height, width) after EXIF orientation, None if it was never decoded.
        exif_orientation, num_bytes, content_sha256: as in Image, None if unknown.
        decode_ms, model_ms: milliseconds; model_ms is the batch's time divided among its images.
        attempts: how many times the model was asked about this image in this shard attempt.
    """

    ref: ImageRef
    status: Status
    masks: tuple[MaskPrediction, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    rejected: tuple[RejectedPrompt, ...] = ()
    reason: Reason | None = None
    stage: str | None = None
    error: str | None = None
    size_hw: tuple[int, int] | None = None
    exif_orientation: int | None = None
    num_bytes: int | None = None
    content_sha256: str | None = None
    decode_ms: float | None = None
    model_ms: float | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """What travels back from a replica: counts and names, never data.

    Attributes:
        shard_id: the shard that was labelled.
        attempt: the attempt that holds the commit (another's, if it won the race).
        status_counts: images by status.
        reason_counts: quarantined images by reason.
        num_annotations: masks committed.
        num_rejected_prompts: visual prompts that could not be asked.
        elapsed_s: wall-clock seconds of this attempt.
        model_s: seconds of it inside the predictor.
        committed_here: False when another attempt had committed the shard first.
    """

    shard_id: str
    attempt: str
    status_counts: Mapping[str, int] = field(default_factory=dict)
    reason_counts: Mapping[str, int] = field(default_factory=dict)
    num_annotations: int = 0
    num_rejected_prompts: int = 0
    elapsed_s: float = 0.0
    model_s: float = 0.0
    committed_here: bool = True


class ShardLabeler(Protocol):
    """Labels and commits one shard: what a replica holds. Safe to call from two threads at once."""

    def label(self, shard: Shard, attempt: str) -> ShardReceipt:
        """Label every image of the shard and commit it under the given attempt id."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Return the predictor's facts for provenance."""
        ...
