"""The content of a shard's commit object, and how it is serialized and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pipelines.errors import StorageError
from pipelines.layout import COMMIT_FORMAT, KINDS, data_name
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.types import ShardReceipt

_SCHEMA_VERSION, _NUM_NOTED = "schema_version", "images_with_pixel_notes"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One committed Parquet file: name relative to the output, size, SHA-256 and rows."""

    name: str
    num_bytes: int
    sha256: str
    rows: int

    @classmethod
    def of(cls, name: str, data: bytes, rows: int) -> Self:
        """Describe a file of these bytes."""
        return cls(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommit:
    """The content of a shard's commit object. Fields that ShardReceipt has too mean the same.

    Attributes:
        repair: 0 for a shard's first commit, K for its K-th repair, made because files of the commit before were lost
            or damaged.
        schema_version: that of the data files; None in commits of earlier versions, which do not state it.
        num_noted: images with pixel_notes; 0 in commits of earlier versions, which do not count them.
    """

    run_id: str
    shard_id: str
    attempt: str
    annotations: DataFile
    images: DataFile
    status_counts: Mapping[str, int]
    reason_counts: Mapping[str, int]
    rejected_prompts: tuple[Mapping[str, Any], ...] = ()
    elapsed_s: float = 0.0
    model_s: float = 0.0
    committed_at: float = 0.0
    predictor: Mapping[str, str] = field(default_factory=dict)
    repair: int = 0
    schema_version: int | None = None
    num_noted: int = 0

    def files(self) -> tuple[DataFile, DataFile]:
        """Return both data files."""
        return self.annotations, self.images

    def receipt(self, *, committed_here: bool) -> ShardReceipt:
        """Return the counts that travel back to the driver."""
        return ShardReceipt(
            shard_id=self.shard_id,
            attempt=self.attempt,
            status_counts=dict(self.status_counts),
            reason_counts=dict(self.reason_counts),
            num_annotations=self.annotations.rows,
            num_rejected_prompts=len(self.rejected_prompts),
            elapsed_s=self.elapsed_s,
            model_s=self.model_s,
            committed_here=committed_here,
        )

    def to_json(self) -> bytes:
        """Serialize the commit. The bytes contain the attempt, so they are unique to their writer, as create needs."""
        document = {name: getattr(self, name) for name in self.__slots__ if name not in ("schema_version", "num_noted")}
        if not self.repair:
            del document["repair"]  # earlier versions refuse fields they do not know, and have to read first commits
        for kind in KINDS:
            file: DataFile = document[kind]
            document[kind] = {name: getattr(file, name) for name in file.__slots__}
        # Put among the predictor's facts, the one mapping in which earlier versions accept unknown keys.
        added = {} if self.schema_version is None else {_SCHEMA_VERSION: str(self.schema_version)}
        added |= {_NUM_NOTED: str(self.num_noted)} if self.num_noted else {}
        document["predictor"] = {**self.predictor, **added, **BLANK}
        return seal({"format": COMMIT_FORMAT, **document})

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> ShardCommit:
        """Read a commit from its parsed JSON.

        Raises:
            StorageError: a newer version wrote it.
            AttributeError, KeyError, TypeError, ValueError: the document is not a valid commit.
        """
        if (found := document.pop("format")) > COMMIT_FORMAT:
            raise StorageError(f"commit format {found} was written by a newer version; upgrade")
        files = {kind: DataFile(**document.pop(kind)) for kind in KINDS}
        rejected = tuple(document.pop("rejected_prompts"))
        facts = {name: value for name, value in document.pop("predictor").items() if name not in BLANK}
        version, num_noted = facts.pop(_SCHEMA_VERSION, None), facts.pop(_NUM_NOTED, 0)
        commit = cls(
            annotations=files["annotations"],
            images=files["images"],
            rejected_prompts=rejected,
            predictor=facts,
            schema_version=None if version is None else int(version),
            num_noted=int(num_noted),
            **document,
        )
        _check_types(commit)
        return commit


def _check_types(commit: ShardCommit) -> None:
    """Check the types of a commit's values, which dataclasses do not, and the names of its files.

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.
    """
    counts: list[object] = [*commit.status_counts.values(), *commit.reason_counts.values()]
    for kind, file in zip(KINDS, commit.files(), strict=True):
        counts += [file.num_bytes, file.rows]
        # A commit may name its own files only: a copied or damaged one must not lead to those of another shard.
        if file.name != data_name(kind, commit.run_id, commit.shard_id, commit.attempt, commit.repair):
            raise ValueError(f"{file.name} is no file of its")
        if not isinstance(file.sha256, str):
            raise TypeError(f"the SHA-256 of {file.name} is {file.sha256!r}")
    if wrong := [count for count in counts if type(count) is not int or count < 0]:
        raise TypeError(f"{wrong[0]!r} is no count")
    for seconds in (commit.elapsed_s, commit.model_s, commit.committed_at):
        if type(seconds) not in (int, float):
            raise TypeError(f"{seconds!r} is no number of seconds")
    if not all({"row", "prompt_id", "image", "reason"} <= row.keys() for row in commit.rejected_prompts):
        raise ValueError("a rejected prompt is not told of whole")
