"""Forget images on request: erase all that an output holds of them, run after run, and keep the rest as it is."""

from pipelines.forgetting.forget import Erased, Found, choose, forget

__all__ = ["Erased", "Found", "choose", "forget"]
