"""Export an output to another tool's format, atomically. The formats themselves are in export/formats/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipelines.errors import SourceError, StorageError, some_of
from pipelines.export.choice import Choice, Progress
from pipelines.export.formats import coco, cvat, label_studio, panoptic, yolo
from pipelines.export.selection import Selection, open_selection
from pipelines.layout import EXPORT_MARK
from pipelines.query.files import query_errors
from pipelines.storage.store import Store
from pipelines.storage.targets import open_target

__all__ = ["FORMATS", "Choice", "Export", "export_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a format is written.

    Attributes:
        write: fills a folder, and returns notes for the user.
        names: patterns of the names at the top of that folder.
        single_file: the file of the folder that can be used alone; None if none can.
        of_maps: whether the format shows maps, in which masks do not overlap.
    """

    write: Callable[[Selection, Path, Progress], list[str]]
    names: tuple[str, ...]
    single_file: str | None = None
    of_maps: bool = False


FORMATS: Mapping[str, Format] = {
    "coco": Format(write=coco.write_coco, names=("instances*.json",), single_file=f"{coco.FILE}.json"),
    "yolo": Format(write=yolo.write_yolo, names=("labels", "images", "*.yaml", "images*.csv")),
    "panoptic": Format(write=panoptic.write_panoptic, names=("panoptic*",), of_maps=True),
    "label-studio": Format(
        write=label_studio.write_label_studio,
        names=("tasks*.json", "label_config.xml"),
        single_file=f"{label_studio.FILE}.json",
    ),
    "cvat": Format(write=cvat.write_cvat, names=("annotations*.xml", "labels*"), single_file=f"{cvat.FILE}.xml"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of an export.

    Attributes:
        path: the new file or folder, or its URI.
        num_images, num_masks: counts by split; under one empty name if images are not split.
        num_categories: number of categories.
        num_quarantined: images left out because they could not be labeled.
        num_forgotten: images left out because they were forgotten.
        num_unasked: images left out because nothing of what is exported was asked of them.
        num_partly_asked: images that were never asked about some of the categories.
        left_out: number of masks of other tasks, by task.
        notes: notes for the user.
    """

    path: str
    num_images: Mapping[str, int]
    num_masks: Mapping[str, int]
    num_categories: int
    num_quarantined: int
    num_forgotten: int
    num_unasked: int
    num_partly_asked: int
    left_out: Mapping[str, int]
    notes: tuple[str, ...]


def export_output(
    store: Store,
    target: str,
    format_name: str,
    choice: Choice,
    *,
    overwrite: bool = False,
    on_masks: Callable[[int, int], None] = lambda *_: None,
) -> Export:
    """Export an output.

    The export is written to a temporary folder, beside a local target, and gets its name once complete. Quarantined
    images are left out.

    Args:
        store: the output; it is only read.
        target: path or URI of a new file or folder. If it has the extension of the format's single file (``.json``,
            ``.xml``) that file is written, otherwise a folder; one with the extension of other files is refused.
        format_name: one of FORMATS.
        choice: what is exported.
        overwrite: whether to replace a file, or an earlier export's folder.
        on_masks: called with the number of masks written so far and their total.

    Raises:
        SourceError: unknown format, an invalid condition, or nothing fits the choice; nothing is written.
        StorageError: the target exists or cannot be written, or the output cannot be read; nothing is left behind.
    """
    form = _format(format_name, choice)
    suffixes = (PurePosixPath(form.single_file).suffix,) if form.single_file else ()
    path = open_target(
        target,
        overwrite=overwrite,
        replaces=(*form.names, EXPORT_MARK),
        output=store.uri,
        suffixes=suffixes,
        what=f"{format_name} is written as {' or '.join([*(f'one {s} file' for s in suffixes), 'a folder'])}",
    )
    # A link into this machine's disks is nothing in an object store.
    choice = replace(choice, link_images=path.is_local)
    alone = form.single_file if path.suffix.lower() in suffixes and not target.endswith("/") else None
    if alone and choice.splits.shares:
        raise SourceError(f"{path.name} is one file, but each split has its own; name a folder")
    with query_errors(store), path.place() as place:
        selection = open_selection(store, choice, of_maps=form.of_maps, folder=place)
        whole = place / "whole"
        whole.mkdir()
        try:
            (whole / EXPORT_MARK).touch()
            notes = form.write(selection, whole, _counting(sum(selection.num_masks.values()), on_masks))
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{path.uri} cannot be written: {error}") from error
        finally:
            selection.database.close()
        path.publish(whole / alone if alone else whole)
    withheld = selection.withheld
    return Export(
        path=path.uri,
        num_images={name: n - sum(split == name for split, _ in withheld) for name, n in selection.num_images.items()},
        num_masks={
            name: n - sum(m for split, m in withheld if split == name) for name, n in selection.num_masks.items()
        },
        num_categories=len(selection.categories),
        num_quarantined=selection.num_quarantined,
        num_forgotten=selection.num_forgotten,
        num_unasked=selection.num_unasked,
        num_partly_asked=selection.num_partly_asked,
        left_out=selection.left_out,
        notes=(*notes, *_unheld(selection)),
    )


def _unheld(selection: Selection) -> list[str]:
    """Tell which of the categories that were asked for have no mask: a misspelt one, or one cut at its comma."""
    names = [category.name for category in selection.categories if not category.num_masks]
    if not names:
        return []
    return [f"{len(names):,} of --categories have no mask: {some_of(names)} (a name with a comma is put in quotes)"]


def _format(name: str, choice: Choice) -> Format:
    if name not in FORMATS:
        raise SourceError(f"format {name!r} is none of {', '.join(FORMATS)}")
    if choice.copy_images and name != "yolo":
        raise SourceError(f"only yolo takes copies of the images; {name} names them by id and URI")
    if choice.polygons and name != "coco":
        raise SourceError(f"only coco has masks as polygons on request; {name} has one way to write them")
    return FORMATS[name]


def _counting(total: int, on_masks: Callable[[int, int], None]) -> Progress:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_masks(done, total)

    return count
