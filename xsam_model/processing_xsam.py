"""XSamProcessor prepares images and prompts for the model, and turns its logits into masks at original size."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.image_processing_xsam import SIZE_KEYS, ImageInput, XSamImageProcessor
from xsam_model.post_processing.calibration import NOT_CALIBRATED, ScoreCalibration
from xsam_model.post_processing.instances import (
    InstanceSegmentation,
    PhraseSegmentation,
    instance_segmentation,
    interactive_segmentation,
    phrase_segmentation,
)
from xsam_model.post_processing.maps import (
    PanopticSegmentation,
    SemanticSegmentation,
    panoptic_segmentation,
    semantic_segmentation,
)
from xsam_model.post_processing.mask_geometry import MaskGeometry
from xsam_model.prompts.conversations import ADDED_TOKENS, ConversationEncoder, TooManyConditionsError
from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, REGION_MARK, VISUAL_TASKS, Wording
from xsam_model.prompts.visual import check_mask
from xsam_model.saving.bundled_code import PROCESSOR_MAP, write_code

if TYPE_CHECKING:
    from xsam_model.modeling_xsam import XSamOutput

# (height, width) of each image.
_Sizes = Sequence[Sequence[int]]


class XSamInputs(BatchFeature):
    """Output of the processor: model inputs, and sizes for post-processing. `model(**inputs)` takes all of them."""

    def for_model(self) -> dict[str, Any]:
        """Return the arguments of `XSamForSegmentation.forward` that the network computes with."""
        return {key: value for key, value in self.items() if key not in (*SIZE_KEYS, "num_conditions")}


def add_tokens(tokenizer: Any) -> int:
    """Add `<SEG>`, `<p>` and `</p>` to a base tokenizer, in the order that the weights expect.

    Returns:
        The number of tokens that were new.
    """
    return tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)


class XSamProcessor(ProcessorMixin, ConversationEncoder):
    """Prepares conversations about images for `XSamForSegmentation` and turns its output into masks.

    Args:
        image_processor: `XSamImageProcessor`.
        tokenizer: tokenizer of the language model, with the tokens of `add_tokens`.
        max_text_length: most text tokens in one conversation, `XSamConfig.max_text_length`.
        image_token_index, region_token_index: pseudo ids, as in `XSamConfig`.
        chat_format: how the language model marks turns, one of `CHAT_FORMATS`: "phi3" or "qwen3".

    Raises:
        ValueError: if the tokenizer lacks a token that conversations need, or the chat format is unknown.
    """

    tokenizer: Any

    def __init__(  # noqa: PLR0917  (each is saved with the processor)
        self,
        image_processor: Any,
        tokenizer: Any,
        max_text_length: int = 2319,
        image_token_index: int = -200,
        region_token_index: int = -300,
        chat_format: str = "phi3",
        chat_template: str | None = None,
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        ConversationEncoder.__init__(
            self, tokenizer, max_text_length, image_token_index, region_token_index, chat_format
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved of it, with the place of its code."""
        return {**super().to_dict(), "auto_map": dict(PROCESSOR_MAP)}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        """Save it as `ProcessorMixin.save_pretrained` does, with its code; see `XSamConfig.save_pretrained`."""
        written = super().save_pretrained(save_directory, *args, **options)
        write_code(Path(save_directory))
        return written

    def __call__(  # noqa: PLR0913  (each is a choice of its own)
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        *,
        task: str = "ovseg",
        conditions: str | Sequence[str | Sequence[str]] | None = None,
        visual_prompts: Sequence[Sequence[NDArray[np.bool_] | None]] | None = None,
        question: str | None = None,
        answer: str | None = None,
        explain: bool = False,
        generate: bool = False,
        text: str | Sequence[str] | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        return_tensors: str | None = "pt",
    ) -> XSamInputs:
        """Prepare one conversation for each image.

        Args:
            images: uint8 (H, W, 3) RGB arrays, PIL images, or paths or URLs of pictures, of any size; one or several.
                Without them only text and visual prompts are prepared, for images that are already encoded.
            task: one of genseg, ovseg, vgdseg, refseg, reaseg, intseg, gcgseg, chat.
            conditions: for each image its categories (genseg, ovseg), phrases (refseg, reaseg) or question (chat). A
                string instead of an image's list is one condition, and a single string that of every image.
            visual_prompts: for each image its prompts (vgdseg, intseg) as bool (H, W) masks at the image's size; None
                for a region whose embedding the model is given (`lent_regions` of `forward`).
            question: wording to use instead of the task's, with `{}` for the conditions.
            answer: wording to use instead of the task's. gcgseg, chat and explanations have none, so they need one or
                `generate`.
            explain: ask for an explanation in addition to the mask (reaseg).
            generate: end where the answer begins, for `XSamForSegmentation.generate`.
            text: whole conversations instead of question and answer, one for each image or one for all, starting with
                `<|user|>`, with one `<image>` and one `<region>` for each visual prompt.
            labels: for each image what is right, to train: `masks`, bool (T, H, W) at the image's size, and
                `class_labels`, (T,) the position of each mask's condition among the image's.
            return_tensors: "pt", "np" or None.

        Returns:
            `input_ids`, `attention_mask`, `cond_ids`, `seg_ids` (B, L) int64, padded on the right; `vprompt_masks`
            (R, side, side) bool where there are masks of visual prompts; `num_conditions`: list. With images also
            `pixel_values`, `segmentor_pixel_values` (B, 3, side, side) float32; `original_sizes`, `scaled_sizes`:
            lists of (height, width). With labels also `labels`, for each image `masks` (T, side, side) bool and
            `class_labels` (T,) int64, tensors whatever `return_tensors` is.

        Raises:
            ValueError: if conditions and images do not match, a phrase contains a special token, a mask is empty or
                differs in size from its image, an option is missing or contradicts another, or a conversation is
                too long.
        """
        features = {} if images is None else self.image_processor(images, return_tensors="np")
        sizes = features.get("original_sizes")
        count = _count_conversations(sizes, conditions, visual_prompts, text)
        conditions = condition_lists(conditions, count)
        prompts = _per_image(visual_prompts, count, "visual_prompts")
        if text is None:
            wording = self._wording(task=task, question=question, answer=answer, explain=explain, generate=generate)
            groups = prompts if task in VISUAL_TASKS else _per_image(conditions, count, "conditions")
            rows = self._encode_groups(wording, groups)
        else:
            texts = [text] * count if isinstance(text, str) else text
            rows = [self._encode(conversation) for conversation in _per_image(texts, count, "text")]
        self._check_regions(rows, prompts)
        data = self._collate(rows)
        data.update(features)
        if any(mask is not None for masks in prompts for mask in masks):
            data["vprompt_masks"] = self._scale_masks(prompts, sizes)
        if labels is not None:
            data["labels"] = self._scale_labels(_per_image(labels, count, "labels"), sizes, data["num_conditions"])
        plain = [*SIZE_KEYS, "num_conditions", "labels"]
        return XSamInputs(data, tensor_type=return_tensors, skip_tensor_conversion=plain)

    def _scale_labels(
        self, labels: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]] | None, counts: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """Scale the masks of labels to the canvas, and check what they are labeled with."""
        if sizes is None:
            raise ValueError("labels need their images")
        scaled, side = [], self.image_processor.segmentor_size
        for index, one in enumerate(labels):
            places = torch.as_tensor(one["class_labels"], dtype=torch.long)
            if len(places) != len(one["masks"]) or ((places < 0) | (places >= counts[index])).any():
                raise ValueError(
                    f"image {index}: {len(one['masks'])} masks have the class_labels {places.tolist()}; each needs the "
                    f"position of its condition, 0 to {counts[index] - 1}"
                )
            masks = [self.image_processor.scale_mask(check_mask(mask, sizes[index])) for mask in one["masks"]]
            canvases = np.stack(masks) if masks else np.zeros((0, side, side), dtype=np.bool_)
            scaled.append({"masks": torch.from_numpy(canvases), "class_labels": places})
        return scaled

    def _scale_masks(
        self, prompts: Sequence[Sequence[NDArray[np.bool_] | None]], sizes: Sequence[tuple[int, int]] | None
    ) -> NDArray[np.bool_]:
        """Scale all masks of visual prompts to the canvas: (R, side, side)."""
        canvases = []
        for index, masks in enumerate(prompts):
            for mask in (one for one in masks if one is not None):
                size = np.shape(mask) if sizes is None else sizes[index]
                canvases.append(self.image_processor.scale_mask(check_mask(mask, size)))
        return np.stack(canvases)

    def _encode_groups(self, wording: Wording, groups: Sequence[Sequence[Any]]) -> list[list[int]]:
        """Write and tokenize the conversation about each image."""
        rows: list[list[int]] = []
        for index, group in enumerate(groups):
            # Most batches ask all images the same, which is then tokenized once.
            is_same = index > 0 and wording.task not in VISUAL_TASKS and list(group) == list(groups[index - 1])
            rows.append(rows[-1] if is_same else self._encode_group(wording, group, index))
        return rows

    def _check_regions(self, rows: Sequence[list[int]], prompts: Sequence[Sequence[NDArray[np.bool_] | None]]) -> None:
        """Raise ValueError if a conversation has not one region mark for each of its visual prompts."""
        for index, (row, regions) in enumerate(zip(rows, prompts, strict=True)):
            marks = row.count(self.region_token_index)
            if marks != len(regions):
                raise ValueError(f"conversation {index} has {marks} {REGION_MARK}, but {len(regions)} visual prompts")

    def _encode_group(self, wording: Wording, group: Sequence[Any], index: int) -> list[int]:
        """Write and tokenize the conversation about one image; errors name the image."""
        try:
            return self._encode_conditions(wording, group)
        except TooManyConditionsError as error:
            raise TooManyConditionsError(f"image {index}: {error}", num_fitting=error.num_fitting) from error
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from error

    def _collate(self, rows: Sequence[list[int]]) -> dict[str, Any]:
        shape = (len(rows), max(map(len, rows)))
        data: dict[str, Any] = {
            "input_ids": np.full(shape, self.tokenizer.pad_token_id or 0, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "cond_ids": np.full(shape, -1, dtype=np.int64),
            "seg_ids": np.full(shape, -1, dtype=np.int64),
            "num_conditions": [],
        }
        for index, ids in enumerate(rows):
            row = (index, slice(0, len(ids)))
            cond_ids, seg_ids = self.token_groups(np.array(ids))
            data["input_ids"][row], data["attention_mask"][row] = ids, 1
            data["cond_ids"][row], data["seg_ids"][row] = cond_ids, seg_ids
            data["num_conditions"].append(int(cond_ids.max(initial=-1)) + 1)
        return data

    def token_groups(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number the phrases of one conversation, `<p>` and `</p>` included, and its `<SEG>` tokens.

        Args:
            ids: (L,) token ids.

        Returns:
            `cond_ids` and `seg_ids`, (L,) each, -1 elsewhere.

        Raises:
            ValueError: if phrases are nested or not closed.
        """
        starts, ends, segs = (np.cumsum(ids == token) for token in (self._start_id, self._end_id, self._seg_id))
        # Shifted by one token, so that `</p>` itself still counts as inside its phrase.
        closed = np.concatenate([[0], ends[:-1]])
        depth = starts - closed
        if (ends > starts).any() or (depth > 1).any() or starts[-1] != ends[-1]:
            raise ValueError(f"every {PHRASE_START} needs its {PHRASE_END}, one after the other")
        return np.where(depth == 1, starts - 1, -1), np.where(ids == self._seg_id, segs - 1, -1)

    def geometry(self, scaled_size: Sequence[int], original_size: Sequence[int]) -> MaskGeometry:
        """Return the position of an image with these (height, width) sizes on the canvas."""
        return MaskGeometry(
            canvas_size=self.image_processor.segmentor_size,
            scaled_size=(int(scaled_size[0]), int(scaled_size[1])),
            original_size=(int(original_size[0]), int(original_size[1])),
        )

    def post_process_instance_segmentation(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None = None,
        original_sizes: _Sizes | None = None,
        threshold: float = 0.5,
        top_k: int | None = None,
        num_conditions: Sequence[int] | None = None,
        *,
        calibration: ScoreCalibration = NOT_CALIBRATED,
        target_sizes: _Sizes | None = None,
    ) -> list[InstanceSegmentation]:
        """Return the instances of every decode (genseg, ovseg, vgdseg), best score first.

        Args:
            outputs: outputs of the model.
            scaled_sizes, original_sizes: (height, width) of the image of each decode, as returned by the processor.
            threshold: lowest score, in [0, 1].
            top_k: number of candidates per image; by default the number of queries.
            num_conditions: number of conditions of each decode; read from `outputs` by default.
            calibration: of the scores, see `XSamConfig.score_calibration`.
            target_sizes: original sizes under the library's name for them, instead of both sizes.

        Raises:
            ValueError: if neither sizes are given, or both.
        """
        decodes = self._decodes(outputs, scaled_sizes, original_sizes, num_conditions, target_sizes=target_sizes)
        return [
            instance_segmentation(**decode, threshold=threshold, top_k=top_k, calibration=calibration)
            for decode in decodes
        ]

    def post_process_semantic_segmentation(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None = None,
        original_sizes: _Sizes | None = None,
        *,
        target_sizes: _Sizes | None = None,
    ) -> list[SemanticSegmentation]:
        """Return the category of every pixel of each decode (genseg, ovseg); arguments as for instances."""
        decodes = self._decodes(outputs, scaled_sizes, original_sizes, target_sizes=target_sizes)
        return [semantic_segmentation(**decode) for decode in decodes]

    def post_process_panoptic_segmentation(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None = None,
        original_sizes: _Sizes | None = None,
        stuff: Sequence[Collection[int]] | None = None,
        threshold: float = 0.5,
        *,
        target_sizes: _Sizes | None = None,
        **options: Any,
    ) -> list[PanopticSegmentation]:
        """Return the panoptic segmentation of each decode (genseg, ovseg); other arguments as for instances.

        Args:
            stuff: for each decode the positions of its conditions that are stuff, which have at most one segment each.
            options: see `post_processing.maps.panoptic_segmentation`.
        """
        decodes = self._decodes(outputs, scaled_sizes, original_sizes, target_sizes=target_sizes)
        return [
            panoptic_segmentation(**decode, stuff=places, threshold=threshold, **options)
            for decode, places in zip(decodes, [()] * len(decodes) if stuff is None else stuff, strict=True)
        ]

    def post_process_phrase_segmentation(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None = None,
        original_sizes: _Sizes | None = None,
        calibration: ScoreCalibration = NOT_CALIBRATED,
        *,
        target_sizes: _Sizes | None = None,
    ) -> list[PhraseSegmentation]:
        """Return one mask for each phrase of each decode (refseg, reaseg, gcgseg); arguments as for instances."""
        decodes = self._decodes(outputs, scaled_sizes, original_sizes, target_sizes=target_sizes)
        return [phrase_segmentation(**decode, calibration=calibration) for decode in decodes]

    def post_process_interactive_segmentation(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None = None,
        original_sizes: _Sizes | None = None,
        prompt_masks: Sequence[NDArray[np.bool_]] = (),
        threshold: float = 0.5,
        calibration: ScoreCalibration = NOT_CALIBRATED,
        *,
        target_sizes: _Sizes | None = None,
    ) -> list[PhraseSegmentation]:
        """Return the mask for the first visual prompt of each decode (intseg); other arguments as for instances.

        Args:
            prompt_masks: for each decode its visual prompt, a bool (H, W) mask at the image's original size.
        """
        counts = [1] * len(prompt_masks)
        decodes = self._decodes(outputs, scaled_sizes, original_sizes, counts, target_sizes=target_sizes)
        return [
            interactive_segmentation(
                **decode, prompt_mask=torch.as_tensor(mask), threshold=threshold, calibration=calibration
            )
            for decode, mask in zip(decodes, prompt_masks, strict=True)
        ]

    def _decodes(
        self,
        outputs: XSamOutput,
        scaled_sizes: _Sizes | None,
        original_sizes: _Sizes | None,
        num_conditions: Sequence[int] | None = None,
        *,
        target_sizes: _Sizes | None,
    ) -> list[dict[str, Any]]:
        """Return `decode_arguments` of each decode."""
        if target_sizes is not None and original_sizes is None and scaled_sizes is None:
            original_sizes = [(int(height), int(width)) for height, width in target_sizes]
            scaled_sizes = [self.image_processor.scaled_size(size) for size in original_sizes]
        elif target_sizes is not None or original_sizes is None or scaled_sizes is None:
            raise ValueError("give target_sizes, (height, width) of the image of each decode, or both sizes of inputs")
        decodes = [
            self.decode_arguments(outputs, index, scaled_size, original_size)
            for index, (scaled_size, original_size) in enumerate(zip(scaled_sizes, original_sizes, strict=True))
        ]
        if num_conditions is not None:
            decodes = [{**one, "num_conditions": count} for one, count in zip(decodes, num_conditions, strict=True)]
        return decodes

    def decode_arguments(
        self, outputs: XSamOutput, index: int, scaled_size: Sequence[int], original_size: Sequence[int]
    ) -> dict[str, Any]:
        """Return the arguments of the post-processing functions for one decode: logits, geometry, `num_conditions`."""
        return {
            "class_logits": outputs.class_logits[index],
            "mask_logits": outputs.mask_logits[index],
            "geometry": self.geometry(scaled_size, original_size),
            "num_conditions": int(torch.as_tensor(outputs.condition_mask)[index].sum()) - 1,
        }


def _count_conversations(
    sizes: Sequence[Any] | None, conditions: Any, visual_prompts: Any, text: str | Sequence[str] | None
) -> int:
    if sizes is not None:
        return len(sizes)
    lists = [given for given in (conditions, visual_prompts, text) if given is not None and not isinstance(given, str)]
    if not lists:
        raise ValueError("without images, give conditions, visual_prompts or text as a list: one entry a conversation")
    return len(lists[0])


def condition_lists(
    conditions: str | Sequence[str | Sequence[str]] | None, count: int
) -> Sequence[Sequence[str]] | None:
    """Return the conditions of each of `count` images as a list: a string is one condition, never its letters.

    Raises:
        ValueError: if several strings are given for one image, which may be meant as its list.
    """
    if conditions is None:
        return None
    if isinstance(conditions, str):
        return [[conditions]] * count
    if count == 1 and len(conditions) > 1 and all(isinstance(one, str) for one in conditions):
        raise ValueError(f"conditions has {len(conditions)} entries for 1 image; its list is [{list(conditions)!r}]")
    return [[one] if isinstance(one, str) else one for one in conditions]


def _per_image(values: Sequence[Any] | None, count: int, name: str) -> Sequence[Any]:
    if values is None:
        return [[]] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} images")
    return values


AutoImageProcessor.register(XSamConfig, image_processor_classes={"pil": XSamImageProcessor})
AutoProcessor.register(XSamConfig, XSamProcessor)

__all__ = ["ADDED_TOKENS", "XSamInputs", "XSamProcessor", "add_tokens"]
