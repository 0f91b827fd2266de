"""Where the factory `actors.training_table:table` of training configs lay until 0.1.0."""

from actors.training.table_source import table

__all__ = ["table"]
