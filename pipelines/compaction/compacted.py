"""Read what a compaction holds, and check it. docs/compaction.md states the protocol.

``_runs/.compacted-000001``, ``_runs/.compacted-000002``, ... are create-only; each names the files of one compaction,
which never change. Nothing depends on them: they are made from what is committed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from pipelines.errors import DamagedError, StorageError
from pipelines.layout import (
    COMPACTED,
    KINDS,
    Kind,
    compacted_file,
    compacted_name,
    compacted_number,
    erasure_name,
    split_compacted_file,
)
from pipelines.storage.checksummed_json import BLANK, misfit, seal
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.file_checks import hash_problem, size_problem
from pipelines.table.schema import SCHEMAS, VERSION_KEY, schema_of
from pipelines.table.shard_commit import DataFile, ShardCommit

FORMAT = 1
_READERS = 4  # each file may be close to 100 MiB
_AGAIN = "`compact` writes it anew"
_AGAIN_WITHOUT = "remove {}, and `compact` writes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactedRun:
    """What a compaction holds of a run.

    Attributes:
        shards, images, annotations: how many committed shards, and rows of each table.
        commits_sha256: digest of the commits of these shards, see ``of``.
    """

    shards: int
    images: int
    annotations: int
    commits_sha256: str

    @classmethod
    def of(cls, commits: Iterable[ShardCommit]) -> CompactedRun:
        """Describe these commits of one run. Any other commit, a repair too, changes the digest."""
        held = list(commits)
        lines = sorted(f"{one.shard_id}\0{file.name}\0{file.sha256}\n" for one in held for file in one.files())
        return cls(
            shards=len(held),
            images=sum(one.images.rows for one in held),
            annotations=sum(one.annotations.rows for one in held),
            commits_sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """A compaction: the rows of all shards that were committed when it was made.

    Attributes:
        number: among those of the output, from 1.
        folder: of its files, relative to the output.
        made_at: ISO 8601.
        files: of each table, in order; at least one.
        runs: what it holds of each run, by run id in the order of planning.
        erasures: how many requests to forget images had come when it was made.
    """

    number: int
    folder: str
    made_at: str
    files: Mapping[Kind, tuple[DataFile, ...]]
    runs: Mapping[str, CompactedRun]
    erasures: int

    @property
    def all_files(self) -> list[DataFile]:
        """The files of both tables."""
        return [file for kind in KINDS for file in self.files[kind]]

    @property
    def num_shards(self) -> int:
        """The number of shards whose rows it holds."""
        return sum(run.shards for run in self.runs.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what `status` tells of it, as JSON values."""
        return {
            **{"number": self.number, "folder": self.folder, "made_at": self.made_at, "shards": self.num_shards},
            **{"files": len(self.all_files), "num_bytes": sum(file.num_bytes for file in self.all_files)},
        }

    def to_json(self) -> bytes:
        """Serialize it. The bytes contain its folder, so they are unique to their writer, as create needs."""
        document = {
            "format": FORMAT,
            **{"number": self.number, "folder": self.folder, "made_at": self.made_at, "erasures": self.erasures},
            "files": {kind: [asdict(file) for file in self.files[kind]] for kind in KINDS},
            "runs": [{"run_id": run_id, **asdict(run)} for run_id, run in self.runs.items()],
        }
        return seal({**document, **BLANK})


def read_compacted(store: Store, number: int) -> Compacted:
    """Read what a compaction says of itself.

    Raises:
        FileNotFoundError: there is none of this number.
        DamagedError: the object tells of no compaction.
        StorageError: it cannot be read, or a newer version wrote it.
    """
    name = compacted_name(number)
    document = store.read_json(name)
    try:
        if (found := document["format"]) > FORMAT:
            raise StorageError(f"{store.uri}/{name}: format {found} was written by a newer version; upgrade")
        compacted = Compacted(
            number=document["number"],
            folder=document["folder"],
            made_at=document["made_at"],
            files={kind: tuple(DataFile(**file) for file in document["files"][kind]) for kind in KINDS},
            runs={one.pop("run_id"): CompactedRun(**one) for one in document["runs"]},
            erasures=document["erasures"],
        )
        for kind in KINDS:
            for place, file in enumerate(compacted.files[kind]):
                split = split_compacted_file(file.name)
                # It may name its own files only: a copied or damaged one must not lead to those of another.
                if split != (compacted.folder, number) or file.name != compacted_file(compacted.folder, kind, place):
                    raise ValueError(f"{file.name} is no file of its")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise DamagedError(f"{store.uri}/{name}: no compaction ({misfit(document, error)})") from error
    return compacted


def compacted_numbers(store: Store) -> list[int]:
    """Return the numbers of an output's compactions, the newest first."""
    listed = (compacted_number(f"_runs/{name}") for name in store.files("_runs"))
    found = [number for number in listed if number is not None]
    # A listing may lag: the next is asked for by name.
    later = itertools.count(max(found, default=0) + 1)
    found += itertools.takewhile(lambda number: store.exists(compacted_name(number)), later)
    return sorted(found, reverse=True)


