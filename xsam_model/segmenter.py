"""XSamSegmenter combines the model and its processor: takes images and prompts, returns masks and text.

`encode` runs what depends only on the images, once; `ask` asks encoded images the questions of one task; `segment` does
both and post-processes the results.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xsam_model.image_processing_xsam import ImageInput, as_batch, load_picture
from xsam_model.layers.image_prefix import XSamImagePrefix
from xsam_model.modeling_xsam import XSamForSegmentation, XSamImageFeatures, XSamOutput
from xsam_model.post_processing.calibration import ScoreCalibration, calibration_of
from xsam_model.post_processing.instances import InstanceSegmentation, PhraseSegmentation, phrase_segmentation
from xsam_model.post_processing.maps import PanopticSegmentation, SemanticSegmentation
from xsam_model.processing_xsam import XSamInputs, XSamProcessor, condition_lists
from xsam_model.prompts.answers import Caption, read_caption
from xsam_model.prompts.close_ups import CloseUp, close_ups
from xsam_model.prompts.templates import CATEGORY_TASKS, SPOKEN_TASKS, TASKS, VISUAL_TASKS
from xsam_model.prompts.visual import check_mask
from xsam_model.runtime.device_streams import DeviceStreams

Segmentation = InstanceSegmentation | SemanticSegmentation | PanopticSegmentation | PhraseSegmentation
SegmentationKind = Literal["instance", "semantic", "panoptic"]
VisualPrompt = NDArray[np.bool_] | Tensor
# Tasks whose conditions share a conversation and compete for each mask; other tasks ask one at a time, as in training.
_JOINT_TASKS = (*CATEGORY_TASKS, "vgdseg")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedImages:
    """Encoded images, which can be asked any number of questions.

    Attributes:
        features: features of the network.
        original_sizes, scaled_sizes: (height, width) of each image, originally and on the mask encoder's canvas.
        is_reused: whether more than one conversation about an image will follow.
        prefixes: cached image prefixes of the language model, by the ids of the text before the image; filled by
            `XSamSegmenter.ask`.
    """

    features: XSamImageFeatures
    original_sizes: Sequence[tuple[int, int]]
    scaled_sizes: Sequence[tuple[int, int]]
    is_reused: bool = False
    prefixes: dict[tuple[int, ...], XSamImagePrefix | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.original_sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """One conversation about one of the encoded images.

    Attributes:
        image: position of the image.
        conditions: categories, phrases or the question, as in `XSamProcessor` for one image.
        visual_prompts: bool (H, W) masks at the image's original size, or what `XSamSegmenter.pool_regions` has made of
            a region of another image: (E,) embeddings.
        region_kind: of intseg the kind of region that was drawn as the mask, one of `prompts.visual.REGION_KINDS`;
            None if it is not known. Only a model with `interactive_zoom` makes a difference.
    """

    image: int
    conditions: Sequence[str] = ()
    visual_prompts: Sequence[VisualPrompt] = ()
    region_kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replies:
    """The network's replies to several queries of one task.

    Attributes:
        outputs: logits of each decode.
        decodes: for each query its decode in `outputs`; None if the generated answer has no masks.
        captions: for each query the generated or given answer; empty for the task's fixed answer.
        scaled_sizes, original_sizes: (height, width) of the image of each decode, for post-processing.
        computed: on a GPU, the event at which the network has finished them.
    """

    outputs: XSamOutput
    decodes: tuple[int | None, ...]
    captions: tuple[Caption, ...]
    scaled_sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    computed: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SeenClosely:
    """The mask of one visual prompt, in the window of its image in which it was found.

    Attributes:
        top, left: row and column of the window's first pixel in the image.
        found: one row, of the window: its mask is (1, h, w). On the CPU.
    """

    top: int
    left: int
    found: PhraseSegmentation

    @property
    def is_found(self) -> bool:
        """Whether the mask has a pixel."""
        return bool(self.found.masks.any())

    def on_image(self, size_hw: tuple[int, int]) -> PhraseSegmentation:
        """Return the same row with the mask at the size of the image, (1, H, W)."""
        mask = self.found.masks.new_zeros((1, *size_hw))
        height, width = self.found.masks.shape[1:]
        mask[:, self.top : self.top + height, self.left : self.left + width] = self.found.masks
        return replace(self.found, masks=mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XSamResult:
    """Result of `XSamSegmenter.segment` for one image.

    Attributes:
        segmentation: `InstanceSegmentation`, `SemanticSegmentation` or `PanopticSegmentation` for categories;
            `InstanceSegmentation` for vgdseg; else `PhraseSegmentation` with one row for each condition, visual prompt
            or phrase of the caption. A row for which nothing was found has an empty mask and score 0. None for chat.
        captions: generated text: one for gcgseg, whose phrases are the rows; one for each question of chat and of
            reasoning with an explanation; else none.
    """

    segmentation: Segmentation | None
    captions: tuple[Caption, ...] = ()


class XSamSegmenter:
    """A loaded X-SAM.

    ```python
    segmenter = XSamSegmenter.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
    (result,) = segmenter.segment([pixels], task="refseg", conditions=[["the man on the left"]])
    result.segmentation.masks  # (1, H, W) bool
    ```

    Thread-safe: the network serves one thread at a time, while others prepare inputs or read results.
    """

    def __init__(self, model: XSamForSegmentation, processor: XSamProcessor) -> None:
        if unknown := set(model.config.score_calibration or ()) - set(TASKS):
            raise ValueError(f"score_calibration has no such tasks: {', '.join(sorted(unknown))}; known: {TASKS}")
        self.model = model.eval()
        self.processor = processor
        # Held while the network computes, on a GPU only while its kernels are queued.
        self._turn = threading.Lock()
        self._streams = DeviceStreams(model.device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_options: Any) -> XSamSegmenter:
        """Load model and processor from a folder or a hub repository.

        Args:
            folder: as for `from_pretrained` of transformers.
            model_options: options of the model's `from_pretrained`: `dtype`, `device_map`, `attn_implementation`, ...
        """
        model = XSamForSegmentation.from_pretrained(folder, **model_options)
        return cls(model, XSamProcessor.from_pretrained(folder))

    def calibration(self, task: str) -> ScoreCalibration:
        """Return how the model's configuration has a task's scores calibrated."""
        return calibration_of(self.model.config.score_calibration, task)

    @torch.inference_mode()
    def encode(self, images: ImageInput | Sequence[ImageInput], *, is_reused: bool = False) -> EncodedImages:
        """Run what depends only on the images.

        Args:
            images: as for `XSamProcessor`.
            is_reused: more than one conversation about an image will follow, perhaps in several calls of `ask`. The
                language model then reads each image once and caches its prefix in the returned object (the released
                model in bfloat16: 0.7 GB for each image).

        Raises:
            ValueError: if one is not such an image.
        """
        pixels = self.processor.image_processor(images)
        copied = self._streams.copy([pixels[name] for name in ("pixel_values", "segmentor_pixel_values")])
        with self._turn:
            features = self.model.encode_images(*copied())
        return EncodedImages(
            features=features,
            original_sizes=pixels["original_sizes"],
            scaled_sizes=pixels["scaled_sizes"],
            is_reused=is_reused,
        )

    @torch.inference_mode()
    def pool_regions(self, images: EncodedImages, image: int, masks: Sequence[NDArray[np.bool_]]) -> Tensor:
        """Read regions of an encoded image, so that they can be asked of others as visual prompts of vgdseg.

        Args:
            images: images from `encode`.
            image: position of the image.
            masks: the regions, bool (H, W) at the image's original size; at least one.

        Returns:
            (R, E), on the model's device. The embedding of a region of the image that is asked is the same.

        Raises:
            ValueError: if a mask is empty or differs in size from the image.
        """
        scale, size_hw = self.processor.image_processor.scale_mask, images.original_sizes[image]
        canvases = torch.from_numpy(np.stack([scale(check_mask(mask, size_hw)) for mask in masks]))
        copied = self._streams.copy([canvases])
        with self._turn:
            of_image = torch.full((len(masks),), image, device=self.model.device)
            return self.model.pool_regions(images.features, *copied(), of_image)

    @torch.inference_mode()
    def ask(
        self,
        images: EncodedImages,
        task: str,
        queries: Sequence[Query],
        *,
        question: str | None = None,
        answer: str | None = None,
        explain: bool = False,
        generate: bool | None = None,
        max_new_tokens: int = 512,
    ) -> Replies:
        """Ask encoded images the questions of one task, all in one pass of the network.

        Args:
            images: images from `encode`.
            task, question, answer, explain: as for `XSamProcessor`.
            queries: at least one; several may be about the same image.
            generate: let the model generate its answer; by default if none is fixed or given: gcgseg, chat and
                explanations.
            max_new_tokens: longest answer in tokens.

        Raises:
            ValueError: as `XSamProcessor` does.
        """
        if generate is None:
            generate = answer is None and (explain or task in SPOKEN_TASKS)
        inputs = self.processor(
            task=task,
            conditions=[query.conditions for query in queries],
            visual_prompts=[
                [
                    None if isinstance(one, Tensor) else check_mask(one, images.original_sizes[query.image])
                    for one in query.visual_prompts
                ]
                for query in queries
            ],
            question=question,
            answer=answer,
            explain=explain,
            generate=generate,
        )
        are_names = task in CATEGORY_TASKS and not generate
        outputs, computed = self._reply(images, queries, inputs, max_new_tokens if generate else None, are_names)
        # Reading these on the network's own stream would wait for whatever other threads have queued there since.
        with self._streams.beside(computed):
            conversations = outputs.conversation_indices.tolist()
            spoken = None if outputs.sequences is None else [ids.tolist() for ids in outputs.sequences]
        if spoken is not None:
            decode = self.processor.tokenizer.decode
            captions = [self._read(decode(ids, skip_special_tokens=False)) for ids in spoken]
        else:
            captions = [self._read(answer or "")] * len(queries)
        places = [queries[conversation].image for conversation in conversations]
        return Replies(
            outputs=outputs,
            decodes=tuple(
                conversations.index(query) if query in conversations else None for query in range(len(queries))
            ),
            captions=tuple(captions),
            scaled_sizes=tuple(images.scaled_sizes[place] for place in places),
            original_sizes=tuple(images.original_sizes[place] for place in places),
            computed=computed,
        )

    def _reply(
        self,
        images: EncodedImages,
        queries: Sequence[Query],
        inputs: XSamInputs,
        max_new_tokens: int | None,
        are_names: bool,
    ) -> tuple[XSamOutput, torch.cuda.Event | None]:
        """Run the network in this thread's turn; it generates its answers if they have a longest length.

        Returns:
            Its output, and the mark of when the GPU has computed it.
        """
        texts = inputs.for_model()
        copied = self._streams.copy(list(texts.values()))
        with self._turn:
            arguments = {
                **dict(zip(texts, copied(), strict=True)),
                "image_features": images.features,
                "image_indices": torch.tensor([query.image for query in queries]),
                "lent_regions": _lent_regions(queries),
            }
            if max_new_tokens is not None:
                stops = self.processor.stop_token_ids
                outputs = self.model.generate(**arguments, stop_token_ids=stops, max_new_tokens=max_new_tokens)
            else:
                prefix = self._prefix(images, queries, inputs["input_ids"])
                outputs = self.model(**arguments, image_prefix=prefix, conditions_are_names=are_names)
            return outputs, self._streams.mark()

    def beside(self, replies: Replies) -> AbstractContextManager[None]:
        """Return a context in which replies are read while the GPU runs later batches; see `DeviceStreams.beside`.

        Worth it only if several threads use the network. Does nothing without a GPU.
        """
        return self._streams.beside(replies.computed)

    def _prefix(self, images: EncodedImages, queries: Sequence[Query], input_ids: Tensor) -> XSamImagePrefix | None:
        """Return the prefix cache of the images, or None if it would serve only one conversation each."""
        if not images.is_reused and not _ask_again(queries):
            return None
        places = (input_ids == self.model.config.image_token_index).int().argmax(1)
        before = input_ids[0, : places[0]]
        # One prefix serves conversations only if the text before the image is the same in all of them.
        if not (input_ids[:, : places[0] + 1] == input_ids[0, : places[0] + 1]).all():
            return None
        # The caller holds the lock, so no other thread reads the same images at the same time.
        key = tuple(before.tolist())
        if key not in images.prefixes:
            images.prefixes[key] = self.model.read_images(images.features, before)
        return images.prefixes[key]

    def segment(  # noqa: PLR0913  (each is a choice of its own)
        self,
        images: ImageInput | Sequence[ImageInput] | EncodedImages,
        *,
        task: str = "ovseg",
        conditions: str | Sequence[str | Sequence[str]] | None = None,
        visual_prompts: Sequence[Sequence[VisualPrompt]] | None = None,
        segmentation: SegmentationKind = "instance",
        stuff: Collection[str] = (),
        threshold: float = 0.5,
        top_k: int | None = None,
        question: str | None = None,
        answer: str | None = None,
        explain: bool = False,
        generate: bool | None = None,
        max_new_tokens: int = 512,
        batch_size: int = 8,
    ) -> list[XSamResult]:
        """Segment images by the prompts of one task.

        The categories of an image (genseg, ovseg), and its visual prompts for vgdseg, are asked together and compete
        for each mask. Phrases, questions and the visual prompts of intseg are asked one by one.

        Args:
            images: as for `XSamProcessor`, or the result of `encode`, of which nothing can be looked at from near: see
                `XSamConfig.interactive_zoom`.
            task, question, answer, explain: as for `XSamProcessor`.
            conditions: for each image its categories, phrases (refseg, reaseg) or questions (chat); strings as for
                `XSamProcessor`.
            visual_prompts: for each image its prompts (vgdseg, intseg) as bool (H, W) masks at the image's size, for
                vgdseg also (E,) embeddings of regions of other images, as from `pool_regions`.
            segmentation: kind of segmentation by categories: "instance", "semantic" or "panoptic".
            stuff: conditions that are stuff, not things; "panoptic" makes one segment of each.
            threshold: lowest score of an instance, or, before calibration, of an intseg candidate, in [0, 1]; the class
                score of a panoptic segment must exceed it.
            top_k: most instances of an image, before the threshold; by default as many as the model has queries.
            generate, max_new_tokens: as for `ask`.
            batch_size: conversations that go through the language model together.

        Returns:
            One result for each image.

        Raises:
            ValueError: if prompts do not match the images or the task.
        """
        if segmentation != "instance" and task not in CATEGORY_TASKS:
            raise ValueError(
                f"segmentation {segmentation!r} goes with the tasks {', '.join(CATEGORY_TASKS)}, not {task}"
            )
        given = images if isinstance(images, EncodedImages) else [load_picture(one) for one in as_batch(images)]
        queries = _queries(task, len(given), condition_lists(conditions, len(given)), visual_prompts)
        if task == "intseg" and self.model.config.interactive_zoom and not isinstance(given, EncodedImages):
            if stuff:
                raise ValueError(f"stuff names what is no condition: {', '.join(sorted(stuff))}")
            asking = {"question": question, "answer": answer, "explain": explain, "generate": generate}
            return self._segment_closely(given, queries, threshold=threshold, batch_size=batch_size, **asking)
        encoded = given if isinstance(given, EncodedImages) else self.encode(given, is_reused=_ask_again(queries))
        if unknown := set(stuff) - {name for query in queries for name in query.conditions}:
            raise ValueError(f"stuff names what is no condition: {', '.join(sorted(unknown))}")
        found: list[tuple[Segmentation | None, Caption]] = []
        for first in range(0, len(queries), batch_size):
            batch = queries[first : first + batch_size]
            replies = self.ask(
                encoded,
                task,
                batch,
                question=question,
                answer=answer,
                explain=explain,
                generate=generate,
                max_new_tokens=max_new_tokens,
            )
            decoded = self.read(
                replies, task, batch, segmentation=segmentation, stuff=stuff, threshold=threshold, top_k=top_k
            )
            found += zip(decoded, replies.captions, strict=True)
        answers: list[list[tuple[Segmentation | None, Caption]]] = [[] for _ in range(len(encoded))]
        for query, pair in zip(queries, found, strict=True):
            answers[query.image].append(pair)
        return [
            _result(task, pairs, size_hw, has_words=task in SPOKEN_TASKS or explain)
            for pairs, size_hw in zip(answers, encoded.original_sizes, strict=True)
        ]

    def _segment_closely(
        self,
        images: Sequence[NDArray[np.uint8] | Image.Image],
        queries: Sequence[Query],
        *,
        threshold: float,
        batch_size: int,
        **asking: Any,
    ) -> list[XSamResult]:
        sizes = [_size_hw(one) for one in images]
        rows: list[list[PhraseSegmentation]] = [[] for _ in images]
        seen = self.look_closer(images, queries, threshold=threshold, batch_size=batch_size, **asking)
        for query, one in zip(queries, seen, strict=True):
            rows[query.image].append(one.on_image(sizes[query.image]))
        return [
            XSamResult(segmentation=_rows(found, len(found), size)) for found, size in zip(rows, sizes, strict=True)
        ]

    def look_closer(
        self,
        images: Sequence[NDArray[np.uint8] | Image.Image],
        queries: Sequence[Query],
        *,
        threshold: float = 0.5,
        batch_size: int = 8,
        **asking: Any,
    ) -> Iterator[SeenClosely]:
        """Answer queries of intseg in windows around their visual prompts, by the model's `interactive_zoom`.

        The model's refiner draws the masks, if it has one and nothing is asked beside the prompts.

        Args:
            images: as for `encode`.
            queries: each with one visual prompt.
            threshold: as for `segment`; a refiner has one candidate and no use for it.
            batch_size: windows that go through the network together.
            asking: further arguments of `ask`.

        Yields:
            For each query the mask with the best score of all its windows; if the language model was asked, of those
            that do not cut it off if there are any. Of a box it is what lies inside.
        """
        zoom = self.model.config.interactive_zoom or 1.0
        pixels = [np.asarray(one if isinstance(one, np.ndarray) else one.convert("RGB")) for one in images]
        windows = [
            (place, window)
            for place, query in enumerate(queries)
            for window in close_ups(check_mask(_drawn(query), _size_hw(images[query.image])), zoom, query.region_kind)
        ]
        refines = self.model.refiner is not None and not any(asking.values())
        best: dict[int, tuple[tuple[bool, float], SeenClosely]] = {}
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            cuts = [window.cut(pixels[queries[place].image]) for place, window in batch]
            seen = [window for _, window in batch]
            read = self._refine(cuts, seen) if refines else self._ask_windows(cuts, seen, threshold, asking)
            for (place, window), found in zip(batch, read, strict=True):
                one = SeenClosely(window.top, window.left, found)
                # What fills a window is rather a part of something larger, however sure the network is; a refiner rates
                # what the window shows of the whole.
                is_whole = one.is_found and (
                    refines or not window.is_filled_by(one.found.masks[0].numpy(), pixels[queries[place].image].shape)
                )
                rank = (is_whole, one.found.scores.item())
                if place not in best or rank > best[place][0]:
                    best[place] = (rank, one)
            # What is complete is given away, so that of many prompts one batch is held.
            for place in sorted(best):
                if first + batch_size >= len(windows) or place < windows[first + batch_size][0]:
                    yield best.pop(place)[1]

    def _ask_windows(
        self, cuts: Sequence[NDArray[np.uint8]], windows: Sequence[CloseUp], threshold: float, asking: Mapping[str, Any]
    ) -> list[PhraseSegmentation]:
        """Ask the language model about each window; return a row for each, on the CPU."""
        asked = [Query(image=cut, visual_prompts=[window.region]) for cut, window in enumerate(windows)]
        replies = self.ask(self.encode(cuts), "intseg", asked, **asking)
        with self.beside(replies):
            found = self.read(replies, "intseg", asked, threshold=threshold)
            return [_inside(one, window) for one, window in zip(found, windows, strict=True)]

    @torch.inference_mode()
    def _refine(self, cuts: Sequence[NDArray[np.uint8]], windows: Sequence[CloseUp]) -> list[PhraseSegmentation]:
        """Have the refiner draw what is meant in each window; return a row for each, on the CPU."""
        images = self.processor.image_processor
        pixels = images(cuts)
        regions = torch.from_numpy(np.stack([images.scale_mask(window.region) for window in windows]))
        is_box = torch.tensor([window.is_box for window in windows])
        copied = self._streams.copy([pixels["segmentor_pixel_values"], regions, is_box])
        with self._turn:
            masks, quality = self.model.refine(*copied(), mirrored=True)
            computed = self._streams.mark()
        with self._streams.beside(computed):
            # As the logits of one query for one condition beside a background of 0.
            classes = torch.stack([quality, torch.zeros_like(quality)], dim=1)[:, None]
            sizes = zip(pixels["scaled_sizes"], pixels["original_sizes"], strict=True)
            calibration = self.calibration("intseg")
            found = [
                phrase_segmentation(
                    classes[place], masks[place : place + 1], self.processor.geometry(*size), calibration=calibration
                )
                for place, size in enumerate(sizes)
            ]
            return [_inside(one, window) for one, window in zip(found, windows, strict=True)]

    def read(
        self,
        replies: Replies,
        task: str,
        queries: Sequence[Query],
        *,
        segmentation: SegmentationKind = "instance",
        stuff: Collection[str] = (),
        threshold: float = 0.5,
        top_k: int | None = None,
    ) -> list[Segmentation | None]:
        """Post-process replies, each at the original size of its image; arguments as for `ask` and `segment`.

        Returns:
            For each query its segmentation; None if the generated answer has no masks. The result of a referring,
            reasoning or interactive query always has one row.
        """
        processor, outputs = self.processor, replies.outputs
        sizes = (replies.scaled_sizes, replies.original_sizes)
        calibration = self.calibration(task)
        asked = [queries[conversation] for conversation in outputs.conversation_indices.tolist()]
        found: Sequence[Segmentation]
        if task == "intseg":
            prompts = [_drawn(query) for query in asked]
            found = processor.post_process_interactive_segmentation(
                outputs, *sizes, prompts, threshold=threshold, calibration=calibration
            )
        elif task not in _JOINT_TASKS:
            found = processor.post_process_phrase_segmentation(outputs, *sizes, calibration=calibration)
            if task != "gcgseg":
                # A generated answer may name several phrases, but only one thing was asked for.
                phrases = zip(found, replies.original_sizes, strict=True)
                found = [_rows([one], 1, size) for one, size in phrases]
        elif segmentation == "semantic":
            found = processor.post_process_semantic_segmentation(outputs, *sizes)
        elif segmentation == "panoptic":
            places = [[place for place, name in enumerate(query.conditions) if name in stuff] for query in asked]
            found = processor.post_process_panoptic_segmentation(outputs, *sizes, stuff=places, threshold=threshold)
        else:
            found = processor.post_process_instance_segmentation(
                outputs, *sizes, threshold=threshold, top_k=top_k, calibration=calibration
            )
        return [None if decode is None else found[decode] for decode in replies.decodes]

    def _read(self, answer: str) -> Caption:
        special = [str(token) for token in self.processor.tokenizer.added_tokens_decoder.values()]
        return read_caption(answer, special)


def _queries(
    task: str,
    count: int,
    conditions: Sequence[Sequence[str]] | None,
    visual_prompts: Sequence[Sequence[VisualPrompt]] | None,
) -> list[Query]:
    """Split the prompts of each image into conversations."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if task == "gcgseg":
        if conditions is not None or visual_prompts is not None:
            raise ValueError("gcgseg finds its phrases by itself: it takes no conditions")
        return [Query(image=image) for image in range(count)]
    is_visual = task in VISUAL_TASKS
    names = ("visual_prompts", "conditions") if is_visual else ("conditions", "visual_prompts")
    given, other = (visual_prompts, conditions) if is_visual else (conditions, visual_prompts)
    if other is not None:
        raise ValueError(f"{task} takes {names[0]}, not {names[1]}")
    if given is None or len(given) != count:
        raise ValueError(f"{names[0]} has {'no' if given is None else len(given)} entries for {count} images")
    groups: list[tuple[int, Sequence[Any]]] = []
    for image, items in enumerate(given):
        groups += [(image, items)] if task in _JOINT_TASKS else [(image, [item]) for item in items]
    if is_visual:
        return [Query(image=image, visual_prompts=items) for image, items in groups]
    return [Query(image=image, conditions=items) for image, items in groups]


