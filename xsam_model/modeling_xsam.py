"""The X-SAM network: two image towers, a language model that reads both, and a segmentor that it conditions.

Owns the towers, the projectors, the splicing of images and regions into text, the generation of answers, and the
pooling of conditions and `<SEG>`; the segmentor is in `layers.segmentor`. Shape letters: I images, B conversations, L
text tokens, T tokens after the image is spliced in, N decodes (one per `<SEG>`), Q queries, K conditions, R regions, E
channels of the language model, C channels of the segmentor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForUniversalSegmentation, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicCache
from transformers.models.siglip.modeling_siglip import SiglipVisionModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    ModelOutput,
    can_return_tuple,
)

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.layers.image_prefix import PackedTexts, XSamImagePrefix
from xsam_model.layers.language_layers import read_right_padded, use_language_layers
from xsam_model.layers.name_head import XSamNameHead, gather_names
from xsam_model.layers.refiner import XSamRefiner
from xsam_model.layers.region_sampling import choose_region_points, pool_region_features
from xsam_model.layers.segmentor import XSamConnector, XSamSegmentor, pad_to_multiple, space_to_depth

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from transformers import LogitsProcessorList

_NO_GROUP = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XSamImageFeatures:
    """Features of images that do not depend on what is asked; reusable for any number of prompts.

    Attributes:
        vision_tokens (`torch.Tensor` of shape `(I, V, E)`): language tokens of the vision tower.
        segmentor_tokens (`torch.Tensor` of shape `(I, S, E)`): language tokens of the mask encoder, row by row.
        multi_scale_features (`tuple` of `torch.Tensor` of shape `(I, C, H_i, W_i)`): lowest resolution first.
        mask_features (`torch.Tensor` of shape `(I, C, H, W)`): features whose product with queries gives mask logits.
        name_features (`torch.Tensor` of shape `(I, H, W, C)`): what the classifier sees, of a model with a
            `name_head_config`.
    """

    vision_tokens: torch.Tensor
    segmentor_tokens: torch.Tensor
    multi_scale_features: tuple[torch.Tensor, ...]
    mask_features: torch.Tensor
    name_features: torch.Tensor | None = None

    def language_tokens(self, dtype: torch.dtype) -> torch.Tensor:
        """Return images as the language model reads them, (I, V + S, E)."""
        return torch.cat([self.vision_tokens, self.segmentor_tokens], dim=1).to(dtype)


@dataclass
class XSamOutput(ModelOutput):
    """Output of `XSamForSegmentation`.

    Attributes:
        loss (`torch.Tensor` of shape `()`, float32, *only with `labels`*): losses of classes, masks and dice, weighted
            and summed over all predictions.
        class_logits (`torch.Tensor` of shape `(N, Q, K + 1)`, float32): the last column is the learned background;
            padding columns are -1e9. Softmax over the columns gives probabilities.
        mask_logits (`torch.Tensor` of shape `(N, Q, H, W)`): for the whole canvas of the mask encoder, padding
            included, at reduced resolution; positive inside a mask.
        condition_mask (`torch.Tensor` of shape `(N, K + 1)`, bool): False for padding columns.
        conversation_indices (`torch.Tensor` of shape `(N,)`, int64): conversation that each decode belongs to, in
            ascending order. With one `<SEG>` in every conversation this is `0 .. B - 1`.
        image_indices (`torch.Tensor` of shape `(N,)`, int64): image that each decode belongs to.
        condition_embeddings (`torch.Tensor` of shape `(B, K + 1, C)`): pooled conditions, background last.
        seg_embeddings (`torch.Tensor` of shape `(N, C)`): projected hidden state at each `<SEG>`.
        image_features (`XSamImageFeatures`): pass them to `forward` to ask more about the same images.
        sequences (`tuple` of `torch.Tensor` of shape `(S,)`, *only from `generate`*): ids of each generated answer, its
            stop token included.
        inputs_embeds (`torch.Tensor` of shape `(B, T, E)`, *only with `output_hidden_states`*): spliced sequence.
        sequence_cond_ids, sequence_seg_ids (`torch.Tensor` of shape `(B, T)`, *only with `output_hidden_states`*):
            group of each spliced position, -1 for none.
        language_hidden_state (`torch.Tensor` of shape `(B, T, E)`, *only with `output_hidden_states`*): after the
            language model's final norm.
        decoder_hidden_states (`tuple` of `torch.Tensor` of shape `(Q, N, C)`, *only with `output_hidden_states`*):
            queries before the first and after every decoder layer, each through the decoder's final norm.
        decoder_mask_logits (`tuple` of `torch.Tensor` of shape `(N, Q, H, W)`, *only with `output_hidden_states`*):
            every mask prediction, the last being `mask_logits`.
    """

    loss: torch.Tensor | None = None
    class_logits: torch.Tensor = None  # type: ignore[assignment]
    mask_logits: torch.Tensor = None  # type: ignore[assignment]
    condition_mask: torch.Tensor = None  # type: ignore[assignment]
    conversation_indices: torch.Tensor = None  # type: ignore[assignment]
    image_indices: torch.Tensor = None  # type: ignore[assignment]
    condition_embeddings: torch.Tensor = None  # type: ignore[assignment]
    seg_embeddings: torch.Tensor = None  # type: ignore[assignment]
    image_features: XSamImageFeatures = None  # type: ignore[assignment]
    sequences: tuple[torch.Tensor, ...] | None = None
    inputs_embeds: torch.Tensor | None = None
    sequence_cond_ids: torch.Tensor | None = None
    sequence_seg_ids: torch.Tensor | None = None
    language_hidden_state: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_mask_logits: tuple[torch.Tensor, ...] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return what is not None in the order above, not in that in which it was computed."""
        return tuple(value for one in fields(self) if (value := getattr(self, one.name)) is not None)


