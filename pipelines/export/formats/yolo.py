"""Write YOLO segmentation: a text file of polygons for each image, the images beside them, and data.yaml."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Self

import yaml
from PIL import Image as PILImage

from pipelines.errors import StorageError
from pipelines.export.choice import Choice, ExportImage, Progress
from pipelines.export.formats.file_names import FileNames
from pipelines.export.formats.polygons import Loss, opencv, outline, redrawn_iou
from pipelines.export.selection import Selection
from pipelines.redaction import counted
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.locations import split_location
from pipelines.storage.filesystems import open_filesystem, protocol_of
from pipelines.types import ImageRef, Reason

FILE = "data.yaml"
KNOWN, MISSING = "images.csv", "images_to_fetch.csv"

_ONLY_SPLIT = "train"
# The suffixes by which Ultralytics knows images; the other readers know some of them.
_READ = frozenset(("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"))
# Other suffixes of the same formats, as Pillow registers them.
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "JPEG2000": ".jp2", "DIB": ".bmp"}
_UNREAD = (".jxl", ".svg", ".dcm")
_COPIERS = 16
_MAX_IMAGE_BYTES, _COPY_TIMEOUT_S = 2**31, 300.0
# A reader that cuts to whole pixels and one that rounds both come back to the pixel whose center was traced.
_INTO_PIXEL = 0.25


def write_yolo(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``labels/<split>/*.txt``, ``images/<split>/*``, ``data.yaml`` and ``images.csv``.

    Unsplit images are all ``train``. A line holds the category's position and the polygon as x, y pairs in fractions of
    width and height. Files lie flat in their folder, as all readers expect; ``images.csv`` tells the image of each.
    Local images become symbolic links; with ``choice.copy_images`` all images are copied. Images that are neither are
    listed in ``images_to_fetch.csv``, each with the file name that it needs. Images that are gone, and those of formats
    that no reader takes (GIF), are left out.

    Raises:
        StorageError: an image cannot be copied.
        SourceError: OpenCV is not installed.
    """
    opencv()  # fails now if it is not installed, not after the first files
    names = {split: split or _ONLY_SPLIT for split in selection.splits}
    splits = list(names.values())
    (folder / FILE).write_text(_description(selection, splits), encoding="utf-8")
    unread, loss = Counter[str](), Loss()
    with _Pictures(folder, selection.choice) as pictures:
        for split, name in names.items():
            labels = folder / "labels" / name
            labels.mkdir(parents=True)
            (folder / "images" / name).mkdir(parents=True)
            files = FileNames(labels, ".txt", is_flat=True)
            for image in selection.images(split):
                on_masks(len(image.masks))
                if (suffix := _suffix(image)) is None:
                    unread[_last_suffix(image.image_id) or _last_suffix(image.uri)] += 1
                    selection.withheld.append((split, len(image.masks)))
                    continue
                path = files.new_file(image.image_id)
                path.write_text("".join(_lines(image, loss)), encoding="ascii")
                pictures.add(image, folder / "images" / name / f"{path.stem}{suffix}", path, split)
    selection.withheld.extend(pictures.gone)
    return list(_notes(splits, unread, pictures, loss))


def _notes(splits: list[str], unread: Counter[str], pictures: _Pictures, loss: Loss) -> Iterator[str]:
    if "val" not in splits:
        same = "train" if "train" in splits else splits[0]
        yield (
            f"no images are kept for validation: val is the same as {same} in {FILE}, and figures of training will "
            "look too good; --split train=0.9,val=0.1 divides them"
        )
    if loss.num_changed:
        yield loss.told("drawn again, for lines join the parts of each to one polygon")
    if unread:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in unread.most_common(5))
        yield (
            f"{counted(unread.total(), 'image is of a format', 'images are of formats')} that "
            f"YOLO's readers do not take, left out: {kinds}"
        )
    if pictures.gone:
        yield (
            f"{counted(len(pictures.gone), 'image is', 'images are')} not there any more: left out, with their labels"
        )
    if pictures.num_missing:
        yield (
            f"{counted(pictures.num_missing, 'image is', 'images are')} not beside the labels: {MISSING} says which "
            "file each must become; "
            "--copy-images copies them"
        )


