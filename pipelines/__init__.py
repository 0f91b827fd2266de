"""The data: sources, manifests, decoding, RLE, the Parquet table and its commits. No torch, no ray, no prefect."""
