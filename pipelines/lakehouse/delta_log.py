"""Read and write the Delta log of one of an output's tables. docs/lakehouse.md states what it holds.

Versions are create-only, so that of two publishers one writes a version and the other finds it taken. Each is marked as
ours, and the protocol of the table asks writers for a feature that no other program has: one that does not know which
files belong to an output would remove those that the log does not name, while all may read it.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError, StorageError
from pipelines.layout import SCHEMA_VERSION, Kind, delta_log_folder, delta_log_name, delta_log_version
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS

_READERS = 16
_MARK, _FORMAT = "xsamLabel", 1
_FEATURE = "xsamLabel"
_SOURCE, _ROWS = "xsamLabel.source", "xsamLabel.rows"
_SCHEMA_VERSION = "xsamLabel.schemaVersion"
_ANEW = "remove the folder {}/_delta_log, and `publish` writes it anew"
_TYPES: Mapping[pa.DataType, str] = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
}
# Of floats there is none: JSON would round what readers compare with.
_WITH_STATISTICS = ("image_id", "prompt_id", "category_id", "run_id")


class ForeignLogError(StorageError):
    """A Delta log holds what others have written; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A file that belongs to a version of a table.

    Attributes:
        name: relative to the output.
        num_bytes: its size.
        source, digest: if it holds the current rows of a committed file, that file's name and the rows' digest.
        stats: what is known of its rows, as Delta logs have it.
    """

    name: str
    num_bytes: int
    source: str | None = None
    digest: str | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    def measured(self, footer: pq.FileMetaData) -> LoggedFile:
        """Return it with the statistics of its Parquet footer."""
        return replace(self, stats=_statistics(footer))


@dataclass(frozen=True, slots=True)
class DeltaLog:
    """What the log of a table says.

    Attributes:
        kind: which table.
        version: the last one; -1 if nothing was published.
        files: those that belong to it, by name.
        removed: names of files that belonged to earlier versions, with the version that removed them.
        schema: the text of its columns; empty if nothing was published.
        table_id: what identifies the table.
    """

    kind: Kind
    version: int = -1
    files: Mapping[str, LoggedFile] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)
    schema: str = ""
    table_id: str = ""


def read_delta_log(store: Store, kind: Kind) -> DeltaLog:
    """Read a table's log from its first version on.

    Raises:
        ForeignLogError: others wrote it, or some of it.
        DamagedError: a version is missing, or not what a log holds.
        StorageError: it cannot be read, or a newer version of ours wrote it.
    """
    folder = delta_log_folder(kind)
    listed = store.find(folder)
    versions = {version for name in listed if (version := delta_log_version(name)) is not None}
    if listed and not versions:
        raise ForeignLogError(_foreign(store, folder, "it holds no version"))
    # A listing may lag: the next is asked for by name.
    last = max(versions, default=-1)
    later = itertools.count(last + 1)
    last += sum(1 for _ in itertools.takewhile(lambda one: store.exists(delta_log_name(kind, one)), later))
    files, removed, schema, table_id = dict[str, LoggedFile](), dict[str, int](), "", ""
    with ThreadPoolExecutor(_READERS) as readers:
        entries = readers.map(lambda version: _read_version(store, kind, version), range(last + 1))
        for version, actions in enumerate(entries):
            for action in actions:
                if "metaData" in action:
                    schema, table_id = action["metaData"]["schemaString"], action["metaData"]["id"]
                elif "add" in action:
                    file = _logged(kind, action["add"])
                    files[file.name] = file
                    removed.pop(file.name, None)
                elif "remove" in action:
                    name = _name(kind, action["remove"]["path"])
                    files.pop(name, None)
                    removed[name] = version
    return DeltaLog(kind, last, files, removed, schema, table_id)


def write_version(
    store: Store, log: DeltaLog, added: Sequence[LoggedFile], removed: Iterable[str], runs: Iterable[str]
) -> bool:
    """Write the version after the last one of a log.

    Args:
        store: the output.
        log: the log as it was read.
        added: files that belong to the table from now on.
        removed: names of files that do not any more.
        runs: ids of the runs whose files are added, for the table's history.

    Returns:
        Whether it was written; otherwise somebody else has written the version.

    Raises:
        StorageError: the store does not answer; the version may be there all the same.
    """
    now = round(time.time() * 1000)
    actions: list[dict[str, Any]] = [
        {
            "commitInfo": {
                "timestamp": now,
                "operation": "WRITE",
                "operationParameters": {"mode": "Overwrite", "runs": json.dumps(sorted(runs))},
                "engineInfo": "xsam-label",
                # Unique to its writer, as create needs.
                "txnId": secrets.token_hex(16),
                _MARK: {"format": _FORMAT},
            }
        }
    ]
    if log.version < 0:
        actions.append({"protocol": {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": [_FEATURE]}})
    if log.schema != (schema := schema_string(log.kind)):
        actions.append(
            {
                "metaData": {
                    "id": log.table_id or str(uuid.uuid4()),
                    "name": log.kind,
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": schema,
                    "partitionColumns": [],
                    "configuration": {_SCHEMA_VERSION: str(SCHEMA_VERSION)},
                    "createdTime": now,
                }
            }
        )
    gone = {"deletionTimestamp": now, "dataChange": True}
    actions += ({"remove": {"path": _path(log.kind, name), **gone}} for name in removed)
    actions += ({"add": _add(log.kind, file, now)} for file in added)
    return store.create(delta_log_name(log.kind, log.version + 1), _lines(actions))


def hide_statistics(store: Store, log: DeltaLog) -> None:
    """Take from all versions what they tell of the rows of files that do not belong to the table any more.

    Statistics are hints, so that every version shows the same rows as before; they name images.
    """
    for version in range(log.version + 1):
        is_changed, actions = False, list(_read_version(store, log.kind, version))
        for action in actions:
            add = action.get("add")
            if add is not None and _name(log.kind, add["path"]) not in log.files:
                counted = json.dumps({"numRecords": json.loads(add["stats"])["numRecords"]})
                is_changed |= counted != add["stats"]
                add["stats"] = counted
        if is_changed:
            store.write(delta_log_name(log.kind, version), _lines(actions))


def schema_string(kind: Kind) -> str:
    """Return a table's columns as Delta logs have them."""
    return json.dumps(_struct(SCHEMAS[kind]))


