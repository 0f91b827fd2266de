"""Hold an edited file against an output: which of its images are answered, known, not looked at, or cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import SourceError, some_texts
from pipelines.importing.answers import Answer, UntoldError, answer
from pipelines.importing.edited import EditedFile, EditedImage
from pipelines.importing.held import HeldImage, read_held, some_ids
from pipelines.importing.names import Names
from pipelines.planning.erasures import Forgotten
from pipelines.query.files import query_errors
from pipelines.redaction import counted, quoted, shown_name
from pipelines.storage.store import Store

_MAX_LEFT_OUT_SHARE = 0.5


@dataclass(slots=True, kw_only=True)
class ImportDraft:
    """What a file comes to in an output.

    Attributes:
        store: the output.
        uri: of the file.
        run_id: of the import.
        names: of the output.
        forgotten: images that were forgotten in it.
        is_reviewed, unchanged_iou: see imports.ImportChoice.
        answers: by image_id.
        num_unreviewed: images that nobody has looked at, as far as is known.
        num_known: images of which the output holds all that the file says.
        left_out: a row for each image that cannot be used, in the form of a rejected prompt, which an erasure knows how
            to forget.
    """

    store: Store
    uri: str
    run_id: str
    names: Names
    forgotten: Forgotten
    is_reviewed: bool = False
    unchanged_iou: float = 1.0
    answers: dict[str, Answer] = field(default_factory=dict)
    num_unreviewed: int = 0
    num_known: int = 0
    left_out: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self, edited: EditedFile, planned: frozenset[str] | None = None) -> None:
        """Hold the images of the file against the output.

        Args:
            edited: the file.
            planned: ids of the images that an earlier call has planned and not committed: these are answered, whatever
                has become of the output meanwhile, and no others.

        Raises:
            SourceError: it is of another output, does not tell what was deleted, or too much of it cannot be used.
            StorageError: the output cannot be read.
        """
        with query_errors(self.store):
            held = read_held(self.store, [image.image_id for image in edited.images], self.run_id)
        if planned is None:
            self._check_output(edited, held)
        self.names.know(mask.prompt.category_name for image in held.values() for mask in image.masks)
        self.num_unreviewed = edited.num_unreviewed
        labels, untold = frozenset(map(self.names.name_of, edited.names)), dict[str, int]()
        for number, image in enumerate(edited.images, start=1):
            if planned is not None and image.image_id not in planned:
                continue
            if reason := self._problem(image, held.get(image.image_id)):
                name = shown_name(image.image_id)
                self.left_out.append({"row": number, "prompt_id": "", "image": name, "reason": reason})
                continue
            try:
                self._answer(image, held[image.image_id], labels, is_planned=planned is not None)
            except UntoldError as error:
                untold[image.image_id] = error.number
        self._check_told(untold)
        if planned is None:  # else the run is there, and ends with what is left of it
            self._check_left_out(len(edited.images))

    def _answer(self, image: EditedImage, held: HeldImage, labels: frozenset[str], *, is_planned: bool) -> None:
        if is_planned and image.shown is None:
            image = replace(image, shown=frozenset())  # all that is new since was not in the file
        found = answer(image, held, self.names, run_id=self.run_id, labels=labels, unchanged_iou=self.unchanged_iou)
        if not (is_planned or found.is_changed or self.is_reviewed or image.is_reviewed):
            self.num_unreviewed += 1
        elif not (is_planned or found.is_news):
            self.num_known += 1
        else:
            self.answers[image.image_id] = found

    def _problem(self, image: EditedImage, held: HeldImage | None) -> str:
        """Return why nothing of an image can be used; empty if it can."""
        if held is None:
            return "was forgotten on request" if image.image_id in self.forgotten else "is no image of the output"
        if not held.is_usable:
            return f"was not labeled ({held.row['status']}): there is no answer to correct"
        if image.size_hw not in (None, held.size_hw):
            (height, width), known = image.size_hw or (0, 0), held.size_hw or (0, 0)
            return f"is {width} x {height} pixels in the file, and {known[1]} x {known[0]} in the output"
        ids = {mask.annotation_id for mask in image.masks} | (image.shown or set())
        if ids & held.outdated:
            return "has changed since it was exported: its masks are those of another picture"
        return image.problem or ("a mask of it has no name" if not all(one.name.strip() for one in image.masks) else "")

    def _check_output(self, edited: EditedFile, held: Mapping[str, HeldImage]) -> None:
        """Refuse a file that is about another output.

        Raises:
            SourceError: none of its images, or none of its masks' ids, is of this one.
        """
        if not edited.images:
            raise SourceError(f"{self.uri}: it holds no image. Nothing was imported")
        if not held:
            theirs = some_texts(quoted(image.image_id) for image in edited.images)
            ours = some_texts(map(quoted, some_ids(self.store)))
            raise SourceError(
                f"{self.uri}: none of its {counted(len(edited.images), 'image')} is in {self.store.uri}: the file "
                f"has {theirs}; an image_id here looks like {ours}. Nothing was imported"
            )
        ids = {mask.annotation_id for image in edited.images for mask in image.masks if _is_id(mask.annotation_id)}
        known = {name for image in held.values() for name in image.earlier}
        if ids and not ids & known:
            raise SourceError(
                f"{self.uri}: none of the {counted(len(ids), 'annotation_id')} in it is of {self.store.uri}, though "
                "its images are: it was exported from another output. Nothing was imported"
            )

    def _check_told(self, untold: Mapping[str, int]) -> None:
        if untold:
            total = sum(untold.values())
            raise SourceError(
                f"{self.uri}: {counted(total, 'mask of the output is', 'masks of the output are')} not in it, of "
                f"{counted(len(untold), 'image')} ({some_texts(map(quoted, untold))}), and it does not tell whether "
                f"{'it was' if total == 1 else 'they were'} deleted or never exported: give the file as it was "
                "exported, too (--exported FILE). Nothing was imported"
            )

    def _check_left_out(self, num_images: int) -> None:
        if len(self.left_out) > _MAX_LEFT_OUT_SHARE * num_images:
            told = some_texts(f"{one['image']}: {one['reason']}" for one in self.left_out)
            raise SourceError(
                f"{self.uri}: {len(self.left_out):,} of its {counted(num_images, 'image')} cannot be used: {told}. "
                "Nothing was imported"
            )


def _is_id(name: str | None) -> bool:
    """Return whether an id looks like one of a table: tools give ids of their own to what is drawn in them."""
    return name is not None and len(name) == 20 and not set(name) - set("0123456789abcdef")
