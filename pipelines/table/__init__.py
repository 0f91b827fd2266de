"""The output table: its columns, the commit that makes a shard visible, reading, checking and mending it."""

from pipelines.table.reader import open_table

__all__ = ["open_table"]
