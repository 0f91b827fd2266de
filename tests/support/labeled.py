"""Outputs made by hand: masks that a test chose, written by the table's own writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.masks import rle
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import Plan, write_plan
from pipelines.sources.image_batches import to_batches
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import commit_shard
from pipelines.types import (
    Caption,
    ImagePrediction,
    ImageRef,
    MaskPrediction,
    PixelNote,
    Prompt,
    Reason,
    Region,
    RejectedPrompt,
    Shard,
    Status,
    Task,
)

RUN = "run-1"
SIZE = (10, 10)


def box(x: int, y: int, width: int, height: int, size_hw: tuple[int, int] = SIZE) -> np.ndarray:
    """A rectangle: bool (H, W)."""
    mask = np.zeros(size_hw, dtype=np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def named(task: Task, *names: str) -> list[Prompt]:
    """Categories or sentences asked of every image."""
    return [
        Prompt(prompt_id=f"{task}:{name}", task=task, text=name, category_id=number, category_name=name)
        for number, name in enumerate(names)
    ]


def region(task: Task, prompt_id: str, kind: str, label: str | None = None) -> Prompt:
    """A visual prompt of a single image."""
    where = Region(kind=kind, coordinates=(1.0, 1.0, 2.0, 2.0)[: 2 if kind == "point" else 4])
    return Prompt(
        prompt_id=prompt_id,
        task=task,
        text=f"{kind} 1,1",
        category_id=0,
        category_name=label or prompt_id,
        region=where,
    )


def mask(prompt: Prompt, pixels: np.ndarray, score: float = 0.5) -> MaskPrediction:
    """A mask that the model is to have found."""
    segmentation = rle.encode(pixels)
    return MaskPrediction(
        prompt=prompt,
        score=score,
        mask_score=0.5,
        segmentation=segmentation,
        bbox_xywh=rle.bbox_xywh(segmentation),
        area=rle.area(segmentation),
    )


def plan_run(
    store: Store,
    run_id: str,
    refs: Iterable[ImageRef],
    config: PlanConfig | None = None,
    *,
    fingerprint: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    driver_id: str = "d1",
    left: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]] | None = None,
) -> tuple[Plan, list[Shard]]:
    """Freeze the plan of a run, and return it with the shards that were drafted."""
    with draft_plan(to_batches(refs), config or PlanConfig(), left) as draft:
        plan = write_plan(store, run_id, draft, fingerprint=fingerprint or {}, facts=facts or {}, driver_id=driver_id)
        return plan, list(draft.shards())


def write_output(
    uri: str | Path,
    found: Mapping[str, Sequence[MaskPrediction] | None],
    *,
    common: Sequence[Prompt] = (),
    own: Mapping[str, Sequence[Prompt]] | None = None,
    rejected: Mapping[str, Sequence[str]] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    uris: Mapping[str, str] | None = None,
    per_shard: int = 2,
    committed: int | None = None,
    run_id: str = RUN,
    pictures: Path | None = None,
    said: Mapping[str, Sequence[Caption]] | None = None,
    errors: Mapping[str, str] | None = None,
    notes: Mapping[str, Sequence[PixelNote]] | None = None,
    config: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> tuple[Store, Plan]:
    """Write a run.

    Args:
        uri: of the output.
        found: masks by image_id; None for an image that is quarantined.
        common: prompts of every image.
        own: prompts of single images.
        rejected: ids of those that could not be asked.
        sizes: (height, width) of images that are not of SIZE.
        uris: where images are, if they are anywhere.
        per_shard, committed: images in a shard, and how many shards are committed; all by default.
        run_id: the run.
        pictures: folder of the images; nowhere by default.
        said, errors: captions of images, and what is told of those that are quarantined.
        notes: what had to be decided to see images.
        config: of the run, as its plan keeps it.
        fingerprint: of the run.
    """
    own, rejected, said, errors = own or {}, rejected or {}, said or {}, errors or {}
    store = open_store(str(uri))
    where = {name: f"{pictures or '/p'}/{name}" for name in found} | dict(uris or {})
    refs = [ImageRef(image_id=name, uri=where[name], prompts=tuple(own.get(name, ()))) for name in found]
    facts = {"prompts": [{"prompt_id": p.prompt_id, "task": p.task, "text": p.text} for p in common]}
    facts |= {"config": dict(config)} if config else {}
    shape = PlanConfig(images_per_shard=per_shard)
    plan, shards = plan_run(store, run_id, refs, shape, facts=facts, fingerprint=fingerprint)
    for shard in shards[:committed]:
        outcomes = []
        for ref in shard.images:
            masks = found[ref.image_id]
            if masks is None:
                outcomes.append(
                    ImagePrediction(
                        ref=ref,
                        status=Status.QUARANTINED,
                        reason=Reason.TRUNCATED,
                        stage="decode",
                        error=errors.get(ref.image_id),
                    )
                )
                continue
            bad = rejected.get(ref.image_id, ())
            asked = tuple(prompt for prompt in (*common, *ref.prompts) if prompt.prompt_id not in bad)
            captions = tuple(said.get(ref.image_id, ()))
            outcomes.append(
                ImagePrediction(
                    ref=ref,
                    status=Status.of_answer(asked, masks, captions),
                    masks=tuple(masks),
                    captions=captions,
                    prompts=asked,
                    rejected=tuple(RejectedPrompt(row=0, prompt_id=name, image="", reason="outside") for name in bad),
                    notes=tuple((notes or {}).get(ref.image_id, ())),
                    size_hw=(sizes or {}).get(ref.image_id, SIZE),
                )
            )
        commit_shard(
            store, run_id, shard, outcomes, attempt="d1-0", started=time.monotonic(), model_s=0.0, predictor={}
        )
    return store, plan
