"""The pipeline's data types, and the protocols for a model (Predictor) and for what labels shards. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.redaction import redacted, shown_name

RegionKind = Literal["point", "box", "scribble", "polygon", "mask"]
REGION_KINDS: tuple[RegionKind, ...] = ("point", "box", "scribble", "polygon", "mask")

CategoryTask = Literal[
    "ovseg", "ovseg_semantic", "ovseg_panoptic", "genseg", "genseg_semantic", "genseg_panoptic"
]  # fmt: skip
SentenceTask = Literal["refseg", "reaseg", "chat"]
RegionTask = Literal["vgdseg", "intseg"]
Task = CategoryTask | SentenceTask | RegionTask | Literal["gcgseg"]

CATEGORY_TASKS: tuple[CategoryTask, ...] = get_args(CategoryTask)
PANOPTIC_TASKS: tuple[CategoryTask, ...] = ("ovseg_panoptic", "genseg_panoptic")
MAP_TASKS: tuple[CategoryTask, ...] = ("ovseg_semantic", "ovseg_panoptic", "genseg_semantic", "genseg_panoptic")
SENTENCE_TASKS: tuple[SentenceTask, ...] = get_args(SentenceTask)
REGION_TASKS: tuple[RegionTask, ...] = get_args(RegionTask)
TASKS: tuple[Task, ...] = (*CATEGORY_TASKS, *SENTENCE_TASKS, *REGION_TASKS, "gcgseg")
WORD_TASKS: tuple[Task, ...] = ("gcgseg", "chat")
"""Tasks answered in words: that such an answer comes without a mask says of nothing that it is not in the image."""


class Status(StrEnum):
    """The outcome of a planned image; every planned image gets exactly one."""

    OK = "ok"
    EMPTY = "empty"
    NOT_ASKED = "not_asked"
    QUARANTINED = "quarantined"
    FORGOTTEN = "forgotten"

    @classmethod
    def counted(cls, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the counts of all statuses in their order; that of forgotten images only if there are any."""
        return {one.value: counts.get(one, 0) for one in cls if counts.get(one) or one is not cls.FORGOTTEN}

    @classmethod
    def of_answer(
        cls, prompts: Iterable[Prompt], masks: Sequence[MaskPrediction], captions: Sequence[Caption]
    ) -> Status:
        """Return the status of an image that the model has answered.

        Args:
            prompts: the prompts that were asked, without rejected ones.
            masks, captions: the answer.
        """
        if masks or captions:
            return cls.OK
        return cls.EMPTY if any(prompt.task not in WORD_TASKS for prompt in prompts) else cls.NOT_ASKED


class Reason(StrEnum):
    """Why an image is quarantined: a closed list, so that SQL can group by it."""

    NOT_ALLOWED = "not_allowed"
    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    FETCH_FAILED = "fetch_failed"
    FETCH_TIMEOUT = "fetch_timeout"
    ZERO_BYTES = "zero_bytes"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    DECODE_TIMEOUT = "decode_timeout"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_MODE = "unsupported_mode"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_SCORES = "non_finite_scores"
    MODEL_FAILED = "model_failed"
    REPLICA_DIED = "replica_died"
    REPLICA_HUNG = "replica_hung"


class Change(StrEnum):
    """What a person has made of a mask: a closed list, so that SQL can group by it."""

    ADDED = "added"
    MOVED = "moved"
    RELABELED = "relabeled"
    CONFIRMED = "confirmed"
    DELETED = "deleted"


class PixelNote(StrEnum):
    """What had to be decided to see a picture in a file: a closed list, so that SQL can group by it."""

    NO_END_MARKER = "no_end_marker"
    RANGE_FROM_TAG = "range_from_tag"
    STRETCHED = "stretched"
    ALPHA_LEFT_OUT = "alpha_left_out"
    BANDS_LEFT_OUT = "bands_left_out"
    XMP_ORIENTATION_IGNORED = "xmp_orientation_ignored"


