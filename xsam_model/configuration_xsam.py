"""Configuration of X-SAM: sizes, token ids and layer choices. Defaults describe the full 4.6 B model.

The mask encoder is SAM's ViT, whose hidden states all have one resolution, or a convolutional trunk, whose stages are a
pyramid; what the rest of the network has to know of either is `XSamConfig.mask_encoder_map`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, Mask2FormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from xsam_model.saving.bundled_code import MODEL_MAP, write_code
from xsam_model.saving.model_card import ModelFacts, model_card

# transformers' deformable encoder and masked decoder are written for three levels; a fourth map, of the highest
# resolution, is added to the mask features alone.
_NUM_FEATURE_LEVELS = (3, 4)
# The refiner normalizes channels in so many groups.
REFINER_GROUPS = 8


@strict
class XSamTrunkConfig(PreTrainedConfig):
    """Configuration of a convolutional mask encoder: EfficientNet-Lite's trunk, batch normalization folded in.

    Hidden state 0 is the stem's, i that of stage i. The defaults describe EfficientNet-Lite0.

    Args:
        image_size: side of the canvas in pixels, a multiple of half the last stage's stride.
        stem_channels: channels of the stem, whose stride is 2.
        channels, depths, kernel_sizes, strides, expansions: of each stage, in order: channels of its output, number of
            blocks, side of the depthwise kernels, stride of the first block, how many times wider a block is inside.
        position_scale: amplitude of the sines and cosines with which the positions of language tokens begin.
    """

    model_type = "xsam_trunk"

    image_size: int = 224
    stem_channels: int = 32
    channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    kernel_sizes: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: list[int] | tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    position_scale: float = 2.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("depths", "kernel_sizes", "strides", "expansions"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"{name} needs one entry for each of {len(self.channels)} stages, got {getattr(self, name)}"
                )
        for name in ("channels", "depths", "expansions", "kernel_sizes"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if set(self.strides) - {1, 2} or any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(
                f"strides must be 1 or 2, and kernel sizes odd; got {self.strides} and {self.kernel_sizes}"
            )
        # A map of which half a place lies beyond the canvas is still one that fits it; with more, masks would shift.
        step = self.stride_at(self.num_hidden_layers) // 2
        if self.image_size < 1 or self.image_size % step:
            raise ValueError(
                f"image_size must be a multiple of half the last stage's stride, {step}; got {self.image_size}"
            )

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages."""
        return len(self.channels)

    def stride_at(self, layer: int) -> int:
        """Pixels of the canvas that one place of a hidden state covers in each direction."""
        return 2 * math.prod(self.strides[:layer])


@strict
class XSamSegmentorConfig(PreTrainedConfig):
    """Configuration of everything between the mask encoder and the masks (X-SAM, sec. 3.2).

    Args:
        select_layers: hidden states of the mask encoder that feed the connector, 0 being the patch embedding or the
            stem; one may feed several branches. Only the last `num_feature_levels` are used.
        connector_scale_factors: upsampling factor of each connector branch; only the last `num_feature_levels` are
            used. A convolutional trunk has the resolutions already: its factors are 1.
        connector_hidden_dim: channels inside a connector branch.
        num_feature_levels: number of feature maps, 3; or 4, of which the finest is added to the mask features alone.
        decoder_layers: number of mask predictions, one more than there are decoder layers.
        logit_scale_init: natural logarithm of the initial factor of class logits.

    The remaining fields are those of `Mask2FormerConfig`.
    """

    model_type = "xsam_segmentor"
    base_config_key = "segmentor_config"

    # Four values as in the reference implementation's configuration, which cuts them to the last three as well.
    select_layers: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    connector_scale_factors: list[int | float] | tuple[int | float, ...] = (4, 2, 1, 0.5)
    connector_hidden_dim: int = 512
    num_feature_levels: int = 3
    logit_scale_init: float = 2.6592600369327783  # ln(1 / 0.07)
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    num_queries: int = 200
    feature_strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    common_stride: int = 4
    dropout: float | int = 0.0
    activation_function: str = "relu"
    pre_norm: bool = False
    enforce_input_projection: bool = False
    init_std: float = 0.02
    init_xavier_std: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_feature_levels not in _NUM_FEATURE_LEVELS:
            raise ValueError(f"num_feature_levels must be 3 or 4, got {self.num_feature_levels}")
        for name in ("select_layers", "connector_scale_factors"):
            if len(getattr(self, name)) < self.num_feature_levels:
                raise ValueError(f"{name} needs at least {self.num_feature_levels} entries, got {getattr(self, name)}")

    @property
    def used_layers(self) -> tuple[int, ...]:
        """Hidden states of the mask encoder in use, highest resolution first."""
        return tuple(self.select_layers)[-self.num_feature_levels :]

    @property
    def used_scale_factors(self) -> tuple[float, ...]:
        """Scale of each connector branch in use, highest resolution first."""
        return tuple(self.connector_scale_factors)[-self.num_feature_levels :]

    def to_mask2former(self) -> Mask2FormerConfig:
        """Return these sizes as a `Mask2FormerConfig` of transformers, whose backbone part is not used."""
        names = (
            "feature_size mask_feature_size hidden_dim encoder_feedforward_dim encoder_layers decoder_layers "
            "num_attention_heads dim_feedforward num_queries feature_strides common_stride dropout "
            "activation_function pre_norm enforce_input_projection init_std init_xavier_std"
        )
        return Mask2FormerConfig(**{name: getattr(self, name) for name in names.split()})


