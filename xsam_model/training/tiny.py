"""xsam-tiny, a small X-SAM that learns from scratch on two CPU cores: its sizes, its tokenizer, its processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.testing import BASE_TOKENS, build_processor, config_with, with_chat_tokens
from xsam_model.training.samples.wordings import all_wordings

# Settings that both sizes share.
_VISION = {"model_type": "siglip_vision_model", "hidden_size": 128, "intermediate_size": 512}
_VISION |= {"num_attention_heads": 4, "patch_size": 16}
_MASK_ENCODER = {"patch_size": 8, "window_size": 8, "output_channels": 16, "num_pos_feats": 8}
_LANGUAGE = {"model_type": "phi3", "num_attention_heads": 4, "initializer_range": 0.02}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        # Language tokens and the coarsest feature map come from the last layer, whose attention is global.
        "mask_encoder_select_layer": -1,
        "vision_config": {**_VISION, "num_hidden_layers": 3, "image_size": 96},
        "mask_encoder_config": {
            **_MASK_ENCODER,
            "hidden_size": 128,
            "mlp_dim": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 128,
            "global_attn_indexes": [1, 3],
        },
        "text_config": {
            **_LANGUAGE,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "max_position_embeddings": 1024,
            "sliding_window": 1023,
        },
        "segmentor_config": {
            "select_layers": [1, 2, 4, 4],
            "connector_hidden_dim": 96,
            "feature_size": 64,
            "mask_feature_size": 64,
            "hidden_dim": 64,
            "encoder_feedforward_dim": 256,
            "encoder_layers": 1,
            "decoder_layers": 4,
            "num_attention_heads": 4,
            "dim_feedforward": 256,
            "num_queries": 20,
        },
    },
    "tiny-256": {
        "vision_config": {**_VISION, "num_hidden_layers": 4, "image_size": 160},
        "mask_encoder_config": {
            **_MASK_ENCODER,
            "hidden_size": 256,
            "mlp_dim": 1024,
            "num_hidden_layers": 7,
            "num_attention_heads": 8,
            "image_size": 256,
            "global_attn_indexes": [1, 3, 6],
        },
        "text_config": {
            **_LANGUAGE,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            # 100 + 256 image tokens, and about five for each of 350 names.
            "max_position_embeddings": 2560,
            "sliding_window": 2559,
        },
        "segmentor_config": {
            "select_layers": [1, 3, 5, 7],
            "connector_hidden_dim": 128,
            "feature_size": 128,
            "mask_feature_size": 128,
            "hidden_dim": 128,
            "encoder_feedforward_dim": 512,
            "encoder_layers": 2,
            "decoder_layers": 6,
            "num_attention_heads": 8,
            "dim_feedforward": 512,
            "num_queries": 32,
        },
    },
}
_COMMON_WORDS = (
    "a an the this that these those one two three first second last and or not no in on at of to from with without by "
    "left right top bottom middle center centre upper lower above below under over behind before front back next near "
    "far beside between inside outside corner edge side half part whole other another same all each every any some "
    "small smaller smallest big bigger biggest large larger largest little tiny huge tall short long wide narrow thin "
    "thick round square flat red green blue yellow orange purple pink brown black white grey gray dark light bright "
    "person man woman child boy girl people animal bird cat dog horse cow sheep fish food fruit vegetable flower tree "
    "plant leaf grass sky water sea sand road street house building car truck bus train boat plane bicycle ball book "
    "cup bowl plate bottle box bag hat shoe shirt chair table bed lamp clock phone computer hand head face eye heart "
    "star sun moon cloud fire rock stone wood metal glass paper wall floor door window there is are it its you can "
    "what which where who how many show find locate mark please image picture photo scene object thing describe"
)


def train_tokenizer(phrases: Iterable[str] = (), vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on category names, all prompt wordings, and common words.

    Known words become one or a few tokens; anything else falls back to sub-words and finally to single bytes, so that
    no text is unknown. The same phrases give the same tokenizer.

    Args:
        phrases: names and phrases of the training data, in any order.
        vocab_size: most tokens, before the chat tokens and those of X-SAM are added.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(BASE_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # A phrase occurs at the start of its piece of text or after a space, which byte-level BPE makes part of the word.
    words = sorted({word for phrase in phrases for word in (phrase.lower(), f" {phrase.lower()}")})
    common = [form for word in _COMMON_WORDS.split() for form in (word, f" {word}")]
    tokenizer.train_from_iterator([*all_wordings(), *words, *common], trainer)
    return with_chat_tokens(tokenizer)


def xsam_tiny_config(
    tokenizer: PreTrainedTokenizerFast | None = None, size: str = "tiny", **overrides: Any
) -> XSamConfig:
    """Return the configuration of a small model that is trained from random weights.

    Args:
        tokenizer: result of `train_tokenizer`; by default one trained on wordings and common words alone.
        size: "tiny" has 3.4 million parameters, a 128 pixel canvas and 20 queries, for a CPU; "tiny-256" has 11
            million, a 256 pixel canvas and 32 queries.
        overrides: fields of `XSamConfig` that replace these.
    """
    return config_with(train_tokenizer() if tokenizer is None else tokenizer, SIZES[size], **overrides)


__all__ = ["SIZES", "build_processor", "train_tokenizer", "xsam_tiny_config"]