@dataclass(frozen=True, slots=True)
class Rle:
    """A COCO compressed RLE mask.

    Attributes:
        size_hw: (height, width) of the mask, pixels of the original image after EXIF orientation.
        counts: COCO's compressed run lengths, column-major, ASCII.
    """

    size_hw: tuple[int, int]
    counts: str

    @classmethod
    def from_coco(cls, segmentation: Mapping[str, Any]) -> Rle:
        """Read a value of the table's ``segmentation`` column, ``{"size": [h, w], "counts": str}``."""
        height, width = segmentation["size"]
        return cls((height, width), segmentation["counts"])

    def to_coco(self) -> dict[str, Any]:
        """Return ``{"size": [h, w], "counts": str}``, the form of pycocotools and of the ``segmentation`` column."""
        return {"size": list(self.size_hw), "counts": self.counts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One visual prompt, in absolute pixels of the original image after EXIF orientation, origin top left.

    Attributes:
        kind: point, box, scribble, polygon or mask.
        coordinates: flat floats. point: x, y (several points may follow one another). box: x, y, w, h as in COCO.
            scribble: x0, y0, x1, y1, ... along the stroke. polygon: x0, y0, ... of its corners. Empty for a mask.
        mask: the mask itself when kind is "mask", else None.
    """

    kind: RegionKind
    coordinates: tuple[float, ...] = ()
    mask: Rle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """A region of one image that shows what is asked of others.

    Attributes:
        image_sha256: hex digest of the bytes of its image, which the plan keeps; empty once the image was forgotten.
        region: the region, in pixels of that image.
    """

    image_sha256: str
    region: Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing asked of an image: a category, a sentence, a region, what exemplars show, or a caption.

    Attributes:
        prompt_id: stable id, e.g. ``ovseg:forklift``, or the id given in the prompt table.
        task: what is asked; one of TASKS.
        text: the category, phrase or question as asked, a short description of the region, or the label of exemplars:
            the table's ``prompt`` column. Of a mask found for a caption: the phrase.
        category_id: position of the category, phrase or question in its list; of the prompt table's rows the number of
            their label; of a phrase in a caption its position there.
        category_name: the category or phrase, or the label of exemplars or of the prompt table's row.
        region: the visual prompt of REGION_TASKS; None for text, and for exemplars.
        exemplars: regions of other images that show together what is asked (vgdseg); of one that has ``region``, none.
        is_thing: for a category of PANOPTIC_TASKS, whether it is countable (a thing) or one segment holds all of it
            (stuff); None for other tasks.
        explain: ask for an explanation in words beside the mask (reaseg).
        source_row: line of the prompt table where its row begins, from 1, in Parquet its row; -1 if it did not come
            from one. Plans of earlier versions count rows from 0.
    """

    prompt_id: str
    task: Task
    text: str
    category_id: int
    category_name: str
    region: Region | None = None
    exemplars: tuple[Exemplar, ...] = ()
    is_thing: bool | None = None
    explain: bool = False
    source_row: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One listed image: a reference, never pixels.

    Attributes:
        image_id: the source's key carried unchanged to the last row; unique in its collection.
        uri: absolute URI or path that fsspec opens.
        num_bytes: size as listed, None where the source does not say.
        etag: version tag as listed, None where the source does not say.
        source_columns: further columns of a table source as a JSON object, None where there are none.
        prompts: regions and sentences asked of this image alone.
        common: ids of the run's common prompts that are asked of this image; None for all of them.
        version: 1 when an output plans the image for the first time, and one more each time it has changed since.
        is_forgotten: whether this is what an erasure has left of a planned image: its place, and no name of it.
    """

    image_id: str
    uri: str
    num_bytes: int | None = None
    etag: str | None = None
    source_columns: str | None = None
    prompts: tuple[Prompt, ...] = ()
    common: tuple[str, ...] | None = None
    version: int = 1
    is_forgotten: bool = False

    def asked(self, common: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """Return all prompts asked of this image: the run's common ones, as far as they apply, then its own."""
        if self.common is None:
            return (*common, *self.prompts)
        wanted = set(self.common)
        return (*(prompt for prompt in common if prompt.prompt_id in wanted), *self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of work, commit and retry: a frozen, ordered list of images.

    Attributes:
        shard_id: its name in the plan.
        images: in the plan's order.
        repair: which commit is due: 0 for the first, K for the K-th repair of a shard whose committed files are lost or
            damaged.
    """

    shard_id: str
    images: tuple[ImageRef, ...]
    repair: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One decoded image.

    Attributes:
        ref: the reference it was fetched from.
        pixels: uint8, (height, width, 3), RGB, 0-255, EXIF orientation applied, C-contiguous. Of a large TIFF that is
            asked in tiles what decodes its windows (images.tiff_windows); a predictor never gets that.
        exif_orientation: the EXIF tag as found, 1-8 (1 where absent).
        notes: what had to be decided to see the picture, in the order in which it was.
        num_bytes: bytes fetched.
        content_sha256: hex digest of the fetched bytes.
        decode_ms: time spent decoding, milliseconds.
    """

    ref: ImageRef
    pixels: NDArray[np.uint8]
    exif_orientation: int = 1
    notes: tuple[PixelNote, ...] = ()
    num_bytes: int = 0
    content_sha256: str = ""
    decode_ms: float = 0.0

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) after EXIF orientation."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPrediction:
    """One mask that the model found for a prompt, run-length encoded; no dense mask is kept.

    Attributes:
        prompt: what was asked. Of a mask for a phrase of a caption: the caption's prompt, with the phrase as its text
            and category_name, and the phrase's position in the caption as its category_id.
        score: in [0, 1]; its meaning depends on the task, see docs/table.md.
        mask_score: in [0, 1]: mean mask probability inside the mask; None for semantic tasks, where each pixel combines
            many queries.
        segmentation: RLE at the image's size; never empty.
        bbox_xywh: COCO box of the mask, absolute pixels.
        area: pixels in the mask.
        annotation_id: the id that it has already, if an earlier run found it; None for one made of its run and rank.
        is_human: whether a person has drawn or confirmed it.
    """

    prompt: Prompt
    score: float
    mask_score: float | None
    segmentation: Rle
    bbox_xywh: tuple[float, float, float, float]
    area: int
    annotation_id: str | None = None
    is_human: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a person has made of one mask.

    Attributes:
        annotation_id: of the mask; it keeps the one that it had.
        change: what was made of it.
        prompt_id: the prompt that it answers, or answered if it was deleted.
        category_name: its name, the new one if it was relabeled.
        was: its name before, if it was relabeled; None otherwise.
        iou: how well its shapes before and after agree, in [0, 1]; None if it was added or deleted.
        author, edited_at: who did it and when, as far as the tool tells, in its words.
    """

    annotation_id: str
    change: Change
    prompt_id: str
    category_name: str
    was: str | None = None
    iou: float | None = None
    author: str | None = None
    edited_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPhrase:
    """A phrase of a caption for which the model found a mask.

    Attributes:
        text: the phrase.
        start, end: its position in the caption in characters (Unicode code points): the phrase is
            ``caption.text[start:end]``.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What the model said about an image in its own words: a caption, an explanation, an answer to a question.

    Attributes:
        prompt: what was asked.
        text: plain text; never blank.
        phrases: the phrases it grounded, in order; a phrase's index is the category_id of its mask (gcgseg).
    """

    prompt: Prompt
    text: str
    phrases: tuple[CaptionPhrase, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedPrompt:
    """A prompt of a single image that could not be asked, with the reason; the image's other prompts are asked.

    Attributes:
        row: line of the prompt table where its row begins, from 1, in Parquet its row.
        prompt_id: id given in the table.
        image: the image_id or URI as written in the table.
        reason: what is wrong with it, in words.
    """

    row: int
    prompt_id: str
    image: str
    reason: str

    @classmethod
    def of(cls, prompt: Prompt, image: str, reason: str) -> RejectedPrompt:
        """Report that a prompt of an image cannot be asked, and why; secrets are redacted."""
        return cls(row=prompt.source_row, prompt_id=prompt.prompt_id, image=shown_name(image), reason=redacted(reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A predictor's answer for one image: masks in any order, captions, and the prompts it had to reject."""

    masks: tuple[MaskPrediction, ...] = ()
    captions: tuple[Caption, ...] = ()
    rejected: tuple[RejectedPrompt, ...] = ()


class ReplicaUnusable(BaseException):
    """Raised by a labeler whose process cannot go on, e.g. after a sticky CUDA error: its replica is replaced.

    Not an Exception, so that ``except Exception`` does not turn it into the quarantine of one image.
    """


class PredictionError(Exception):
    """The model failed on a batch for a known reason, e.g. out of memory."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


class Predictor(Protocol):
    """A loaded model: takes images and prompts, returns RLE masks and captions.

    Called from several threads at once, one for each shard in progress.
    """

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """Answer every image's prompts, in order.

        Args:
            images: decoded images of any sizes.
            prompts: for each image the prompts to ask of it; the list may be empty for some images.

        Returns:
            One Answer for each image.

        Raises:
            PredictionError: the model knows why it failed. Any other exception counts as Reason.MODEL_FAILED.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance: weights hash, device, dtype, library versions."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrediction:
    """The outcome of one planned image: its row in ``images`` and its masks in ``annotations``.

    Attributes:
        ref: the planned image.
        status: ok (at least one mask or caption), empty (asked, nothing found), not_asked (nothing was asked that could
            be found or not), quarantined, or forgotten (erased on request).
        masks: its masks.
        captions: what the model said about it.
        prompts: the prompts that were asked, or, if it is quarantined, were to be asked.
        rejected: prompts that could not be asked.
        reason, stage, error: why it is quarantined, in which stage (fetch, decode, model, process), and the message;
            None otherwise.
        size_hw: (height, width) after EXIF orientation, None if it was never decoded.
        exif_orientation, num_bytes, content_sha256: as in Image, None if unknown.
        notes: as in Image.
        decode_ms, model_ms: milliseconds; model_ms is the batch's time divided among its images.
        attempts: how many times the model was asked about this image in this shard attempt.
        corrections: what a person has made of its masks.
    """

    ref: ImageRef
    status: Status
    masks: tuple[MaskPrediction, ...] = ()
    captions: tuple[Caption, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    rejected: tuple[RejectedPrompt, ...] = ()
    reason: Reason | None = None
    stage: str | None = None
    error: str | None = None
    size_hw: tuple[int, int] | None = None
    exif_orientation: int | None = None
    notes: tuple[PixelNote, ...] = ()
    num_bytes: int | None = None
    content_sha256: str | None = None
    decode_ms: float | None = None
    model_ms: float | None = None
    attempts: int = 0
    corrections: tuple[Correction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReceipt:
    """The result of labeling one shard, as sent to the driver: counts and names, never rows.

    Attributes:
        shard_id: the shard that was labeled.
        attempt: the attempt whose commit holds (another one, if that was first).
        status_counts: images by status.
        reason_counts: quarantined images by reason.
        num_annotations: masks committed.
        num_rejected_prompts: prompts that could not be asked.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FatalImage:
    """How an image crashed or hung the process that was labeling it alone."""

    reason: Reason
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashHistory:
    """How to relabel a shard whose earlier attempts crashed, so that another crash identifies the image at fault.

    Attributes:
        report_in_progress: called with the ids of the images that are about to be fetched, decoded and asked, and with
            none once they are done. The receiver must outlive this process.
        suspects: ids of images in progress when a process crashed: each is labeled alone.
        fatal: images that crashed a process alone, by id: they are quarantined without being touched again.
    """

    report_in_progress: Callable[[Sequence[str]], None]
    suspects: frozenset[str] = frozenset()
    fatal: Mapping[str, FatalImage] = field(default_factory=dict)


class ShardLabeler(Protocol):
    """Labels and commits one shard: what a replica holds. Safe to call from two threads at once."""

    def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
        """Label every image of the shard and commit it under the given attempt id.

        Args:
            shard: what to label.
            attempt: id of this attempt.
            crashes: given if earlier attempts at this shard crashed their replica.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return the predictor's facts for provenance."""
        ...
