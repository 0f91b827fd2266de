"""Where `read_plan` lay until 0.1.0: it is in `pipelines.planning.plan` now."""

from pipelines.planning.plan import read_plan

__all__ = ["read_plan"]
