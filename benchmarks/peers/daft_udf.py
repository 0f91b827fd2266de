"""Daft: a class UDF with a batch method in two processes, written as Parquet."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import daft
from PIL import Image

from benchmarks.peers.job import BATCH, WORKERS, Labeler, files_in

ROW = daft.DataType.struct(
    {
        "file": daft.DataType.string(),
        "category": daft.DataType.string(),
        "score": daft.DataType.float64(),
        "height": daft.DataType.int64(),
        "width": daft.DataType.int64(),
        "counts": daft.DataType.string(),
    }
)


@daft.cls(max_concurrency=WORKERS, use_process=True)
class LabelBatch:
    """What each process holds."""

    def __init__(self, output: str) -> None:
        self._labeler = Labeler(output)

    # Decoded here by Pillow, as in the other engines: Daft's own decoder gives slightly other pixels, and so masks.
    @daft.method.batch(return_dtype=daft.DataType.list(ROW), batch_size=BATCH)
    def label(self, paths: daft.Series, data: daft.Series) -> list[list[dict[str, object]]]:
        """Label a batch."""
        files = paths.to_pylist()
        rows = self._labeler.label(files, [Image.open(io.BytesIO(one)) for one in data.to_pylist()])
        return [[row for row in rows if row["file"] == Path(file).name] for file in files]


def main(folder: str, output: str) -> None:
    path = daft.col("path")
    (
        daft.from_pydict({"path": files_in(folder)})
        .with_column("data", path.download())
        .select(LabelBatch(output).label(path, daft.col("data")).alias("mask"))
        .explode(daft.col("mask"))
        .select(*(daft.col("mask")[name].alias(name) for name in ROW.fields))
        .write_parquet(str(Path(output, "masks")))
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
