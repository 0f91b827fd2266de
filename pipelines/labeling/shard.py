"""Label one shard, from its plan to its commit. Bad images become quarantined rows, never exceptions."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import Field, model_validator

from pipelines.images.decode import DecodeError, DecodeLimits, decode_image, decode_windows, decoding_bytes
from pipelines.images.prefetch import Loaded, Loading, prefetch
from pipelines.labeling.batches import batches, order_by_text
from pipelines.labeling.isolation import Asked, ModelClock, ask, groups_after_crashes
from pipelines.labeling.tiles.asking import Tiling
from pipelines.masks.regions import check_region
from pipelines.redaction import redacted
from pipelines.settings import Settings
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage.store import Store
from pipelines.table.commits import commit_shard
from pipelines.types import (
    CrashHistory,
    Image,
    ImagePrediction,
    ImageRef,
    Predictor,
    Prompt,
    Reason,
    RejectedPrompt,
    Shard,
    ShardReceipt,
    Status,
)

DEFAULT_BATCH_SIZE = 8
_MAX_ERROR_CHARS = 2000
# The client enforces the fetch timeout itself where it can, with a better error; this is the margin it gets.
_CLIENT_GRACE_S = 1.0


class LabelConfig(Settings):
    """How a replica works through a shard."""

    batch_size: int | None = None
    """Images that go through the model together; None for as many as the predictor finds room for on a GPU, and
    DEFAULT_BATCH_SIZE where nobody finds out.
    """
    load_threads: int = 4
    """Threads that fetch and decode ahead of the model."""
    max_bytes_ahead: int = 512 * 2**20
    """Bytes of fetched and decoded images held at once by one shard."""
    fetch_timeout_s: float = 60.0
    """Seconds for one image's transfer."""
    decode_timeout_s: float = 60.0
    """Seconds for one image's decoding."""
    decode: DecodeLimits = Field(default_factory=DecodeLimits)
    """Limits on what is decoded."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("batch_size", "load_threads", "max_bytes_ahead", "fetch_timeout_s", "decode_timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        return self

    @property
    def images_per_batch(self) -> int:
        """The batch size in effect."""
        return self.batch_size or DEFAULT_BATCH_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """What all shards of a run have in common.

    Attributes:
        run_id: the run.
        prompts: asked of every image, besides the image's own prompts.
        config: batch size, threads, timeouts and limits.
        source_options: storage options of the images' source.
        allow_http: whether images may be fetched from the web.
        tiling: how pictures larger than a tile are asked; None to ask all as they are.
    """

    run_id: str
    prompts: tuple[Prompt, ...]
    config: LabelConfig = field(default_factory=LabelConfig)
    source_options: Mapping[str, Any] = field(default_factory=dict)
    allow_http: bool = False
    tiling: Tiling | None = None


def label_shard(
    shard: Shard,
    *,
    job: LabelJob,
    store: Store,
    predictor: Predictor,
    attempt: str,
    crashes: CrashHistory | None = None,
) -> ShardReceipt:
    """Label every image of a shard and commit it.

    Args:
        shard: the planned images.
        job: what the run asks.
        store: the output.
        predictor: the loaded model.
        attempt: id of this attempt, unique in the run.
        crashes: given if earlier attempts at this shard crashed their process.

    Returns:
        The receipt of the shard's commit.

    Raises:
        StorageError: the output cannot be written. Bad images never raise: they become quarantined rows.
    """
    started, clock = time.monotonic(), ModelClock()
    images = [ref for ref in shard.images if not ref.is_forgotten]
    if crashes is None:
        labeled = label_images(images, job, predictor, clock)
    else:
        labeled = label_after_crashes(images, job, predictor, clock, crashes)
    found = iter(labeled)
    outcomes = [
        ImagePrediction(ref=ref, status=Status.FORGOTTEN) if ref.is_forgotten else next(found) for ref in shard.images
    ]
    return commit_shard(
        store,
        job.run_id,
        shard,
        [with_prompts(one, job.prompts) for one in outcomes],
        attempt=attempt,
        started=started,
        model_s=clock.seconds,
        predictor={**predictor.describe(), "batch_size": str(job.config.images_per_batch)},
    )


def label_images(
    images: Sequence[ImageRef], job: LabelJob, predictor: Predictor, clock: ModelClock
) -> list[ImagePrediction]:
    """Label images, with fetching and decoding running ahead of the model; return their outcomes in the order given."""
    outcomes: dict[int, ImagePrediction] = {}
    order = order_by_text(images, job.prompts)
    positions = iter(order)
    size, max_bytes = job.config.images_per_batch, job.config.max_bytes_ahead
    if job.tiling is not None:
        # One picture that has as many pixels as a batch of tiles is a batch.
        max_bytes = min(max_bytes, size * job.tiling.bytes_of_tile)
    with closing(load_images((images[position] for position in order), job)) as loaded:
        for batch in batches(loaded, size, max_bytes):
            for outcome in label_batch(batch, job, predictor, clock):
                outcomes[next(positions)] = outcome
            # Drop each image before its bytes are given back, or loaders would allocate more than the budget.
            while batch:
                batch.pop().release()
    return [outcomes[position] for position in range(len(images))]


def label_after_crashes(
    images: Sequence[ImageRef], job: LabelJob, predictor: Predictor, clock: ModelClock, crashes: CrashHistory
) -> list[ImagePrediction]:
    """Label images one group after the other, and report each group before it is touched.

    Nothing is fetched ahead across groups: if the process crashes again, the last report names the only suspects.
    """
    outcomes: list[ImagePrediction] = []
    for group in groups_after_crashes(images, crashes, job.config.images_per_batch):
        if fatal := crashes.fatal.get(group[0].image_id):
            outcomes.append(quarantined(group[0], fatal.reason, "process", fatal.error))
            continue
        crashes.report_in_progress([ref.image_id for ref in group])
        outcomes += label_images(group, job, predictor, clock)
    crashes.report_in_progress([])
    return outcomes


def load_images(images: Iterable[ImageRef], job: LabelJob) -> Generator[Loaded[Image | ImagePrediction], None, None]:
    """Fetch and decode images in order, in threads that run ahead of the consumer."""
    config = job.config
    return prefetch(
        images,
        lambda loading: load_image(loading, job),
        threads=config.load_threads,
        max_bytes=config.max_bytes_ahead,
        give_up=lambda ref, stage: taking_too_long(ref, stage, config),
    )


def load_image(loading: Loading, job: LabelJob) -> Image | ImagePrediction:
    """Fetch and decode one image; a failure becomes its quarantined outcome.

    A wrapper, so that the encoded bytes (a local variable of the inner call) are gone before only the pixels' size is
    settled as held.
    """
    loaded = _load_image(loading, job)
    loading.settle(loaded.pixels.nbytes if isinstance(loaded, Image) else 0)
    return loaded


def _load_image(loading: Loading, job: LabelJob) -> Image | ImagePrediction:
    ref, config, data = loading.ref, job.config, None
    try:
        loading.begin("fetch", config.fetch_timeout_s + _CLIENT_GRACE_S)
        data = fetch(
            ref,
            options=job.source_options,
            max_bytes=config.decode.max_image_bytes,
            timeout_s=config.fetch_timeout_s,
            allow_http=job.allow_http,
            reserve=loading.reserve,
        )
        # The expected size was reserved; what came may be less.
        loading.settle(len(data))
        loading.begin("decode", config.decode_timeout_s)
        if job.tiling is not None:
            windows = decode_windows(data, ref, config.decode, longer_than=job.tiling.tiles.size)
            if windows is not None:
                loading.reserve(windows.pixels.nbytes - len(data))
                return windows
        # Waits for room while only the encoded bytes are held.
        loading.reserve(decoding_bytes(data, config.decode))
        return decode_image(data, ref, config.decode)
    except FetchError as error:
        return quarantined(ref, error.reason, "fetch", str(error))
    except DecodeError as error:
        return quarantined(ref, error.reason, "decode", str(error), num_bytes=len(data) if data is not None else None)
    except MemoryError:
        return quarantined(ref, Reason.OUT_OF_MEMORY, "decode", "not enough memory to decode the image")


def taking_too_long(ref: ImageRef, stage: str, config: LabelConfig) -> ImagePrediction:
    """Return the outcome of an image whose fetching or decoding timed out."""
    if stage == "fetch":
        return quarantined(ref, Reason.FETCH_TIMEOUT, stage, f"not fetched after {config.fetch_timeout_s:g} s")
    return quarantined(ref, Reason.DECODE_TIMEOUT, stage, f"not decoded after {config.decode_timeout_s:g} s")


def label_batch(
    batch: Sequence[Loaded[Image | ImagePrediction]],
    job: LabelJob,
    predictor: Predictor,
    clock: ModelClock,
) -> list[ImagePrediction]:
    """Ask the model about the decoded images of a batch; images that failed before keep their outcome and position."""
    images = [item.value for item in batch if isinstance(item.value, Image)]
    asked: list[list[Prompt]] = []
    rejected: list[list[RejectedPrompt]] = []
    for image in images:
        askable, refused = askable_prompts(image, job.prompts)
        asked.append(askable)
        rejected.append(refused)
    if job.tiling is None:
        answers = ask(images, asked, predictor, clock)
    else:
        answers = job.tiling.ask(images, asked, predictor, clock, job.config.images_per_batch)
    labeled = iter(
        [
            outcome(image, tuple(prompts), tuple(refused), answer)
            for image, prompts, refused, answer in zip(images, asked, rejected, answers, strict=True)
        ]
    )
    return [item.value if isinstance(item.value, ImagePrediction) else next(labeled) for item in batch]


def askable_prompts(image: Image, common: Sequence[Prompt]) -> tuple[list[Prompt], list[RejectedPrompt]]:
    """Split an image's prompts into those that fit it and rejected ones, now that its size is known."""
    good: list[Prompt] = []
    refused: list[RejectedPrompt] = []
    for prompt in image.ref.asked(common):
        reason = check_region(prompt, image.size_hw)
        if reason is None:
            good.append(prompt)
        else:
            refused.append(RejectedPrompt.of(prompt, image.ref.image_id, reason))
    return good, refused


