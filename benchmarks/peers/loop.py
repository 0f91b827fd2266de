"""A plain loop that writes a COCO file at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from benchmarks.peers.job import BATCH, Labeler, files_in, names


def main(folder: str, output: str) -> None:
    labeler, files, rows = Labeler(output), files_in(folder), []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        rows += labeler.label(batch, [Image.open(file) for file in batch])
    numbers = {Path(file).name: number for number, file in enumerate(files)}
    categories = {name: number for number, name in enumerate(names())}
    document = {
        "images": [{"id": number, "file_name": file} for file, number in numbers.items()],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[row["file"]],
                "category_id": categories[row["category"]],
                "score": row["score"],
                "segmentation": {"size": [row["height"], row["width"]], "counts": row["counts"]},
            }
            for number, row in enumerate(rows)
        ],
    }
    Path(output, "coco.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
