"""Compatibility with 0.1.0: `ask_scene` and `AskConfig` of `scenes.asked.tasks`."""

from xsam_model.training.scenes.asked.tasks import AskConfig, ask_scene

__all__ = ["AskConfig", "ask_scene"]
