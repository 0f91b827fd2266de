"""The output table: its schema, the commits that make shards visible, and reading, verifying and repairing it."""

from pipelines.table.image_lookup import ImageIndex
from pipelines.table.reader import open_table

__all__ = ["ImageIndex", "open_table"]
