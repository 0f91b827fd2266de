"""An output as an SQL database, and what a person's SQL may do in it."""

from pipelines.query.database import open_arrow, open_database, open_polars

__all__ = ["open_arrow", "open_database", "open_polars"]