def _drawn(query: Query) -> NDArray[np.bool_]:
    """Return the mask of a query of intseg."""
    drawn = query.visual_prompts[0]
    if isinstance(drawn, Tensor):
        raise ValueError("intseg marks an object of the image itself; a region of another image goes with vgdseg")
    return drawn


def _lent_regions(queries: Sequence[Query]) -> list[Tensor | None] | None:
    """Return the embedding of each visual prompt, None for a mask; None if all are masks, as in most batches."""
    lent = [one if isinstance(one, Tensor) else None for query in queries for one in query.visual_prompts]
    return None if all(one is None for one in lent) else lent


def _size_hw(image: NDArray[np.uint8] | Image.Image) -> tuple[int, int]:
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    return height, width


def _inside(found: Segmentation | None, window: CloseUp) -> PhraseSegmentation:
    """Copy a row to the host, without what a box's mask has outside the box."""
    assert isinstance(found, PhraseSegmentation)
    found = PhraseSegmentation(**{one.name: getattr(found, one.name).cpu() for one in fields(found)})
    return replace(found, masks=found.masks & torch.as_tensor(window.region)) if window.is_box else found


def _ask_again(queries: Sequence[Query]) -> bool:
    """Return whether several queries are about the same image."""
    return len({query.image for query in queries}) < len(queries)


