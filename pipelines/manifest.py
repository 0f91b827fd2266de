"""The documented address of `read_plan` up to version 0.1.0; it is defined in `pipelines.planning.plan`."""

from pipelines.planning.plan import read_plan

__all__ = ["read_plan"]
