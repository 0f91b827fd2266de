"""Write YOLO segmentation: a text file of polygons for each image, the images beside them, and data.yaml."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Self

import yaml

from pipelines.errors import StorageError
from pipelines.export.choice import ExportImage, Progress
from pipelines.export.formats.file_names import new_file
from pipelines.export.formats.polygons import opencv, outline
from pipelines.export.selection import Selection
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage.filesystems import open_filesystem, protocol_of
from pipelines.types import ImageRef, Reason

FILE = "data.yaml"
MISSING = "images_to_fetch.csv"

_ONLY_SPLIT = "train"
# YOLO finds an image's labels by replacing the last folder named "images" in its path with "labels".
_RESERVED = ("images", "labels")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
_COPIERS = 16
_MAX_IMAGE_BYTES, _COPY_TIMEOUT_S = 2**31, 300.0


def write_yolo(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``labels/<split>/*.txt``, ``images/<split>/*`` and ``data.yaml``; unsplit images are all ``train``.

    A line holds the category's position and the polygon as x, y pairs in fractions of width and height. Local images
    become symbolic links; with ``choice.copy_images`` all images are copied. Remote images that are not copied are
    listed in ``images_to_fetch.csv``, each with the file name that it needs.

    Raises:
        StorageError: an image cannot be copied.
        SourceError: OpenCV is not installed.
    """
    opencv()  # fails now if it is not installed, not after the first files
    names = {split: split or _ONLY_SPLIT for split in selection.splits}
    (folder / FILE).write_text(_description(selection, list(names.values())), encoding="utf-8")
    with _Pictures(folder, copies=selection.choice.copy_images) as pictures:
        for split, name in names.items():
            labels = folder / "labels" / name
            labels.mkdir(parents=True)
            (folder / "images" / name).mkdir(parents=True)
            for image in selection.images(split):
                path = new_file(labels, image.image_id, ".txt", reserved=_RESERVED)
                path.write_text("".join(_lines(image)), encoding="ascii")
                pictures.add(image, folder / "images" / name / path.relative_to(labels), path)
                on_masks(len(image.masks))
    notes = []
    if pictures.num_gone:
        notes.append(f"{pictures.num_gone:,} images are not there any more: left out, with their labels")
    if pictures.num_missing:
        notes.append(
            f"{pictures.num_missing:,} images are not files of this machine: {MISSING} says which file each must "
            "become; --copy-images copies them"
        )
    return notes


def _description(selection: Selection, splits: list[str]) -> str:
    places = {split: f"images/{split}" for split in splits}
    places = {"train": places.get("train", places[splits[0]]), **places}
    places.setdefault("val", places["train"])  # YOLO's trainer requires both
    names = {category.position: category.name for category in selection.categories}
    text: str = yaml.safe_dump({**places, "names": names}, sort_keys=False, allow_unicode=True)
    return text


def _lines(image: ExportImage) -> Iterator[str]:
    for mask in image.masks:
        pixels = mask.pixels()
        if not pixels.any():
            continue
        # The centre of a pixel: truncated to whole pixels when it is drawn again, it is the same pixel.
        points = (outline(pixels) + 0.5) / (pixels.shape[1], pixels.shape[0])
        # Six decimals are less than a tenth of a pixel even on the longest side that is decoded.
        yield f"{mask.category} {' '.join(f'{value:.6f}' for value in points.reshape(-1).tolist())}\n"


class _Pictures:
    """The image files of an export, as links, copies made by threads, or entries of a list. A context manager."""

    def __init__(self, folder: Path, *, copies: bool) -> None:
        self._folder, self._copies = folder, copies
        self._threads = ThreadPoolExecutor(_COPIERS)
        self._running: deque[Future[bool]] = deque()
        self._file: IO[str] | None = None
        self.num_missing = self.num_gone = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=error[0] is not None)
        if self._file is not None:
            self._file.close()
        if error[0] is None:
            self._wait(0)

    def add(self, image: ExportImage, path: Path, label: Path) -> None:
        """Place an image at the path of its label file, with the image's own suffix."""
        path = path.with_suffix(_suffix(image))
        local = _local_path(image.uri)
        if self._copies or local:
            path.parent.mkdir(parents=True, exist_ok=True)
        if self._copies:
            self._running.append(self._threads.submit(_copy, image, path, label))
            # Bounds the queue, whose entries hold images with their masks, and raises the error of a copy soon.
            self._wait(2 * _COPIERS)
        elif local:
            path.symlink_to(local)
        else:
            self._list(path.relative_to(self._folder), image.uri)

    def _wait(self, most: int) -> None:
        while len(self._running) > most:
            self.num_gone += not self._running.popleft().result()

    def _list(self, name: Path, uri: str) -> None:
        if self._file is None:
            self._file = (self._folder / MISSING).open("x", encoding="utf-8", newline="")
            csv.writer(self._file).writerow(("file", "uri"))
        csv.writer(self._file).writerow((name.as_posix(), uri))
        self.num_missing += 1


def _suffix(image: ExportImage) -> str:
    for name in (image.image_id, image.uri):
        if _SUFFIX.fullmatch(suffix := PurePosixPath(name.rpartition("/")[2]).suffix):
            return suffix
    return ".jpg"


def _local_path(uri: str) -> Path | None:
    """Return the local file that a URI names; None if there is none."""
    try:
        if protocol_of(uri, allow_http=True) != "file":
            return None
        path = Path(open_filesystem(uri)[1])
        return path if path.is_file() else None
    except (StorageError, ValueError, OSError):
        return None


def _copy(image: ExportImage, path: Path, label: Path) -> bool:
    """Copy an image; return False, and remove its label file, if it is not there any more."""
    ref = ImageRef(image_id=image.image_id, uri=image.uri)
    try:
        data = fetch(ref, options=None, max_bytes=_MAX_IMAGE_BYTES, timeout_s=_COPY_TIMEOUT_S, allow_http=True)
    except FetchError as error:
        if error.reason is Reason.NOT_FOUND:
            label.unlink()
            return False
        raise StorageError(f"{image.image_id} cannot be copied: {error}") from error
    with path.open("xb") as file:
        file.write(data)
    return True