def _struct(fields: Iterable[pa.Field]) -> dict[str, Any]:
    columns = [
        {"name": one.name, "type": _delta_type(one.type), "nullable": one.nullable, "metadata": {}} for one in fields
    ]
    return {"type": "struct", "fields": columns}


def _delta_type(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return _struct(kind.fields)
    if pa.types.is_list(kind):
        return {"type": "array", "elementType": _delta_type(kind.value_type), "containsNull": True}
    return _TYPES[kind]


def _read_version(store: Store, kind: Kind, version: int) -> Iterator[dict[str, Any]]:
    name = delta_log_name(kind, version)
    try:
        actions = [json.loads(line) for line in store.read(name).splitlines() if line.strip()]
        info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        if (mark := info.get(_MARK)) is None:
            by = info.get("engineInfo")
            who = f"version {version} is not of xsam-label" + (f", but of {by}" if by else "")
            raise ForeignLogError(_foreign(store, delta_log_folder(kind), who))
        settings: dict[str, str] = next((one["metaData"]["configuration"] for one in actions if "metaData" in one), {})
        if mark["format"] > _FORMAT or int(settings.get(_SCHEMA_VERSION, 0)) > SCHEMA_VERSION:
            raise StorageError(f"{store.uri}/{name} was written by a newer version; upgrade to publish")
    except FileNotFoundError as error:
        raise DamagedError(f"{store.uri}/{name} is missing; {_ANEW.format(kind)}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        raise DamagedError(f"{store.uri}/{name}: no version of a Delta log; {_ANEW.format(kind)}") from error
    return iter(actions)


def _foreign(store: Store, folder: str, why: str) -> str:
    return (
        f"{store.uri}/{folder}: {why}. A log that others have written is left as it is, and nothing was published; "
        "move the folder away to have xsam-label write one of its own"
    )


def _logged(kind: Kind, add: Mapping[str, Any]) -> LoggedFile:
    tags = add.get("tags") or {}
    return LoggedFile(_name(kind, add["path"]), add["size"], tags.get(_SOURCE), tags.get(_ROWS))


def _add(kind: Kind, file: LoggedFile, now: int) -> dict[str, Any]:
    added: dict[str, Any] = {"path": _path(kind, file.name), "partitionValues": {}, "size": file.num_bytes}
    added |= {"modificationTime": now, "dataChange": True, "stats": json.dumps(file.stats)}
    if file.source is not None:
        added["tags"] = {_SOURCE: file.source, _ROWS: file.digest}
    return added


def _path(kind: Kind, name: str) -> str:
    """Return a file's path as the log has it: relative to the table's folder, encoded as in URIs."""
    return quote(name.removeprefix(f"{kind}/"))


def _name(kind: Kind, path: str) -> str:
    return f"{kind}/{unquote(path)}"


def _lines(actions: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(action).encode() + b"\n" for action in actions)


def _statistics(footer: pq.FileMetaData) -> dict[str, Any]:
    """Return the number of rows, and the bounds of those columns by which files may be passed over."""
    bounds: dict[str, dict[str, Any]] = {"minValues": {}, "maxValues": {}, "nullCount": {}}
    for place in range(footer.num_columns):
        column = footer.schema.column(place).path
        if column not in _WITH_STATISTICS:
            continue
        parts = [footer.row_group(group).column(place).statistics for group in range(footer.num_row_groups)]
        # A value of some kilobytes has none.
        if parts and all(one is not None and one.has_min_max and one.has_null_count for one in parts):
            bounds["minValues"][column] = min(one.min for one in parts)
            bounds["maxValues"][column] = max(one.max for one in parts)
            bounds["nullCount"][column] = sum(one.null_count for one in parts)
    return {"numRecords": footer.num_rows, **bounds}
