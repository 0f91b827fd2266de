"""Where tiny models with random weights were made until 0.1.0: it is `xsam_model.testing` now."""

from xsam_model.testing import build_tokenizer, save_untrained, untrained_tiny_config

__all__ = ["build_tokenizer", "save_untrained", "untrained_tiny_config"]
