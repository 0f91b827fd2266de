"""The data pipeline: sources, plans, decoding, RLE, the Parquet table and its commits. No torch, no ray, no prefect."""