class XSamProjector(nn.Module):
    """An MLP of two linear layers with an activation between them."""

    def __init__(self, in_features: int, out_features: int, activation: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(in_features, out_features), ACT2FN[activation], nn.Linear(out_features, out_features)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.model(features)


class XSamPreTrainedModel(PreTrainedModel):
    """Base class for loading, saving and initializing weights."""

    config: XSamConfig
    config_class = XSamConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @classmethod
    def from_pretrained(cls, *args: Any, device_map: Any = None, **options: Any) -> Any:
        """Load weights as `PreTrainedModel.from_pretrained` does, but onto a single device.

        Args:
            args, options: as for `PreTrainedModel.from_pretrained`.
            device_map: a device, {"": device}, or "auto" for the accelerator if there is one, else the CPU.

        Raises:
            ValueError: if the device map splits the model, whose parts read each other's weights, or the folder holds
                two sets of weights.
        """
        _check_weights(args[0] if args else options.get("pretrained_model_name_or_path"), options)
        return super().from_pretrained(*args, device_map=_one_device(device_map), **options)


def _check_weights(folder: Any, options: Mapping[str, Any]) -> None:
    """Refuse a folder with weights in one file and in shards: the library would read the former, which may be older."""
    place = Path(str(folder), options.get("subfolder") or "")
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (place / whole).is_file() and (place / index).is_file():
            raise ValueError(
                f"{place} holds two sets of weights, {whole} and the shards of {index}; keep one of them, e.g. by "
                "saving into an empty folder"
            )


def _one_device(device_map: Any) -> Any:
    if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
        raise ValueError(
            f"X-SAM is not split over devices: give device_map one of them, as {{'': 0}}; got {device_map}"
        )
    if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return device_map
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"


class XSamForSegmentation(XSamPreTrainedModel):
    """X-SAM: `forward` segments with a given answer, in one pass; `generate` lets the model find its own answer.

    ```python
    model = XSamForSegmentation.from_pretrained(folder).eval()
    processor = XSamProcessor.from_pretrained(folder)
    inputs = processor(images="photo.jpg", task="ovseg", conditions=[["person", "dog"]])
    outputs = model(**inputs)
    (found,) = processor.post_process_instance_segmentation(outputs, target_sizes=inputs["original_sizes"])
    ```
    """

    def __init__(self, config: XSamConfig) -> None:
        super().__init__(config)
        text, vision, mask = config.text_config, config.vision_config, config.mask_encoder_config
        # SAM's encoder adds relative positions to its attention scores, which flash attention cannot.
        if mask._attn_implementation not in (None, "eager", "sdpa"):
            mask._attn_implementation = "sdpa"
        activation, channels = config.projector_hidden_act, config.segmentor_config.hidden_dim
        token_channels = config.mask_encoder_map(config.token_layer)[0] * config.token_downsample**2
        # Attributes are named as in the reference implementation, so that its checkpoints need hardly any renaming.
        self.visual_encoder = AutoModel.from_config(vision)
        self.segmentor = XSamSegmentor(config)
        self.llm = AutoModelForCausalLM.from_config(text)
        use_language_layers(self.llm)
        self.visual_projector = XSamProjector(vision.hidden_size, text.hidden_size, activation)
        self.seg_projector = XSamProjector(token_channels, text.hidden_size, activation)
        self.llm_projector = XSamProjector(text.hidden_size, channels, activation)
        self.seg_connector = XSamConnector(config)
        self.bg_embeds = nn.Embedding(1, channels)
        self.refiner = None if config.refiner_dims is None else XSamRefiner(config)
        self.name_head = None
        if (head := config.name_head_config) is not None:
            seen = sum(config.mask_encoder_map(layer)[0] for layer in head.layers)
            self.name_head = XSamNameHead(head, seen, text.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.llm.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor, segmentor_pixel_values: Tensor) -> XSamImageFeatures:
        """Run everything that depends only on the images.

        Args:
            pixel_values: (B, 3, S, S) normalized squares for the vision tower.
            segmentor_pixel_values: (B, 3, M, M) normalized canvases for the mask encoder.
        """
        config = self.config
        vision = self._encode_vision(pixel_values.to(self.dtype))
        layer, block = config.token_layer, config.token_downsample
        named = [] if self.name_head is None else list(self.name_head.config.layers)
        maps, multi_scale_features, mask_features = self.encode_canvases(segmentor_pixel_values, {layer, *named})
        tokens = space_to_depth(pad_to_multiple(self.segmentor.place_tokens(maps[layer]), block), block)
        return XSamImageFeatures(
            vision_tokens=self.visual_projector(vision),
            segmentor_tokens=self.seg_projector(tokens.flatten(1, 2)),
            multi_scale_features=multi_scale_features,
            mask_features=mask_features,
            name_features=None if self.name_head is None else self.name_head.look([maps[one] for one in named]),
        )

    def read_images(self, features: XSamImageFeatures, token_ids: Tensor) -> XSamImagePrefix | None:
        """Compute the prefix (KV) cache of images in the language model, for conversations in `forward`.

        Worth it if an image is asked about more than once: each further conversation then costs only its own text.

        Args:
            features: features from `encode_images`.
            token_ids: (P,) int64, ids of the text before the image, the same in all of these conversations.

        Returns:
            The prefix, or None if the language model cannot share one: because its keys depend on the length of the
            conversation (RoPE scaled by length), or its attention window is not longer than the prefix.
        """
        text = self.config.text_config
        length = len(token_ids) + features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1]
        rope = getattr(text, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default" or length >= (text.sliding_window or math.inf):
            return None
        before = self.get_input_embeddings()(token_ids.to(self.device))
        tokens = features.language_tokens(before.dtype)
        embeds = torch.cat([before.expand(len(tokens), -1, -1), tokens], dim=1)
        # With its configuration the cache keeps no more than the sliding window, which the prefix is shorter than.
        cache = DynamicCache(config=text)
        self.llm.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return XSamImagePrefix.of(token_ids, cache)

    def _read_behind(self, prefix: XSamImagePrefix, texts: list[Tensor], images: Tensor) -> Tensor:
        """Run the language model on texts (L, E) after the prefixes of their images; return hidden states (B, L, E)."""
        window = self.config.text_config.sliding_window
        # Packing needs a mask that only sdpa accepts in this form; elsewhere each text has a row of its own.
        takes_masks = self.llm.config._attn_implementation == "sdpa"
        packed = PackedTexts.of(
            texts,
            images.tolist(),
            num_before=prefix.num_tokens,
            window=window,
            # In longer rows the masked-out pairs of texts would cost more than the shared prefix saves.
            row_length=prefix.num_tokens if takes_masks else 0,
        )
        hidden = self.llm.base_model(
            inputs_embeds=packed.embeds,
            attention_mask=packed.attention_mask if takes_masks else None,
            position_ids=packed.position_ids if takes_masks else None,
            past_key_values=prefix.cache(packed.images, window),
            use_cache=True,
        ).last_hidden_state
        return _pad_right(packed.unpack(hidden))

    def encode_canvases(
        self, segmentor_pixel_values: Tensor, layers: Collection[int] = ()
    ) -> tuple[dict[int, Tensor], tuple[Tensor, ...], Tensor]:
        """Run mask encoder, connector and pixel decoder, which do not need the language model.

        Args:
            segmentor_pixel_values: (B, 3, M, M) normalized canvases.
            layers: hidden states of the mask encoder to return; 0 is the patch embedding.

        Returns:
            The hidden states (B, H, W, C), and multi-scale features and mask features as in `XSamImageFeatures`.
        """
        used = self.config.segmentor_config.used_layers
        maps = self.segmentor.encode(segmentor_pixel_values.to(self.dtype), {*layers, *used})
        return maps, *self.segmentor.decode_pixels(self.seg_connector([maps[layer] for layer in used]))

    def refine(
        self, segmentor_pixel_values: Tensor, regions: Tensor, is_box: Tensor, *, mirrored: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw the masks of visual prompts with the refiner, without the language model.

        Args:
            segmentor_pixel_values: (R, 3, M, M) normalized canvases, one for each prompt.
            regions: (R, M, M) bool, the prompts on their canvases.
            is_box: (R,) bool, whether a prompt is a box, which holds its object.
            mirrored: look at every canvas from left to right and from right to left, and return the mean of both, which
                is better and takes twice as long.

        Returns:
            Mask logits (R, H, W) for the whole canvas and quality logits (R,), see `XSamRefiner`; both float32.

        Raises:
            ValueError: if the model has no refiner.
        """
        if self.refiner is None:
            raise ValueError("this model has no refiner: refiner_dims of its configuration is None")
        if mirrored:
            canvases, drawn = (torch.cat([one, one.flip(-1)]) for one in (segmentor_pixel_values, regions))
            logits, quality = self.refine(canvases, drawn, is_box.repeat(2))
            count = len(is_box)
            return (logits[:count] + logits[count:].flip(-1)) / 2, (quality[:count] + quality[count:]) / 2
        used = self.config.segmentor_config.used_layers
        maps = self.segmentor.encode(segmentor_pixel_values.to(self.dtype), set(used))
        logits, quality = self.refiner([maps[layer].permute(0, 3, 1, 2) for layer in used], regions, is_box)
        return logits.float(), quality.float()

    def _encode_vision(self, pixel_values: Tensor) -> Tensor:
        """Run the vision tower up to the selected layer: (B, 3, S, S) -> (B, V, channels)."""
        layer = self.config.vision_select_layer
        # Of towers whose parts are not known here, all layers are run and one hidden state is taken.
        if not isinstance(self.visual_encoder, SiglipVisionModel):
            return self.visual_encoder(pixel_values, output_hidden_states=True).hidden_states[layer]
        if layer < 0:
            layer += self.config.vision_config.num_hidden_layers + 1
        hidden = self.visual_encoder.embeddings(pixel_values)
        for block in self.visual_encoder.encoder.layers[:layer]:
            hidden = block(hidden, None)
        return hidden

    @can_return_tuple
    def forward(  # noqa: PLR0913, PLR0917  (the model's inputs)
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        cond_ids: Tensor,
        seg_ids: Tensor,
        pixel_values: Tensor | None = None,
        segmentor_pixel_values: Tensor | None = None,
        vprompt_masks: Tensor | None = None,
        region_points: Sequence[Tensor] | None = None,
        image_features: XSamImageFeatures | None = None,
        image_indices: Tensor | None = None,
        output_hidden_states: bool = False,
        region_images: Tensor | None = None,
        language_only: bool = False,
        image_prefix: XSamImagePrefix | None = None,
        conditions_are_names: bool = False,
        lent_regions: Sequence[Tensor | None] | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        num_conditions: Sequence[int] | None = None,  # noqa: ARG002
        original_sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
        scaled_sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> XSamOutput:
        """Segment images by the conditions in their conversations.

        Args:
            input_ids: (B, L) int64, with one image pseudo id per row and one region pseudo id per visual prompt.
            attention_mask: (B, L), 0 for padding, which must be on the right.
            cond_ids: (B, L), number of the condition that a token belongs to, -1 for none.
            seg_ids: (B, L), number of the `<SEG>` at a token, -1 for none.
            pixel_values: (I, 3, S, S) for the vision tower. Not needed with `image_features`.
            segmentor_pixel_values: (I, 3, M, M) for the mask encoder. Not needed with `image_features`.
            vprompt_masks: (R, M, M) bool, masks of the visual prompts in the order of their pseudo ids.
            region_points: for each region (P, 2) (row, column) in [0, 1], instead of choosing them from the masks.
            image_features: result of `encode_images` for the same images.
            image_indices: (B,) int64, image that each conversation is about; by default 0 .. B - 1.
            output_hidden_states: also return intermediate values.
            region_images: (R,) int64, image whose features each region is sampled from, -1 for a zero vector; by
                default that of its conversation.
            language_only: stop after the language model: no `<SEG>` is needed, and only `image_features`,
                `image_indices` and `language_hidden_state` are returned.
            image_prefix: result of `read_images` for the same images, which are then not read again. Positions in
                hidden states and groups then count from the first token after the image.
            conditions_are_names: all conditions are names of categories, so that a model with a `name_head_config` can
                ask its classifier; it makes no difference to others.
            lent_regions: for each region pseudo id the embedding (E,) of a region of some other image, from
                `pool_regions`; None for a region of `vprompt_masks` or `region_points`, which then have only these.
            labels: for each `<SEG>` what is right, as the processor makes it: `masks` (T, M, M) bool on the canvas and
                `class_labels` (T,) int64, the condition of each. The output then has a `loss`.
            num_conditions, original_sizes, scaled_sizes: what the processor returns beside the inputs, for
                post-processing; not used here.

        With `return_dict=False` the output is a tuple of what is not None.

        Raises:
            ValueError: if images, regions or `<SEG>` do not match the token ids.
        """
        features = self._features(image_features, pixel_values, segmentor_pixel_values)
        images = _check_images(image_indices, features, input_ids)
        regions = self._region_embeddings(
            input_ids, features, images, vprompt_masks, region_points, region_images=region_images, lent=lent_regions
        )
        rows = self._splice(
            input_ids, attention_mask.bool(), cond_ids, seg_ids, features, images, regions, image_prefix
        )
        names = input_ids, cond_ids
        cond_ids, seg_ids = _pad_groups(rows)
        # Refused before the language model runs, which is the expensive part.
        missing = (seg_ids < 0).all(1).nonzero()[:, 0].tolist()
        if missing and not language_only:
            raise ValueError(f"conversations {missing} have no <SEG>, so there is nothing to decode")
        if image_prefix is None:
            embeds = _pad_right([row.embeds for row in rows])
            # Of the image, which comes first, no state is read.
            first = 0 if language_only or output_hidden_states else _first_group(cond_ids, seg_ids)
            hidden = read_right_padded(self.llm.base_model, embeds, states_from=first)
            cond_ids, seg_ids = cond_ids[:, first:], seg_ids[:, first:]
        else:
            hidden = self._read_behind(image_prefix, [row.embeds for row in rows], images)
        if language_only:
            return XSamOutput(image_features=features, image_indices=images, language_hidden_state=hidden)
        is_every_needed = output_hidden_states or labels is not None
        output = self._decode(hidden, cond_ids, seg_ids, features, images, every_prediction=is_every_needed)
        if labels is not None:
            output["loss"] = self._loss(output, labels)
            # Predictions of every layer were needed for the loss alone.
            dropped = () if output_hidden_states else ("decoder_hidden_states", "decoder_mask_logits")
            output = XSamOutput(**{name: value for name, value in output.items() if name not in dropped})
        if conditions_are_names and self.name_head is not None:
            self._weigh_names(output, *names)
        if output_hidden_states:
            output["inputs_embeds"] = _pad_right([row.embeds for row in rows])
            output["sequence_cond_ids"], output["sequence_seg_ids"] = cond_ids, seg_ids
            output["language_hidden_state"] = hidden
        return output

    @torch.no_grad()
    def generate(  # noqa: PLR0913, PLR0917  (the model's inputs)
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        cond_ids: Tensor,
        seg_ids: Tensor,
        pixel_values: Tensor | None = None,
        segmentor_pixel_values: Tensor | None = None,
        vprompt_masks: Tensor | None = None,
        region_points: Sequence[Tensor] | None = None,
        image_features: XSamImageFeatures | None = None,
        image_indices: Tensor | None = None,
        *,
        stop_token_ids: Sequence[int] | None = None,
        max_new_tokens: int = 512,
        logits_processor: LogitsProcessorList | None = None,
        lent_regions: Sequence[Tensor | None] | None = None,
        num_conditions: Sequence[int] | None = None,  # noqa: ARG002
        original_sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
        scaled_sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> XSamOutput:
        """Generate answers greedily, and segment what they name.

        As in the reference implementation, the conditions are the phrases of the answer if it has any, else those of
        the question; an answer without exactly one `<SEG>` has no masks.

        Args:
            input_ids, attention_mask, cond_ids, seg_ids: as for `forward`, ending where the answer begins. `<SEG>` of
                earlier turns are not decoded.
            pixel_values, segmentor_pixel_values, vprompt_masks, region_points, image_features, image_indices: as for
                `forward`.
            stop_token_ids: tokens that end an answer; by default those of the language model's generation config.
            max_new_tokens: longest answer in tokens; shorter if the language model runs out of positions.
            logits_processor: modifies the language model's logits, e.g. to force an answer.
            lent_regions: as for `forward`.
            num_conditions, original_sizes, scaled_sizes: as for `forward`.

        Returns:
            As from `forward`, with `sequences`; a conversation whose answer has no masks has no decode.

        Raises:
            ValueError: if images or regions do not match the token ids, or there is no room for an answer.
        """
        features = self._features(image_features, pixel_values, segmentor_pixel_values)
        images = _check_images(image_indices, features, input_ids)
        regions = self._region_embeddings(input_ids, features, images, vprompt_masks, region_points, lent=lent_regions)
        rows = self._splice(input_ids, attention_mask.bool(), cond_ids, seg_ids, features, images, regions)
        answers, hidden = self._speak(rows, stop_token_ids, max_new_tokens, logits_processor)
        spoken = [self._with_answer(row, ids) for row, ids in zip(rows, answers, strict=True)]
        output = self._decode(_pad_right(hidden), *_pad_groups(spoken), features, images)
        output["sequences"] = tuple(answers)
        return output

    def _speak(
        self,
        rows: Sequence[_Sequence],
        stop_token_ids: Sequence[int] | None,
        max_new_tokens: int,
        logits_processor: LogitsProcessorList | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each row the ids of its answer (S,), and the hidden states of row and answer (T + S - 1, E).

        The last token of an answer is never fed to the language model, so it has no hidden state.
        """
        lengths = [len(row.embeds) for row in rows]
        longest = max(lengths)
        room = self.config.text_config.max_position_embeddings - longest
        if room < 1:
            raise ValueError(f"a conversation of {longest} tokens leaves no room for an answer")
        # Padded on the left, so that all answers begin at the same position.
        embeds = torch.stack([nn.functional.pad(row.embeds, (0, 0, longest - len(row.embeds), 0)) for row in rows])
        reach = (
            torch.arange(longest, device=embeds.device)
            >= longest - torch.tensor(lengths, device=embeds.device)[:, None]
        )
        stops = self.llm.generation_config.eos_token_id if stop_token_ids is None else list(stop_token_ids)
        steps: list[Tensor] = []
        # A hook, because `output_hidden_states` would keep the states of every layer, and only the last are needed.
        hook = self.llm.base_model.register_forward_hook(lambda *call: steps.append(call[2].last_hidden_state))
        try:
            answers = self.llm.generate(
                inputs_embeds=embeds,
                attention_mask=reach.long(),
                max_new_tokens=min(max_new_tokens, room),
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=stops,
                # `generate` needs one to fill rows that end early; `_until_stop` cuts it off again.
                pad_token_id=self.config.text_config.pad_token_id or 0,
                logits_processor=logits_processor,
            )
        finally:
            hook.remove()
        hidden = torch.cat(steps, dim=1)
        stop_ids = torch.tensor([] if stops is None else stops, device=answers.device).flatten()
        ids = [_until_stop(answer, stop_ids) for answer in answers]
        kept = [
            row[longest - length : longest + len(answer) - 1]
            for row, length, answer in zip(hidden, lengths, ids, strict=True)
        ]
        return ids, kept

    def _with_answer(self, row: _Sequence, answer: Tensor) -> _Sequence:
        """Append a generated answer to a row's groups, without its last token; `generate` says which phrases count."""
        config, ids = self.config, answer[:-1]
        starts, ends = ids == config.phrase_start_token_id, ids == config.phrase_end_token_id
        cond_ids = row.cond_ids
        phrases = number_phrases(starts.tolist(), ends.tolist())
        if max(phrases, default=_NO_GROUP) != _NO_GROUP:
            cond_ids = torch.full_like(cond_ids, _NO_GROUP)
        is_seg = ids == config.seg_token_id
        # 0 at the only `<SEG>` after subtracting 1 below; -1 everywhere if there are none or several.
        is_decoded = is_seg & (is_seg.sum() == 1)
        return _Sequence(
            embeds=row.embeds,  # not extended: decoding needs the hidden states alone, which `_speak` returns
            cond_ids=torch.cat([cond_ids, cond_ids.new_tensor(phrases)]),
            seg_ids=torch.cat([torch.full_like(row.seg_ids, _NO_GROUP), is_decoded.long() - 1]),
        )

    def _decode(
        self,
        hidden: Tensor,
        cond_ids: Tensor,
        seg_ids: Tensor,
        features: XSamImageFeatures,
        images: Tensor,
        *,
        every_prediction: bool = False,
    ) -> XSamOutput:
        """Decode hidden states (B, T, E) with groups (B, T) into class and mask logits; optionally of every layer."""
        # Projected before pooling, as in the reference implementation: the projector is not linear.
        projected = self.llm_projector(hidden)
        conditions, condition_mask = self._pool_conditions(projected, cond_ids)
        conversations, positions = (seg_ids >= 0).nonzero(as_tuple=True)
        seg_embeddings = projected[conversations, positions]
        decoded_images = images[conversations]
        output = XSamOutput(
            condition_mask=condition_mask[conversations],
            conversation_indices=conversations,
            image_indices=decoded_images,
            condition_embeddings=conditions,
            seg_embeddings=seg_embeddings,
            image_features=features,
        )
        if not len(conversations):
            queries, size = self.config.segmentor_config.num_queries, features.mask_features.shape[-2:]
            output["class_logits"] = hidden.new_zeros(0, queries, condition_mask.shape[1], dtype=torch.float32)
            output["mask_logits"] = features.mask_features.new_zeros(0, queries, *size)
            return output
        decoder, maps, mask_features = self.segmentor.decoder, features.multi_scale_features, features.mask_features
        if every_prediction:
            decoded = decoder.every_prediction(
                [level[decoded_images] for level in maps], mask_features[decoded_images], seg_embeddings
            )
            output["decoder_hidden_states"] = decoded.intermediate_hidden_states
            output["decoder_mask_logits"] = decoded.masks_queries_logits
            queries, masks = decoded.intermediate_hidden_states[-1].transpose(0, 1), decoded.masks_queries_logits[-1]
        else:
            queries, masks = decoder(maps, mask_features, seg_embeddings, decoded_images)
        output["class_logits"] = self.segmentor.classify(
            queries, conditions[conversations], condition_mask[conversations]
        )
        output["mask_logits"] = masks
        return output

    def _loss(self, output: XSamOutput, labels: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the sum of the losses of every prediction, at random points that torch's seed decides."""
        from xsam_model.losses.losses import SegmentationLoss
        from xsam_model.losses.point_sampling import RandomPoints
        from xsam_model.losses.targets import Targets

        decodes, device = len(output.conversation_indices), output.class_logits.device
        if len(labels) != decodes:
            raise ValueError(f"labels has {len(labels)} entries for {decodes} <SEG>; each needs one")
        counts = torch.tensor([len(one["masks"]) for one in labels], device=device)
        targets = Targets(
            masks=torch.cat([one["masks"] for one in labels]).to(device),
            labels=torch.cat([one["class_labels"] for one in labels]).to(device),
            decodes=torch.arange(decodes, device=device).repeat_interleave(counts),
        )
        conditions = output.condition_embeddings[output.conversation_indices]
        logits = self.segmentor.classify_levels(output.decoder_hidden_states or (), conditions, output.condition_mask)
        points = RandomPoints(keys=torch.randint(2**61, (decodes,)).tolist(), device=device)
        losses = SegmentationLoss()(logits, torch.stack(output.decoder_mask_logits or ()), targets, points)
        return torch.stack(list(losses.values())).sum()

    def _weigh_names(self, output: XSamOutput, input_ids: Tensor, cond_ids: Tensor) -> None:
        """Add the classifier's evidence to an output's class logits; `input_ids` (B, L) have no image tokens yet."""
        head, looks = self.name_head, output.image_features.name_features
        assert head is not None
        if looks is None:
            raise ValueError("image_features are of a model without a name head: encode the images with this one")
        config = self.config
        names, which = gather_names(input_ids, cond_ids, [config.phrase_start_token_id, config.phrase_end_token_id])
        of_names = head.reader(names)[which][output.conversation_indices]
        evidence = head.evidence(looks[output.image_indices], output.mask_logits, of_names)
        output["class_logits"] = head.weigh(output.class_logits, evidence, output.condition_mask)

    def _features(
        self, features: XSamImageFeatures | None, pixel_values: Tensor | None, segmentor_pixel_values: Tensor | None
    ) -> XSamImageFeatures:
        if features is not None:
            return features
        if pixel_values is None or segmentor_pixel_values is None:
            raise ValueError("give either image_features, or both pixel_values and segmentor_pixel_values")
        return self.encode_images(pixel_values, segmentor_pixel_values)

    def pool_regions(self, features: XSamImageFeatures, masks: Tensor, images: Tensor) -> Tensor:
        """Return the embeddings of regions, as the language model reads them: also about other images, see `forward`.

        Args:
            features: result of `encode_images`.
            masks: (R, M, M) bool, the regions on the canvas.
            images: (R,) int64, the image of each.

        Returns:
            (R, E).

        Raises:
            ValueError: if a region is empty.
        """
        return self._pool_points(features, self._region_points(masks), images)

    def _region_points(self, masks: Tensor) -> list[Tensor]:
        config = self.config
        return [
            choose_region_points(mask, config.region_num_points, config.region_sampling, config.region_sampling_seed)
            for mask in masks
        ]

    def _pool_points(self, features: XSamImageFeatures, points: Sequence[Tensor], images: Tensor) -> Tensor:
        """Pool the features at the points of R regions, each of its image; zeros for image -1."""
        # The canvas is square, so its tokens are too.
        side = round(features.segmentor_tokens.shape[1] ** 0.5)
        regions = features.segmentor_tokens.new_zeros(len(points), features.segmentor_tokens.shape[2])
        for image in images[images >= 0].unique().tolist():
            places = (images == image).nonzero()[:, 0]
            tokens = features.segmentor_tokens[image].T.unflatten(1, (side, side))
            pooled = pool_region_features(tokens, [points[place] for place in places.tolist()])
            regions = regions.index_put((places,), pooled)
        return regions

    def _region_embeddings(
        self,
        input_ids: Tensor,
        features: XSamImageFeatures,
        images: Tensor,
        masks: Tensor | None,
        points: Sequence[Tensor] | None,
        *,
        region_images: Tensor | None = None,
        lent: Sequence[Tensor | None] | None = None,
    ) -> Tensor | None:
        """Return (R, E), one embedding per region pseudo id, or None if there are none (X-SAM, sec. 3.3)."""
        counts = (input_ids == self.config.region_token_index).sum(1)
        if points is None:
            points = [] if masks is None else self._region_points(masks)
        lent = [None] * len(points) if lent is None else lent
        own = [place for place, one in enumerate(lent) if one is None]
        if len(lent) != int(counts.sum()) or len(own) != len(points):
            raise ValueError(
                f"the text has {int(counts.sum())} regions, but {len(points)} visual prompts were given"
                + (f" for {len(own)} of {len(lent)} that are not lent" if len(own) < len(lent) else "")
            )
        if not lent:
            return None
        sources = images.repeat_interleave(counts) if region_images is None else region_images
        if len(own) == len(lent):
            return self._pool_points(features, points, sources)
        like = features.segmentor_tokens
        places = torch.tensor(own, dtype=torch.long, device=sources.device)
        pooled = iter(self._pool_points(features, points, sources[places]))
        return torch.stack([next(pooled) if one is None else one.to(like) for one in lent])

    def _splice(  # noqa: PLR0917
        self,
        input_ids: Tensor,
        valid: Tensor,
        cond_ids: Tensor,
        seg_ids: Tensor,
        features: XSamImageFeatures,
        images: Tensor,
        regions: Tensor | None,
        prefix: XSamImagePrefix | None = None,
    ) -> list[_Sequence]:
        """Replace pseudo ids by images and regions and drop padding: one sequence for each row of (B, L) ids.

        With a prefix, sequences begin after the image.
        """
        config = self.config
        is_image = (input_ids == config.image_token_index) & valid
        if not torch.equal(is_image.sum(1), torch.ones_like(is_image[:, 0], dtype=torch.long)):
            raise ValueError(f"every conversation needs exactly one image, got {is_image.sum(1).tolist()}")
        # Pseudo ids are negative: clamped to any valid id here, and replaced below.
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))
        if regions is not None:
            embeds = embeds.clone()
            embeds[input_ids == config.region_token_index] = regions.to(embeds.dtype)
        lengths, places = valid.sum(1).tolist(), is_image.int().argmax(1).tolist()
        if prefix is not None:
            _check_prefix(prefix, input_ids, places)
            ends = zip(places, lengths, strict=True)
            behind = [(row, slice(place + 1, length)) for row, (place, length) in enumerate(ends)]
            return [_Sequence(embeds[part], cond_ids[part], seg_ids[part]) for part in behind]
        tokens = features.language_tokens(embeds.dtype)
        no_group = input_ids.new_full((tokens.shape[1],), _NO_GROUP)
        rows = []
        for row, (length, place, image) in enumerate(zip(lengths, places, images.tolist(), strict=True)):
            before, after = slice(0, place), slice(place + 1, length)
            rows.append(
                _Sequence(
                    embeds=torch.cat([embeds[row, before], tokens[image], embeds[row, after]]),
                    cond_ids=torch.cat([cond_ids[row, before], no_group, cond_ids[row, after]]),
                    seg_ids=torch.cat([seg_ids[row, before], no_group, seg_ids[row, after]]),
                )
            )
        return rows

    def _pool_conditions(self, projected: Tensor, cond_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Average the (B, T, C) tokens of each condition, its `<p>` and `</p>` included; append the background.

        Returns:
            (B, K + 1, C), and (B, K + 1) bool that is False for padding.
        """
        batch, _, channels = projected.shape
        counts = cond_ids.amax(1) + 1
        num_conditions = int(counts.amax())
        # Only the tokens of conditions are gathered, which are few compared to those of the image.
        rows, positions = (cond_ids >= 0).nonzero(as_tuple=True)
        # Sums in float32: index_add_ in bfloat16 stops growing at 256 equal summands.
        tokens = projected[rows, positions].float()
        groups = rows * num_conditions + cond_ids[rows, positions]
        sums = tokens.new_zeros(batch * num_conditions, channels).index_add_(0, groups, tokens)
        sizes = tokens.new_zeros(batch * num_conditions).index_add_(0, groups, torch.ones_like(tokens[:, 0]))
        # Padded conditions have no tokens: they become zeros, and are masked.
        pooled = (sums / sizes.clamp(min=1)[:, None]).to(projected.dtype).view(batch, num_conditions, channels)
        background = self.bg_embeds.weight.expand(batch, 1, -1)
        real = torch.arange(num_conditions, device=counts.device) < counts[:, None]
        mask = torch.cat([real, torch.ones_like(counts, dtype=torch.bool)[:, None]], dim=1)
        return torch.cat([pooled, background], dim=1), mask


@dataclass(frozen=True, slots=True, eq=False)
class _Sequence:
    """One conversation as the language model reads it, without padding: embeddings (T, E) and groups (T,)."""

    embeds: Tensor
    cond_ids: Tensor
    seg_ids: Tensor


def _pad_right(rows: Sequence[Tensor], value: float = 0.0) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _pad_groups(rows: Sequence[_Sequence]) -> tuple[Tensor, Tensor]:
    conds, segs = [row.cond_ids for row in rows], [row.seg_ids for row in rows]
    return _pad_right(conds, _NO_GROUP), _pad_right(segs, _NO_GROUP)


def _first_group(cond_ids: Tensor, seg_ids: Tensor) -> int:
    """Return the first position (of T) at which any conversation has a condition or `<SEG>`."""
    return int(((cond_ids >= 0) | (seg_ids >= 0)).any(0).int().argmax())


def _check_prefix(prefix: XSamImagePrefix, input_ids: Tensor, places: Sequence[int]) -> None:
    """Check that all conversations, with images at these places, begin with the text of the prefix."""
    length = len(prefix.token_ids)
    is_other = [place != length for place in places]
    if not any(is_other):
        is_other = (input_ids[:, :length] != prefix.token_ids.to(input_ids.device)).any(1).tolist()
    if any(is_other):
        row = is_other.index(True)
        raise ValueError(f"conversation {row} begins with other text than the image prefix was read with")


def _check_images(indices: Tensor | None, features: XSamImageFeatures, input_ids: Tensor) -> Tensor:
    """Return the image of each conversation, (B,) int64 on the device of `input_ids`."""
    num_images, batch = len(features.vision_tokens), len(input_ids)
    if indices is None:
        if num_images != batch:
            raise ValueError(f"{batch} conversations but {num_images} images: say with image_indices which is which")
        return torch.arange(batch, device=input_ids.device)
    if indices.shape != (batch,) or (batch and not 0 <= int(indices.min()) <= int(indices.max()) < num_images):
        raise ValueError(
            f"image_indices {indices.tolist()} do not name one of {num_images} images for {batch} conversations"
        )
    return indices.to(input_ids.device)


def _until_stop(answer: Tensor, stops: Tensor) -> Tensor:
    """Cut a generated row after its first stop token; the rest is padding."""
    stopped = torch.isin(answer, stops).nonzero()
    return answer[: int(stopped[0]) + 1] if len(stopped) else answer


def number_phrases(starts: Sequence[bool], ends: Sequence[bool]) -> list[int]:
    """Number the phrases of a generated answer, `<p>` and `</p>` included.

    Generated text may be malformed. As in the reference implementation, of several `<p>` before a `</p>` the first
    counts, and a phrase that is not closed is none. A `</p>` without `<p>` is passed over; the reference then has no
    phrase at all.

    Args:
        starts, ends: for each token whether it is `<p>` or `</p>`.

    Returns:
        For each token the number of its phrase, -1 for none.
    """
    groups, first, count = [_NO_GROUP] * len(starts), None, 0
    for place, (is_start, is_end) in enumerate(zip(starts, ends, strict=True)):
        if is_start and first is None:
            first = place
        elif is_end and first is not None:
            groups[first : place + 1] = [count] * (place + 1 - first)
            first, count = None, count + 1
    return groups


AutoModel.register(XSamConfig, XSamForSegmentation)
AutoModelForUniversalSegmentation.register(XSamConfig, XSamForSegmentation)

__all__ = ["XSamForSegmentation", "XSamImageFeatures", "XSamOutput", "XSamPreTrainedModel", "XSamProjector"]
