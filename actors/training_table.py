"""Compatibility with 0.1.0: the factory `actors.training_table:table` in configs of training runs."""

from actors.training.table_source import table

__all__ = ["table"]
