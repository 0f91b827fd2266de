"""X-SAM: two image towers, a language model that reads both, and a segmentor that it conditions (X-SAM, sec. 3).

Owns the towers, the projectors, the splicing of images and regions into text, and the pooling of conditions and
`<SEG>`; the segmentor is in `modeling_xsam_segmentor`. Shape letters: B images, L text tokens, T tokens after the
image is spliced in, N decodes (one per `<SEG>`), Q queries, K conditions, R regions, E channels of the language
model, C channels of the segmentor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipVisionModel
from transformers.utils import ModelOutput

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.modeling_xsam_segmentor import XSamConnector, XSamSegmentor, pad_to_multiple, space_to_depth
from xsam_model.region_sampling import choose_region_points, pool_region_features

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_GROUP = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XSamImageFeatures:
    """What an image is to the network, whatever is asked of it; reusable for several prompts.

    Attributes:
        vision_tokens (`torch.Tensor` of shape `(B, V, E)`): language tokens of the vision tower.
        segmentor_tokens (`torch.Tensor` of shape `(B, S, E)`): language tokens of the mask encoder, row by row.
        multi_scale_features (`tuple` of `torch.Tensor` of shape `(B, C, H_i, W_i)`): lowest resolution first.
        mask_features (`torch.Tensor` of shape `(B, C, H, W)`): what queries are compared with to make masks.
    """

    vision_tokens: torch.Tensor
    segmentor_tokens: torch.Tensor
    multi_scale_features: tuple[torch.Tensor, ...]
    mask_features: torch.Tensor


@dataclass
class XSamOutput(ModelOutput):
    """Output of `XSamForSegmentation`.

    Attributes:
        class_logits (`torch.Tensor` of shape `(N, Q, K + 1)`, float32): the last column is the latent background;
            columns of padding are -1e9. Softmax over the columns gives probabilities.
        mask_logits (`torch.Tensor` of shape `(N, Q, H, W)`): on the canvas of the mask encoder at reduced resolution,
            padding included; positive inside a mask.
        condition_mask (`torch.Tensor` of shape `(N, K + 1)`, bool): False for columns of padding.
        image_indices (`torch.Tensor` of shape `(N,)`, int64): image that each decode belongs to. With one `<SEG>`
            per conversation this is `0 .. B - 1`.
        condition_embeddings (`torch.Tensor` of shape `(B, K + 1, C)`): pooled conditions, background last.
        seg_embeddings (`torch.Tensor` of shape `(N, C)`): projected hidden state at each `<SEG>`.
        image_features (`XSamImageFeatures`): give it back to `forward` to ask more of the same images.
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

    class_logits: torch.Tensor = None  # type: ignore[assignment]
    mask_logits: torch.Tensor = None  # type: ignore[assignment]
    condition_mask: torch.Tensor = None  # type: ignore[assignment]
    image_indices: torch.Tensor = None  # type: ignore[assignment]
    condition_embeddings: torch.Tensor = None  # type: ignore[assignment]
    seg_embeddings: torch.Tensor = None  # type: ignore[assignment]
    image_features: XSamImageFeatures = None  # type: ignore[assignment]
    inputs_embeds: torch.Tensor | None = None
    sequence_cond_ids: torch.Tensor | None = None
    sequence_seg_ids: torch.Tensor | None = None
    language_hidden_state: torch.Tensor | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_mask_logits: tuple[torch.Tensor, ...] | None = None


