"""Compaction: all committed rows of an output once more, in few large files, for readers that open every file."""

from pipelines.compaction.compacted import Compacted, newest_compacted
from pipelines.compaction.write import compact

__all__ = ["Compacted", "compact", "newest_compacted"]