def _description(selection: Selection, splits: list[str]) -> str:
    places = {split: f"images/{split}" for split in splits}
    places = {"train": places.get("train", places[splits[0]]), **places}
    places.setdefault("val", places["train"])  # YOLO's trainer requires both
    names = {category.position: category.name for category in selection.categories}
    text: str = yaml.safe_dump({**places, "names": names}, sort_keys=False, allow_unicode=True)
    return text


def _lines(image: ExportImage, loss: Loss) -> Iterator[str]:
    for mask in image.masks:
        pixels = mask.pixels()
        if not pixels.any():
            continue
        line = outline(pixels)
        loss.add(redrawn_iou(line, pixels))
        points = (line + _INTO_PIXEL) / (pixels.shape[1], pixels.shape[0])
        # Six decimals are less than a tenth of a pixel even on the longest side that is decoded.
        yield f"{mask.category} {' '.join(f'{value:.6f}' for value in points.reshape(-1).tolist())}\n"


class _Pictures:
    """The image files of an export, as links, copies made by threads, or entries of a list. A context manager.

    Attributes:
        gone: split and number of masks of each image that is not there any more; complete on exit.
    """

    def __init__(self, folder: Path, choice: Choice) -> None:
        self._folder, self._choice = folder, choice
        self._threads = ThreadPoolExecutor(_COPIERS)
        self._running: deque[tuple[Future[bool], ExportImage, str, str]] = deque()
        self._known = _List(folder / KNOWN, ("file", "image_id", "uri"))
        self._missing = _List(folder / MISSING, ("file", "uri"))
        self.gone: list[tuple[str, int]] = []

    @property
    def num_missing(self) -> int:
        """Number of images that are neither linked nor copied."""
        return self._missing.num_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=error[0] is not None)
        try:
            if error[0] is None:
                self._wait(0)
        finally:
            self._known.close()
            self._missing.close()

    def add(self, image: ExportImage, path: Path, label: Path, split: str) -> None:
        """Place an image, whose label file is there, at a path of its own."""
        name = path.relative_to(self._folder).as_posix()
        if self._choice.copy_images:
            self._running.append((self._threads.submit(_copy, image, path, label), image, name, split))
            # Bounds the queue, whose entries hold images with their masks, and raises the error of a copy soon.
            self._wait(2 * _COPIERS)
            return
        local = _local_path(image.uri) if self._choice.link_images else None
        # Where its folder is missing too, the image may be on a disk of another machine.
        if local and not local.exists() and local.parent.is_dir():
            label.unlink()
            self.gone.append((split, len(image.masks)))
            return
        self._known.add(name, image.image_id, image.uri)
        if local and local.is_file():
            path.symlink_to(local)
        else:
            self._missing.add(name, image.uri)

    def _wait(self, most: int) -> None:
        while len(self._running) > most:
            copying, image, name, split = self._running.popleft()
            if copying.result():
                self._known.add(name, image.image_id, image.uri)
            else:
                self.gone.append((split, len(image.masks)))


class _List:
    """A CSV file that is made for its first row."""

    def __init__(self, path: Path, head: Sequence[str]) -> None:
        self._path, self._head = path, head
        self._file: IO[str] | None = None
        self.num_rows = 0

    def add(self, *row: str) -> None:
        """Append a row."""
        if self._file is None:
            self._file = self._path.open("x", encoding="utf-8", newline="")
            csv.writer(self._file).writerow(self._head)
        csv.writer(self._file).writerow(row)
        self.num_rows += 1

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


def _suffix(image: ExportImage) -> str | None:
    """Return the suffix by which readers take an image; None if there is none for its format."""
    for suffix in (_last_suffix(image.image_id), _last_suffix(image.uri)):
        if suffix.lower().lstrip(".") in _READ:
            return suffix
        held = PILImage.registered_extensions().get(suffix.lower())
        if held or suffix.lower() in _UNREAD:
            return _SUFFIX_OF.get(held or "")
    return ".jpg"


def _last_suffix(name: str) -> str:
    return PurePosixPath(name.rpartition("/")[2]).suffix


def _local_path(uri: str) -> Path | None:
    """Return the local file that a URI names, there or not; None if it names none, or a part of one."""
    file, place = split_location(uri)
    try:
        if place is not None or protocol_of(file, allow_http=True) != "file":
            return None
        return Path(open_filesystem(file)[1])
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
