"""Compatibility with 0.1.0: the small models with random weights of `xsam_model.testing`."""

from xsam_model.testing import build_tokenizer, save_untrained, untrained_tiny_config

__all__ = ["build_tokenizer", "save_untrained", "untrained_tiny_config"]
