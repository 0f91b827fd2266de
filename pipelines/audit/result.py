"""What a checked sample says of the whole collection: right and missed masks, held against what the person left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines.audit.calibration import Rated
from pipelines.audit.estimates import CheckedCategory, Quality, Share, estimate
from pipelines.audit.record import AuditRecord
from pipelines.errors import SourceError, some_of
from pipelines.evaluation.coco_matching import greedy_pairs
from pipelines.export.formats.cvat import label_names
from pipelines.importing.edited import EditedFile, EditedImage, read_bytes
from pipelines.importing.imports import READERS
from pipelines.masks import rle
from pipelines.redaction import counted, quoted
from pipelines.table.schema import SOURCE_HUMAN
from pipelines.types import Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryResult:
    """The result of one category, or of all.

    Attributes:
        category_name: its name; empty for all together.
        masks: its masks in the output that are audited.
        images: checked images that were asked of it; of all together, checked images.
        checked, right: its masks in them, and those that show an object of it.
        missed: objects of it in them that no mask shows.
        precision, recall: estimates for the whole output.
    """

    category_name: str
    masks: int
    images: int
    checked: int
    right: int
    missed: int
    precision: Share
    recall: Share

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit came to.

    Attributes:
        record: the sample.
        categories: each category.
        whole: all together.
        num_images: images that were checked.
        notes: what the estimates rest on, and what was left out.
        rated: the checked masks that a model has found, by category, for a calibration.
    """

    record: AuditRecord
    categories: tuple[CategoryResult, ...]
    whole: CategoryResult
    num_images: int
    notes: tuple[str, ...]
    rated: Mapping[str, Rated] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        facts = self.record.facts
        return {
            "output": facts.output,
            "task": facts.task,
            "score": facts.score,
            "runs": list(facts.runs),
            "num_images": self.num_images,
            "categories": [one.to_dict() for one in self.categories],
            "all": self.whole.to_dict(),
            "notes": list(self.notes),
        }


def read_result(record: AuditRecord, uri: str, *, iou: float = 0.5, format_name: str = "") -> AuditResult:
    """Hold a file that a person has edited against the sample that it was.

    Args:
        record: of the sample.
        uri: path or URI of the edited file.
        iou: a mask is right if it agrees at least so well with what the person has left there under its name.
        format_name: of the file; by default that in which the sample was written.

    Raises:
        SourceError: the file cannot be used.
    """
    reader = READERS.get(format_name or record.facts.format_name)
    if reader is None:
        raise SourceError(f"format {quoted(format_name)} is none of {', '.join(READERS)}")
    checked = _Checked(record, iou)
    checked.take(reader(read_bytes(uri), uri), uri)
    return checked.result()