@strict
class XSamNameHeadConfig(PreTrainedConfig):
    """Configuration of the classifier that helps to name masks, see `layers.name_head`.

    Args:
        layers: hidden states of the trunk that it looks at, all of one resolution.
        feature_size, num_classes: channels of the classifier's features, and its classes (those of ImageNet).
        token_size, hidden_size: channels of a name's tokens, and of what is read of them.
        network_weight, evidence_weight: weights of the network's own opinion on which name a mask has, and of the
            classifier's.
        no_name_logit: logit of none of the names, where one of which nothing is known has 0.
    """

    model_type = "xsam_name_head"
    base_config_key = "name_head_config"

    layers: list[int] | tuple[int, ...] = (7, 6)
    feature_size: int = 1280
    num_classes: int = 1000
    token_size: int = 128
    hidden_size: int = 256
    network_weight: float = 0.5
    evidence_weight: float = 0.5
    no_name_logit: float = -1.0


@strict
class XSamConfig(PreTrainedConfig):
    """Configuration of `XSamForSegmentation`.

    Args:
        vision_config: vision tower, whose tokens the language model reads (default SigLIP2 so400m, 384 pixels).
        mask_encoder_config: SAM image encoder (default ViT-L, 1024 pixels), or an `XSamTrunkConfig`.
        text_config: language model; any `model_type` that `AutoModelForCausalLM` knows (default Phi-3 mini 4k).
        segmentor_config: connector, pixel decoder and transformer decoder.
        vision_select_layer: hidden state of the vision tower in use; -2 leaves out the last layer.
        mask_encoder_select_layer: hidden state of the mask encoder that becomes language tokens.
        token_downsample: side of the square of places of that hidden state that one language token covers.
        projector_hidden_act: activation of the three projectors.
        image_token_index, region_token_index: negative pseudo ids in `input_ids`, outside the vocabulary.
        seg_token_id, phrase_start_token_id, phrase_end_token_id: vocabulary ids of `<SEG>`, `<p>` and `</p>`.
        region_num_points: most points that represent a visual prompt.
        region_sampling: "seeded" draws so many pixels of a prompt with a fixed seed; "all" uses every pixel.
        region_sampling_seed: the seed of the draw.
        interactive_zoom: a visual prompt of intseg is looked at in windows around it, that of a box as many times as
            long as the box, see `prompts.close_ups`; None to ask of the whole image alone, as the reference
            implementation does.
        refiner_dims: channels, multiples of 8, of a network that draws the mask in such a window from the prompt's
            place and the mask encoder's maps, see `layers.refiner`: for each map, finest first; None to ask the
            language model, as the reference implementation does.
        name_head_config: classifier that helps to name masks of categories; None, as in the reference implementation,
            for none. Needs an `XSamTrunkConfig`.
        score_calibration: for each task whose scores are to be probabilities of a right mask a `temperature` above 0,
            by which a score's logit is divided, and an `offset` that is added, see `post_processing.calibration`. None
            for scores as the network gives them, as in the reference implementation. Maps keep theirs.
        initializer_range: standard deviation of the projectors' initial weights.
    """

    model_type = "xsam"
    # What `Trainer` does not gather when it evaluates: features, and which conversation and image a decode is of.
    keys_to_ignore_at_inference = [  # noqa: RUF012  (a ClassVar of the parent)
        "image_features",
        "image_indices",
        "conversation_indices",
        "condition_embeddings",
        "condition_mask",
        "seg_embeddings",
    ]
    sub_configs_defaults = {  # noqa: RUF012  (a ClassVar of the parent)
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
        ),
        "mask_encoder_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="sam_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "global_attn_indexes": [5, 11, 17, 23],
            },
        ),
        # 32,011 tokens of Phi-3 and the three of X-SAM: the embeddings shrink from the base model's 32,064 rows. The
        # sliding window matters, since a conversation with some 130 categories is longer than that.
        "text_config": SubConfigSpec(
            config_class=AutoConfig, model_type="phi3", init_kwargs={"vocab_size": 32014, "sliding_window": 2047}
        ),
        "segmentor_config": XSamSegmentorConfig,
    }

    vision_config: Any = None
    mask_encoder_config: Any = None
    text_config: Any = None
    segmentor_config: Any = None
    # Layers of the released weights; their outputs are taken without any final norm.
    vision_select_layer: int = -2
    mask_encoder_select_layer: int = -2
    token_downsample: int = 2
    projector_hidden_act: str = "gelu"
    image_token_index: int = -200
    region_token_index: int = -300
    seg_token_id: int = 32011
    phrase_start_token_id: int = 32012
    phrase_end_token_id: int = 32013
    region_num_points: int = 256
    region_sampling: Literal["seeded", "all"] = "seeded"
    region_sampling_seed: int = 0
    interactive_zoom: float | int | None = None
    refiner_dims: list[int] | tuple[int, ...] | None = None
    name_head_config: Any = None
    score_calibration: dict[str, dict[str, float | int]] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Save it as `PreTrainedConfig.save_pretrained` does, with the network's code, and a card if there is none.

        So every folder of a model, and what `push_to_hub` uploads, loads without this package, by
        `trust_remote_code=True`.
        """
        self.auto_map = dict(MODEL_MAP)
        super().save_pretrained(save_directory, *args, **options)
        folder = Path(save_directory)
        write_code(folder)
        if not (card := folder / "README.md").exists():
            sizes = self.vision_config.image_size, self.mask_encoder_config.image_size
            facts = ModelFacts(vision_size=sizes[0], mask_size=sizes[1], max_text_length=self.max_text_length)
            card.write_text(model_card(facts), encoding="utf-8")

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # SAM's default of 1e-10 would leave an untrained encoder without any signal.
        if getattr(self.mask_encoder_config, "initializer_range", 1.0) < 1e-6:
            self.mask_encoder_config.initializer_range = self.initializer_range
        for name in ("image_token_index", "region_token_index"):
            if getattr(self, name) >= 0:
                raise ValueError(f"{name} must be negative, outside the vocabulary; got {getattr(self, name)}")
        if self.interactive_zoom is not None and self.interactive_zoom < 1:
            raise ValueError(f"interactive_zoom must be 1 or more, or None; got {self.interactive_zoom}")
        self._check_refiner()
        self._check_mask_encoder()
        self._check_calibration()
        if isinstance(self.name_head_config, dict):
            self.name_head_config = XSamNameHeadConfig(**self.name_head_config)
        if self.name_head_config is not None:
            self._check_name_head(self.name_head_config)

    def _check_name_head(self, head: XSamNameHeadConfig) -> None:
        """Refuse layers of which the classifier cannot look at the same places."""
        mask = self.mask_encoder_config
        if not isinstance(mask, XSamTrunkConfig):
            raise ValueError("name_head_config goes with a convolutional trunk as mask_encoder_config")
        layers = list(head.layers)
        outside = [layer for layer in layers if not 0 <= layer <= mask.num_hidden_layers]
        if outside or len({mask.stride_at(layer) for layer in layers}) != 1:
            raise ValueError(
                f"name_head_config: layers must be of one stride among 0 .. {mask.num_hidden_layers}, got {layers}"
            )

    def _check_calibration(self) -> None:
        for task, fields in (self.score_calibration or {}).items():
            values = [fields.get("temperature", math.nan), fields.get("offset", math.nan)]
            if len(fields) != 2 or not all(map(math.isfinite, values)) or values[0] <= 0:
                raise ValueError(
                    f"score_calibration[{task!r}] must have a temperature above 0 and an offset, finite; got {fields}"
                )

    def _check_refiner(self) -> None:
        dims, levels = self.refiner_dims, self.segmentor_config.num_feature_levels
        if dims is None:
            return
        if self.interactive_zoom is None:
            raise ValueError("refiner_dims need interactive_zoom: the refiner answers in windows around a prompt")
        if len(dims) != levels or any(channels < 1 or channels % REFINER_GROUPS for channels in dims):
            raise ValueError(
                f"refiner_dims must be {levels} multiples of {REFINER_GROUPS}, one for each map; got {list(dims)}"
            )

    def _check_mask_encoder(self) -> None:
        """Refuse a trunk whose stages do not make the pyramid that the pixel decoder reads."""
        mask, segmentor = self.mask_encoder_config, self.segmentor_config
        if not isinstance(mask, XSamTrunkConfig):
            return
        layers = mask.num_hidden_layers
        if not -layers - 1 <= self.mask_encoder_select_layer <= layers:
            raise ValueError(
                f"mask_encoder_select_layer must be in {-layers - 1} .. {layers}, got {self.mask_encoder_select_layer}"
            )
        outside = [layer for layer in segmentor.used_layers if not 0 <= layer <= layers]
        if outside:
            raise ValueError(f"select_layers: {outside} are not among 0 .. {layers}, the trunk's stages")
        strides = [mask.stride_at(layer) for layer in segmentor.used_layers]
        if strides != list(segmentor.feature_strides)[-len(strides) :]:
            raise ValueError(
                f"select_layers {list(segmentor.used_layers)} have strides {strides} in this trunk, but "
                f"feature_strides are {list(segmentor.feature_strides)}"
            )
        if any(scale != 1 for scale in segmentor.used_scale_factors):
            raise ValueError(
                f"connector_scale_factors must be 1 for a convolutional trunk, got {list(segmentor.used_scale_factors)}"
            )

    @property
    def token_layer(self) -> int:
        """Hidden state of the mask encoder that becomes language tokens, counted from 0."""
        layer, layers = self.mask_encoder_select_layer, self.mask_encoder_config.num_hidden_layers
        return layer + layers + 1 if layer < 0 else layer

    def mask_encoder_map(self, layer: int) -> tuple[int, int]:
        """Return channels and side of a hidden state of the mask encoder: 0 is the patch embedding or the stem."""
        mask = self.mask_encoder_config
        if isinstance(mask, XSamTrunkConfig):
            return [mask.stem_channels, *mask.channels][layer], -(-mask.image_size // mask.stride_at(layer))
        return mask.hidden_size, mask.image_size // mask.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Number of language tokens of one image: those of the vision tower, then those of the mask encoder."""
        vision = self.vision_config
        # Rounded up, as the network pads an odd number of patches.
        grid = -(-self.mask_encoder_map(self.token_layer)[1] // self.token_downsample)
        return (vision.image_size // vision.patch_size) ** 2 + grid**2

    @property
    def max_text_length(self) -> int:
        """Most text tokens in a conversation about one image."""
        # The reference implementation's formula, which counts patches as a fraction: 2,319 for the released weights.
        vision = self.vision_config
        grid = self.mask_encoder_map(self.token_layer)[1] // self.token_downsample
        return int(self.text_config.max_position_embeddings - (vision.image_size / vision.patch_size) ** 2 - grid**2)


# Makes a configuration file's `model_type` known, as for transformers' own.
AutoConfig.register(XSamTrunkConfig.model_type, XSamTrunkConfig)
AutoConfig.register(XSamConfig.model_type, XSamConfig)

__all__ = ["XSamConfig", "XSamNameHeadConfig", "XSamSegmentorConfig", "XSamTrunkConfig"]
