"""Where `ask_scene` lay until 0.1.0."""

from xsam_model.training.scenes.asked.tasks import AskConfig, ask_scene

__all__ = ["AskConfig", "ask_scene"]