def outcome(
    image: Image, prompts: tuple[Prompt, ...], refused: tuple[RejectedPrompt, ...], asked: Asked
) -> ImagePrediction:
    """Turn the model's answer for a decoded image into its outcome."""
    facts: dict[str, Any] = {
        "size_hw": image.size_hw,
        "exif_orientation": image.exif_orientation,
        "notes": image.notes,
        "num_bytes": image.num_bytes,
        "content_sha256": image.content_sha256,
        "decode_ms": image.decode_ms,
        "model_ms": asked.model_ms,
        "attempts": asked.attempts,
    }
    # Sorted, since a predictor may answer in any order and a rerun must give the same rows.
    rejected = tuple(sorted(refused + asked.answer.rejected, key=lambda prompt: (prompt.row, prompt.prompt_id)))
    if asked.reason is not None:
        return quarantined(image.ref, asked.reason, asked.stage, asked.error or "", rejected=rejected, **facts)
    not_asked = {r.prompt_id for r in asked.answer.rejected}
    answered = tuple(p for p in prompts if p.prompt_id not in not_asked)
    return ImagePrediction(
        ref=image.ref,
        status=Status.of_answer(answered, asked.answer.masks, asked.answer.captions),
        masks=asked.answer.masks,
        captions=asked.answer.captions,
        prompts=answered,
        rejected=rejected,
        **facts,
    )


def with_prompts(found: ImagePrediction, common: Sequence[Prompt]) -> ImagePrediction:
    """Add the prompts that were to be asked to the outcome of an image that was quarantined before they were."""
    if found.status != Status.QUARANTINED or found.prompts:
        return found
    refused = {rejected.prompt_id for rejected in found.rejected}
    return replace(found, prompts=tuple(p for p in found.ref.asked(common) if p.prompt_id not in refused))


def quarantined(ref: ImageRef, reason: Reason, stage: str, error: str, **facts: Any) -> ImagePrediction:
    """Return the outcome of an image that could not be labeled; a long error keeps its end, where its cause is."""
    return ImagePrediction(
        ref=ref,
        status=Status.QUARANTINED,
        reason=reason,
        stage=stage,
        error=redacted(error)[-_MAX_ERROR_CHARS:],
        **facts,
    )
