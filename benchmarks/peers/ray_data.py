"""Ray Data: `read_images`, `map_batches` with two actors, `write_parquet`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from benchmarks.peers.job import BATCH, ROOT, WORKERS, Labeler


class LabelBatch:
    """What each actor holds."""

    def __init__(self, output: str) -> None:
        self._labeler = Labeler(output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Label a batch."""
        rows = self._labeler.label(batch["path"], [Image.fromarray(pixels) for pixels in batch["image"]])
        columns = ("file", "category", "score", "height", "width", "counts")
        return {name: [row[name] for row in rows] for name in columns}


def main(folder: str, output: str) -> None:
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    (
        ray.data.read_images(folder, mode="RGB", include_paths=True)
        .map_batches(
            LabelBatch,
            fn_constructor_args=(output,),
            batch_size=BATCH,
            num_cpus=0.5,  # two actors that hold all of two cores would leave the reading tasks none
            compute=ray.data.ActorPoolStrategy(size=WORKERS),
            udf_modifying_row_count=True,
        )
        .write_parquet(str(Path(output, "masks")))
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
