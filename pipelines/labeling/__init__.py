"""The main path: from a planned shard of images to its committed rows."""

from pipelines.labeling.shard import label_shard

__all__ = ["label_shard"]
