"""Query an output with SQL: views of its rows for DuckDB, pyarrow and Polars, and limits on what a statement may do."""

from pipelines.query.database import open_arrow, open_database, open_polars

__all__ = ["open_arrow", "open_database", "open_polars"]