class _Checked:
    """Gathers what was checked, image by image."""

    def __init__(self, record: AuditRecord, iou: float) -> None:
        self._record, self._iou = record, iou
        self._names = {label: name for name, label in label_names(list(record.facts.strata)).items()}
        self._of_category = {name: _Columns() for name in record.facts.strata}
        self._num_images = 0
        self._notes: list[str] = []

    def take(self, edited: EditedFile, uri: str) -> None:
        """Hold the images of a file against the sample.

        Raises:
            SourceError: none of its images was drawn, or none can be used.
        """
        images = {image.image_id: image for image in edited.images}
        masks, unusable, unread = self._record.masks_by_image(), dict[str, str](), 0
        num_drawn = self._record.images.num_rows
        for row in self._record.image_rows():
            image = images.pop(row["image_id"], None)
            if image is None:
                unread += 1
            elif problem := _problem(image, row):
                unusable[row["image_id"]] = problem
            else:
                self._add(row, masks.get(row["image_id"], []), image)
        if not self._num_images:
            told = f"none of the {counted(num_drawn, 'image')} of the sample is in it" if not unusable else (
                f"none of its images can be used, e.g. {next(iter(unusable.values()))}"
            )  # fmt: skip
            raise SourceError(f"{uri}: {told}; give the file that was made of this sample")
        if unread:
            self._notes.append(
                f"{unread:,} of {counted(num_drawn, 'drawn image')} are not in the file, or not submitted: taken to be "
                "like the others of their bands"
            )
        for name, problem in itertools.islice(unusable.items(), 3):
            self._notes.append(f"left out: {quoted(name)}: {problem}")
        if len(unusable) > 3:
            self._notes.append(f"left out: {len(unusable) - 3:,} more")
        if images:
            were = counted(len(images), "image of the file was", "images of the file were")
            self._notes.append(f"{were} not drawn: not counted")
        others = {mask.name for image in edited.images for mask in image.masks} - self._names.keys()
        if others:
            self._notes.append(f"masks of names that are not audited do not count: {some_of(sorted(others))}")

    def _add(self, row: Mapping[str, Any], found: Sequence[Mapping[str, Any]], image: EditedImage) -> None:
        number, self._num_images = self._num_images, self._num_images + 1
        left: dict[str, list[Rle]] = {}
        for drawn in image.masks:
            left.setdefault(self._names.get(drawn.name, ""), []).append(drawn.segmentation)
        for one in row["bands"]:
            name = one["category_name"]
            masks, true = [mask for mask in found if mask["category_name"] == name], left.get(name, [])
            ious = rle.iou([Rle.from_coco(mask["segmentation"]) for mask in masks], true)
            pairs = greedy_pairs(ious, self._iou)
            is_right = {place for place, _ in pairs}
            columns = self._of_category[name]
            for place, mask in enumerate(masks):
                columns.masks.append((len(columns.images), mask["band"], place in is_right))
                if mask["source"] != SOURCE_HUMAN:
                    columns.rated.append((mask["score"], place in is_right, 1 / row["probability"]))
            columns.images.append((number, row["probability"], one["band"], len(true) - len(pairs)))

    def result(self) -> AuditResult:
        """Return what it comes to."""
        strata = self._record.facts.strata
        names = [name for name in strata if self._of_category[name].images]
        if unseen := [name for name in strata if name not in names]:
            self._notes.append(f"no image was checked that was asked of {some_of(unseen)}")
        checked = [self._of_category[name].checked(strata[name]) for name in names]
        qualities, whole = estimate(checked, self._num_images)
        categories = tuple(
            _result(name, one, self._of_category[name], quality)
            for name, one, quality in zip(names, checked, qualities, strict=True)
        )
        sums = {what: sum(getattr(one, what) for one in categories) for what in ("masks", "checked", "right", "missed")}
        return AuditResult(
            record=self._record,
            categories=categories,
            whole=CategoryResult(
                category_name="", images=self._num_images, precision=whole.precision, recall=whole.recall, **sums
            ),
            num_images=self._num_images,
            notes=(*self._notes, *self._unseen_bands(names)),
            rated={name: self._of_category[name].rates() for name in names},
        )

    def _unseen_bands(self, names: Sequence[str]) -> Iterator[str]:
        for name in names:
            seen = {band for _, _, band, _ in self._of_category[name].images}
            stratum = self._record.facts.strata[name][0]
            if stratum.images and 0 not in seen:
                yield (
                    f"{quoted(name)}: none of the {counted(stratum.images, 'image')} without a mask of it was checked: "
                    "what is missed there is taken to be as in others"
                )


@dataclass(slots=True)
class _Columns:
    """The checked images and masks of a category, row by row; see CheckedCategory and Rated."""

    images: list[tuple[int, float, int, int]] = field(default_factory=list)
    masks: list[tuple[int, int, bool]] = field(default_factory=list)
    rated: list[tuple[float, bool, float]] = field(default_factory=list)

    def checked(self, strata: Sequence[Any]) -> CheckedCategory:
        numbers, probabilities, bands, missed = zip(*self.images, strict=True)
        of_images, mask_bands, right = zip(*self.masks, strict=True) if self.masks else ((), (), ())
        return CheckedCategory(
            images=np.array(numbers, np.int64),
            probabilities=np.array(probabilities, np.float64),
            bands=np.array(bands, np.int64),
            missed=np.array(missed, np.int64),
            of_images=np.array(of_images, np.int64),
            mask_bands=np.array(mask_bands, np.int64),
            right=np.array(right, np.bool_),
            image_totals=np.array([one.images for one in strata], np.int64),
            mask_totals=np.array([one.masks for one in strata], np.int64),
        )

    def rates(self) -> Rated:
        scores, right, weights = zip(*self.rated, strict=True) if self.rated else ((), (), ())
        return Rated(np.array(scores, np.float64), np.array(right, np.bool_), np.array(weights, np.float64))


def _result(name: str, one: CheckedCategory, columns: _Columns, quality: Quality) -> CategoryResult:
    return CategoryResult(
        category_name=name,
        masks=int(one.mask_totals.sum()),
        images=len(columns.images),
        checked=len(columns.masks),
        right=int(one.right.sum()),
        missed=int(one.missed.sum()),
        precision=quality.precision,
        recall=quality.recall,
    )


def _problem(image: EditedImage, row: Mapping[str, Any]) -> str:
    if image.size_hw is not None and image.size_hw != (row["height"], row["width"]):
        height, width = image.size_hw
        return f"is {width} x {height} pixels in the file, and {row['width']} x {row['height']} in the sample"
    return image.problem