def _result(
    task: str, pairs: Sequence[tuple[Segmentation | None, Caption]], size_hw: tuple[int, int], *, has_words: bool
) -> XSamResult:
    captions = tuple(caption for _, caption in pairs) if has_words else ()
    if task == "chat":
        return XSamResult(segmentation=None, captions=captions)
    if task in _JOINT_TASKS:
        return XSamResult(segmentation=pairs[0][0], captions=captions)
    counts = [len(caption.phrases) if task == "gcgseg" else 1 for _, caption in pairs]
    rows = [_rows([] if one is None else [one], count, size_hw) for (one, _), count in zip(pairs, counts, strict=True)]
    return XSamResult(segmentation=_rows(rows, sum(counts), size_hw), captions=captions)


def _rows(parts: Sequence[Any], count: int, size_hw: tuple[int, int]) -> PhraseSegmentation:
    """Join `PhraseSegmentation`s into `count` rows: surplus rows are dropped, missing ones are empty with score 0."""
    missing = max(0, count - sum(map(len, parts)))
    device = parts[0].masks.device if parts else None
    blank = torch.zeros(missing, device=device)
    masks = torch.zeros((missing, *size_hw), dtype=torch.bool, device=device)
    # Query -1 for rows that no query has made.
    parts = [*parts, PhraseSegmentation(blank, blank, blank, blank.long() - 1, masks)]
    fields = ("scores", "class_scores", "mask_scores", "query_indices", "masks")
    return PhraseSegmentation(**{name: torch.cat([getattr(part, name) for part in parts])[:count] for name in fields})


__all__ = [
    "EncodedImages",
    "Query",
    "Replies",
    "SeenClosely",
    "Segmentation",
    "SegmentationKind",
    "XSamResult",
    "XSamSegmenter",
]
