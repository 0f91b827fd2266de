"""Hugging Face datasets: `Dataset.map`, batched, in two processes, saved as Parquet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from benchmarks.peers.job import BATCH, WORKERS, Labeler, files_in

FEATURES = Features(
    {
        "file": Value("string"),
        "category": Value("string"),
        "score": Value("float64"),
        "height": Value("int64"),
        "width": Value("int64"),
        "counts": Value("string"),
    }
)
_loaded: list[Labeler] = []


def label(batch: dict[str, list[Any]], output: str) -> dict[str, list[Any]]:
    """Label a batch with this process's model."""
    if not _loaded:
        _loaded.append(Labeler(output))
    rows = _loaded[0].label(batch["path"], batch["image"])
    return {name: [row[name] for row in rows] for name in FEATURES}


def main(folder: str, output: str) -> None:
    files = files_in(folder)
    dataset = Dataset.from_dict({"path": files, "image": files}).cast_column("image", Image())
    labeled = dataset.map(
        label,
        batched=True,
        batch_size=BATCH,
        num_proc=WORKERS,
        remove_columns=dataset.column_names,
        features=FEATURES,
        fn_kwargs={"output": output},
    )
    labeled.to_parquet(str(Path(output, "masks.parquet")))


if __name__ == "__main__":
    main(*sys.argv[1:])
