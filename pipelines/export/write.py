"""Export an output to another tool's format, atomically. The formats themselves are in export/formats/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import SourceError, StorageError
from pipelines.export.choice import Choice, Progress
from pipelines.export.formats import coco, cvat, label_studio, panoptic, yolo
from pipelines.export.selection import Selection, open_selection
from pipelines.export.target import check_target
from pipelines.layout import EXPORT_MARK
from pipelines.query.files import query_errors
from pipelines.storage.local_files import publish, temporary_beside
from pipelines.storage.store import Store

__all__ = ["FORMATS", "Choice", "Export", "export_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a format is written.

    Attributes:
        write: fills a folder, and returns notes for the user.
        single_file: the file of the folder that can be used alone; None if none can.
        of_maps: whether the format shows maps, in which masks do not overlap.
    """

    write: Callable[[Selection, Path, Progress], list[str]]
    single_file: str | None = None
    of_maps: bool = False


FORMATS: Mapping[str, Format] = {
    "coco": Format(write=coco.write_coco, single_file=f"{coco.FILE}.json"),
    "yolo": Format(write=yolo.write_yolo),
    "panoptic": Format(write=panoptic.write_panoptic, of_maps=True),
    "label-studio": Format(write=label_studio.write_label_studio, single_file=f"{label_studio.FILE}.json"),
    "cvat": Format(write=cvat.write_cvat, single_file=f"{cvat.FILE}.xml"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of an export.

    Attributes:
        path: the new file or folder.
        num_images, num_masks: counts by split; under one empty name if images are not split.
        num_categories: number of categories.
        num_quarantined: images left out because they could not be labelled.
        num_partly_asked: images that were never asked about some of the categories.
        left_out: number of masks of other tasks, by task.
        notes: notes for the user.
    """

    path: Path
    num_images: Mapping[str, int]
    num_masks: Mapping[str, int]
    num_categories: int
    num_quarantined: int
    num_partly_asked: int
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def _unheard(_done: int, _total: int) -> None: ...


def export_output(
    store: Store, target: str, format_name: str, choice: Choice, *, on_masks: Callable[[int, int], None] = _unheard
) -> Export:
    """Export an output.

    The export is written to a temporary folder beside the target and renamed once complete. Quarantined images are left
    out.

    Args:
        store: the output; it is only read.
        target: local path that does not exist yet. If it has the extension of the format's single file (``.json``,
            ``.xml``) that file is written, otherwise a folder.
        format_name: one of FORMATS.
        choice: what is exported.
        on_masks: called with the number of masks written so far and their total.

    Raises:
        SourceError: unknown format, an invalid condition, or nothing fits the choice; nothing is written.
        StorageError: the target exists or cannot be written, or the output cannot be read; nothing is left behind.
    """
    form, path = _format(format_name, choice), check_target(target, store)
    alone = form.single_file if path.suffix and form.single_file and form.single_file.endswith(path.suffix) else None
    if alone and choice.splits.shares:
        raise SourceError(f"{path.name} is one file, but each split has its own; name a folder")
    with query_errors(store), temporary_beside(path) as place:
        selection = open_selection(store, choice, of_maps=form.of_maps, folder=place)
        whole = place / "whole"
        whole.mkdir()
        try:
            (whole / EXPORT_MARK).touch()
            notes = form.write(selection, whole, _counting(sum(selection.num_masks.values()), on_masks))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
        finally:
            selection.database.close()
        publish(whole / alone if alone else whole, path)
    return Export(
        path=path,
        num_images=selection.num_images,
        num_masks=selection.num_masks,
        num_categories=len(selection.categories),
        num_quarantined=selection.num_quarantined,
        num_partly_asked=selection.num_partly_asked,
        left_out=selection.left_out,
        notes=tuple(notes),
    )


def _format(name: str, choice: Choice) -> Format:
    if name not in FORMATS:
        raise SourceError(f"format {name!r} is none of {', '.join(FORMATS)}")
    if choice.copy_images and name != "yolo":
        raise SourceError(f"only yolo takes copies of the images; {name} names them by id and URI")
    return FORMATS[name]


def _counting(total: int, on_masks: Callable[[int, int], None]) -> Progress:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_masks(done, total)

    return count