class XSamProjector(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, in_features: int, out_features: int, activation: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(in_features, out_features), ACT2FN[activation], nn.Linear(out_features, out_features)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.model(features)


class XSamPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights."""

    config: XSamConfig
    config_class = XSamConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True


class XSamForSegmentation(XSamPreTrainedModel):
    """X-SAM for inference with a given answer: one pass of the language model, no generation.

    ```python
    model = XSamForSegmentation.from_pretrained(folder).eval()
    processor = XSamProcessor.from_pretrained(folder)
    inputs = processor(images=[pixels], task="ovseg", conditions=[["person", "dog"]])
    outputs = model(**inputs.for_model())
    ```
    """

    def __init__(self, config: XSamConfig) -> None:
        super().__init__(config)
        text, vision, mask = config.text_config, config.vision_config, config.mask_encoder_config
        # SAM's encoder adds relative positions to its attention scores, which flash attention cannot.
        if mask._attn_implementation not in (None, "eager", "sdpa"):
            mask._attn_implementation = "sdpa"
        activation, channels = config.projector_hidden_act, config.segmentor_config.hidden_dim
        token_channels = mask.hidden_size * config.token_downsample**2
        self.visual_encoder = AutoModel.from_config(vision)
        self.segmentor = XSamSegmentor(config.segmentor_config, mask)
        self.llm = AutoModelForCausalLM.from_config(text)
        self.visual_projector = XSamProjector(vision.hidden_size, text.hidden_size, activation)
        self.seg_projector = XSamProjector(token_channels, text.hidden_size, activation)
        self.llm_projector = XSamProjector(text.hidden_size, channels, activation)
        self.seg_connector = XSamConnector(config.segmentor_config, mask.hidden_size)
        self.bg_embeds = nn.Embedding(1, channels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.llm.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor, segmentor_pixel_values: Tensor) -> XSamImageFeatures:
        """Run everything that depends on the images alone.

        Args:
            pixel_values: (B, 3, S, S) normalised squares for the vision tower.
            segmentor_pixel_values: (B, 3, M, M) normalised canvases for the mask encoder.
        """
        config = self.config
        vision = self._encode_vision(pixel_values.to(self.dtype))
        token_layer = config.mask_encoder_select_layer
        if token_layer < 0:
            token_layer += config.mask_encoder_config.num_hidden_layers + 1
        pyramid_layers = config.segmentor_config.used_layers
        maps = self.segmentor.encode(segmentor_pixel_values.to(self.dtype), {token_layer, *pyramid_layers})
        tokens = space_to_depth(pad_to_multiple(maps[token_layer], config.token_downsample), config.token_downsample)
        pyramid = self.seg_connector([maps[layer] for layer in pyramid_layers])
        multi_scale_features, mask_features = self.segmentor.decode_pixels(pyramid)
        return XSamImageFeatures(
            vision_tokens=self.visual_projector(vision),
            segmentor_tokens=self.seg_projector(tokens.flatten(1, 2)),
            multi_scale_features=multi_scale_features,
            mask_features=mask_features,
        )

    def _encode_vision(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, V, channels), leaving out what comes after the selected layer."""
        layer = self.config.vision_select_layer
        if not isinstance(self.visual_encoder, SiglipVisionModel):
            return self.visual_encoder(pixel_values, output_hidden_states=True).hidden_states[layer]
        if layer < 0:
            layer += self.config.vision_config.num_hidden_layers + 1
        hidden = self.visual_encoder.embeddings(pixel_values)
        for block in self.visual_encoder.encoder.layers[:layer]:
            hidden = block(hidden, None)
        return hidden

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
        output_hidden_states: bool = False,
    ) -> XSamOutput:
        """Segment images by the conditions in their conversations.

        Args:
            input_ids: (B, L) int64 with one image pseudo id per row and one region pseudo id per visual prompt.
            attention_mask: (B, L), 0 for padding, which is on the right.
            cond_ids: (B, L) number of the condition that a token belongs to, -1 for none.
            seg_ids: (B, L) number of the `<SEG>` at a token, -1 for none.
            pixel_values: (B, 3, S, S) for the vision tower. Not needed with `image_features`.
            segmentor_pixel_values: (B, 3, M, M) for the mask encoder. Not needed with `image_features`.
            vprompt_masks: (R, M, M) bool, masks of the visual prompts in the order of their pseudo ids.
            region_points: for each region (P, 2) (row, column) in [0, 1], instead of choosing them from the masks.
            image_features: `encode_images` of the same images.
            output_hidden_states: also return intermediate values.

        Raises:
            ValueError: if images, regions or `<SEG>` do not fit the token ids.
        """
        if image_features is None:
            if pixel_values is None or segmentor_pixel_values is None:
                raise ValueError("give either image_features, or both pixel_values and segmentor_pixel_values")
            image_features = self.encode_images(pixel_values, segmentor_pixel_values)
        regions = self._region_embeddings(input_ids, image_features, vprompt_masks, region_points)
        embeds, cond_ids, seg_ids = self._splice(
            input_ids, attention_mask.bool(), cond_ids, seg_ids, image_features, regions
        )
        # Right padding under a causal mask cannot reach any real token, so no padding mask is needed.
        hidden = self.llm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        projected = self.llm_projector(hidden)
        conditions, condition_mask = self._pool_conditions(projected, cond_ids)
        image_indices, seg_embeddings = self._pick_seg(projected, seg_ids)
        decoded = self.segmentor.decoder(
            [level[image_indices] for level in image_features.multi_scale_features],
            image_features.mask_features[image_indices],
            seg_embeddings,
        )
        queries = decoded.intermediate_hidden_states[-1].transpose(0, 1)
        output = XSamOutput(
            class_logits=self.segmentor.classify(queries, conditions[image_indices], condition_mask[image_indices]),
            mask_logits=decoded.masks_queries_logits[-1],
            condition_mask=condition_mask[image_indices],
            image_indices=image_indices,
            condition_embeddings=conditions,
            seg_embeddings=seg_embeddings,
            image_features=image_features,
        )
        if output_hidden_states:
            output["inputs_embeds"] = embeds
            output["sequence_cond_ids"], output["sequence_seg_ids"] = cond_ids, seg_ids
            output["language_hidden_state"] = hidden
            output["decoder_hidden_states"] = decoded.intermediate_hidden_states
            output["decoder_mask_logits"] = decoded.masks_queries_logits
        return output

    def _region_embeddings(
        self,
        input_ids: Tensor,
        features: XSamImageFeatures,
        masks: Tensor | None,
        points: Sequence[Tensor] | None,
    ) -> Tensor | None:
        """Return (R, E), one embedding per region pseudo id, or None where there is none (X-SAM, sec. 3.3)."""
        config = self.config
        counts = (input_ids == config.region_token_index).sum(1).tolist()
        if points is None and masks is not None:
            points = [
                choose_region_points(
                    mask, config.region_num_points, config.region_sampling, config.region_sampling_seed
                )
                for mask in masks
            ]
        num_regions = 0 if points is None else len(points)
        if num_regions != sum(counts):
            raise ValueError(f"the text has {sum(counts)} regions, but {num_regions} visual prompts were given")
        if not points:
            return None
        side = round(features.segmentor_tokens.shape[1] ** 0.5)
        pooled, first = [], 0
        for tokens, count in zip(features.segmentor_tokens, counts, strict=True):
            if count:
                pooled.append(pool_region_features(tokens.T.unflatten(1, (side, side)), points[first : first + count]))
            first += count
        return torch.cat(pooled)

    def _splice(
        self,
        input_ids: Tensor,
        valid: Tensor,
        cond_ids: Tensor,
        seg_ids: Tensor,
        features: XSamImageFeatures,
        regions: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put images and regions where their pseudo ids are: (B, L) ids -> (B, T, E), and the (B, T) groups."""
        config = self.config
        is_image = (input_ids == config.image_token_index) & valid
        if not torch.equal(is_image.sum(1), torch.ones_like(is_image[:, 0], dtype=torch.long)):
            raise ValueError(f"every conversation needs exactly one image, got {is_image.sum(1).tolist()}")
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))
        if regions is not None:
            embeds = embeds.clone()
            embeds[input_ids == config.region_token_index] = regions.to(embeds.dtype)
        images = torch.cat([features.vision_tokens, features.segmentor_tokens], dim=1)
        no_group = input_ids.new_full((images.shape[1],), _NO_GROUP)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        lengths, places = valid.sum(1).tolist(), is_image.int().argmax(1).tolist()
        for row, (length, place) in enumerate(zip(lengths, places, strict=True)):
            before, after = slice(0, place), slice(place + 1, length)
            rows.append(
                (
                    torch.cat([embeds[row, before], images[row].to(embeds.dtype), embeds[row, after]]),
                    torch.cat([cond_ids[row, before], no_group, cond_ids[row, after]]),
                    torch.cat([seg_ids[row, before], no_group, seg_ids[row, after]]),
                )
            )
        sequences, conds, segs = map(list, zip(*rows, strict=True))
        pad = nn.utils.rnn.pad_sequence
        return pad(sequences, True), pad(conds, True, _NO_GROUP), pad(segs, True, _NO_GROUP)

    def _pool_conditions(self, projected: Tensor, cond_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Average the (B, T, C) tokens of each condition, its `<p>` and `</p>` included; append the background.

        Returns:
            (B, K + 1, C), and (B, K + 1) bool that is False for padding.
        """
        batch, _, channels = projected.shape
        counts = cond_ids.amax(1) + 1
        num_conditions = int(counts.amax())
        rows, positions = (cond_ids >= 0).nonzero(as_tuple=True)
        tokens = projected[rows, positions].float()
        groups = rows * num_conditions + cond_ids[rows, positions]
        sums = tokens.new_zeros(batch * num_conditions, channels).index_add_(0, groups, tokens)
        sizes = tokens.new_zeros(batch * num_conditions).index_add_(0, groups, torch.ones_like(tokens[:, 0]))
        pooled = (sums / sizes.clamp(min=1)[:, None]).to(projected.dtype).view(batch, num_conditions, channels)
        background = self.bg_embeds.weight.expand(batch, 1, -1)
        real = torch.arange(num_conditions, device=counts.device) < counts[:, None]
        mask = torch.cat([real, torch.ones_like(counts, dtype=torch.bool)[:, None]], dim=1)
        return torch.cat([pooled, background], dim=1), mask

    @staticmethod
    def _pick_seg(projected: Tensor, seg_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of each `<SEG>` (N,) and its projected hidden state (N, C)."""
        rows, positions = (seg_ids >= 0).nonzero(as_tuple=True)
        missing = sorted(set(range(len(seg_ids))) - set(rows.tolist()))
        if missing:
            raise ValueError(f"conversations {missing} have no <SEG>, so there is nothing to decode")
        return rows, projected[rows, positions]


__all__ = ["XSamForSegmentation", "XSamImageFeatures", "XSamOutput", "XSamPreTrainedModel", "XSamProjector"]