def newest_compacted(store: Store) -> Compacted | None:
    """Return the newest usable compaction of an output, None if there is none.

    One that is damaged, of another version, or from before images were forgotten is passed over.

    Raises:
        StorageError: the store does not answer.
    """
    for number in compacted_numbers(store):
        with suppress(FileNotFoundError, DamagedError):
            found = read_compacted(store, number)
            if not is_from_before_erasure(store, found) and not list(_size_problems(store, found)):
                return found
    return None


def is_from_before_erasure(store: Store, compacted: Compacted) -> bool:
    """Return whether images were to be forgotten since: it may hold their rows, and is not to be read."""
    return store.exists(erasure_name(compacted.erasures + 1))


def compacted_files(store: Store) -> list[str]:
    """Return the names of all objects of compactions, relative to the output: what names the others first."""
    numbers, files = compacted_numbers(store), {name for name in store.find(COMPACTED) if split_compacted_file(name)}
    for number in numbers:
        with suppress(FileNotFoundError, DamagedError):
            files |= {file.name for file in read_compacted(store, number).all_files}
    return [*map(compacted_name, numbers), *sorted(files)]


def verify_compacted(store: Store, *, deep: bool = True) -> tuple[list[str], list[str]]:
    """Check the newest compaction of an output against itself, and tell what was committed since.

    Args:
        store: the output.
        deep: whether to read every file, and check hashes, schemas and rows. Otherwise sizes are compared.

    Returns:
        Messages for what is wrong, and messages about its age.
    """
    numbers = compacted_numbers(store)
    if not numbers:
        return [], []
    try:
        found = read_compacted(store, numbers[0])
    except FileNotFoundError:  # just removed
        return [], []
    except DamagedError as error:
        return [f"{error}; {_AGAIN}"], []
    name = f"{store.uri}/{compacted_name(found.number)}"
    if is_from_before_erasure(store, found):
        return [], [f"{name} is from before images were forgotten, and not to be read; vacuum removes it"]
    problems = [f"{problem}; {_AGAIN}" for problem in _size_problems(store, found)]
    if deep and not problems:
        # Of the right size they count as whole wherever they are not read.
        problems = [f"{problem}; {_AGAIN_WITHOUT.format(name)}" for problem in _content_problems(store, found)]
    notes = [f"{name} is older than the table: shards were committed since; `compact` takes them in"]
    return problems, notes * _is_older(store, found)


def _is_older(store: Store, compacted: Compacted) -> bool:
    try:
        now = {run: CompactedRun.of(read_commits(store, run)) for run in store.folders("_runs")}
    except (DamagedError, FileNotFoundError):  # of which the check of its run tells
        return False
    return {run: one for run, one in now.items() if one.shards} != compacted.runs


def _size_problems(store: Store, compacted: Compacted) -> Iterator[str]:
    listed = store.find(compacted.folder)
    yield from filter(None, (size_problem(store, file, listed) for file in compacted.all_files))


def _content_problems(store: Store, compacted: Compacted) -> Iterator[str]:
    counts: dict[Kind, Counter[str]] = {kind: Counter() for kind in KINDS}
    kinds, problems = [(kind, file) for kind in KINDS for file in compacted.files[kind]], list[str]()
    with ThreadPoolExecutor(_READERS) as readers:
        for (kind, _), found in zip(kinds, readers.map(lambda one: _read_counts(store, *one), kinds), strict=True):
            if isinstance(found, str):
                problems.append(found)
            else:
                counts[kind].update(found)
    yield from problems
    for kind in KINDS if not problems else ():
        held = {run: getattr(one, kind) for run, one in compacted.runs.items()}
        for run in sorted(held.keys() | counts[kind]):
            if held.get(run, 0) != (rows := counts[kind][run]):
                yield f"{compacted.folder}/{kind} has {rows} rows of run {run}, its note says {held.get(run, 0)}"


def _read_counts(store: Store, kind: Kind, file: DataFile) -> Counter[str] | str:
    """Return the number of rows of each run in a file, or what is wrong with it."""
    try:
        data = store.read(file.name)
    except FileNotFoundError:
        return f"{file.name} is missing"
    if problem := hash_problem(data, file):
        return problem
    parquet = pq.ParquetFile(io.BytesIO(data))
    version = int((parquet.schema_arrow.metadata or {}).get(VERSION_KEY, 0))
    if parquet.schema_arrow.remove_metadata() != schema_of(SCHEMAS[kind], version):
        return f"{file.name} has another schema than version {version} of it"
    if parquet.metadata.num_rows != file.rows:
        return f"{file.name} has {parquet.metadata.num_rows} rows, its note says {file.rows}"
    counts = Counter[str]()
    for batch in parquet.iter_batches(columns=["run_id"]):
        counts.update({one["values"]: one["counts"] for one in batch["run_id"].value_counts().to_pylist()})
    return counts
