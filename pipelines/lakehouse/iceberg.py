"""Publish the current rows as Iceberg tables of the user's catalog: the same files as the Delta logs name.

The logs say which files hold current rows, and keep those that were written for it from `vacuum`; a table follows them
by snapshots that remove and add whole files.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipelines.errors import PlanError, StorageError, UserError
from pipelines.lakehouse.delta_log import read_delta_log
from pipelines.lakehouse.publish import PublishedTable, publish_delta
from pipelines.layout import KINDS, Kind
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

_TRIES = 20
_OUTPUT, _VERSION = "xsam-label.output", "xsam-label.version"


def open_catalog(name: str) -> Catalog:
    """Open a catalog that pyiceberg's configuration names.

    Raises:
        UserError: pyiceberg is not installed.
        StorageError: no such catalog is configured, or it cannot be reached.
    """
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError as error:
        raise UserError("Iceberg needs pyiceberg: pip install 'xsam-label[iceberg]'") from error
    with _catalog_errors(name):
        return load_catalog(name)


def publish_iceberg(
    store: Store, catalog: Catalog, namespace: str, *, on_step: Callable[[str], None] = lambda _: None
) -> list[PublishedTable]:
    """Publish the Delta logs, then let the tables ``annotations`` and ``images`` of a namespace follow them.

    Args:
        store: the output.
        catalog: the catalog, which must be able to read the output by its URI.
        namespace: of the tables, which are created if they are not there.
        on_step: called with a description of each step, for progress.

    Returns:
        What became of each table, with the version of the log that it follows.

    Raises:
        StorageError: a table is not of this output, or holds files of others: nothing is written to it; or the catalog
            or output does not answer.
        PlanError, DamagedError: as for ``publish_delta``; or others publish all the time.
    """
    names = {kind: f"{namespace}.{kind}" for kind in KINDS}
    with _catalog_errors(catalog.name):
        for name in names.values():  # before anything is written
            if catalog.table_exists(name):
                _read_files(catalog.load_table(name), store)
    written = {table.kind: table.written for table in publish_delta(store, on_step=on_step)}
    # A commit that comes second is made anew here; pyiceberg would add the same files to what came first.
    properties = {_OUTPUT: _uri(store, ""), "commit.retry.num-retries": "0"}
    with _catalog_errors(catalog.name), _quiet():
        catalog.create_namespace_if_not_exists(namespace)
        tables = {
            kind: catalog.create_table_if_not_exists(name, SCHEMAS[kind], properties=properties)
            for kind, name in names.items()
        }
        return [_follow(store, table, kind, written[kind], on_step) for kind, table in tables.items()]


def _read_files(table: Table, store: Store) -> dict[str, DataFile]:
    """Return the files of a table by URI.

    Raises:
        StorageError: it is not a table of this output, or others have added to it.
    """
    held = {task.file.file_path: task.file for task in table.scan().plan_files()}
    owner = table.properties.get(_OUTPUT)
    others = sorted(path for path in held if not path.startswith(_uri(store, "")))
    if owner == _uri(store, "") and not others:
        return held
    name = ".".join(table.name())
    whose = f"is of the output {owner}" if owner else "was not made by xsam-label"
    if owner == _uri(store, ""):
        whose = f"holds files of others ({others[0]})"
    raise StorageError(f"the Iceberg table {name} {whose}, and was left as it is; publish to another namespace")


def _follow(store: Store, table: Table, kind: Kind, written: int, on_step: Callable[[str], None]) -> PublishedTable:
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(_TRIES):
        on_step(f"reading the Iceberg table of {kind}")
        # The table first: if its next snapshot is ours, nobody has let it follow a later version of the log meanwhile.
        held = _read_files(table.refresh(), store)
        log = read_delta_log(store, kind)
        wanted = {_uri(store, name) for name in log.files}
        added, removed = sorted(wanted - held.keys()), sorted(held.keys() - wanted)
        done = PublishedTable(kind, log.version, len(wanted), len(added), len(removed), written)
        if not added and not removed:
            return done
        on_step(f"adding {len(added):,} files to the Iceberg table of {kind}")
        noted = {_VERSION: str(log.version)}
        # One transaction of up to two snapshots: readers see both or neither.
        try:
            with table.transaction() as transaction:
                if removed:
                    with transaction.update_snapshot(noted).overwrite() as change:
                        for path in removed:
                            change.delete_data_file(held[path])
                if added:
                    transaction.add_files(added, noted, check_duplicate_files=False)
        except CommitFailedException:
            continue
        done.is_new = True
        return done
    raise PlanError(f"{store.uri}: others publish it all the time; run the same command again")


def _uri(store: Store, name: str) -> str:
    """Return an object's URI with its protocol, as a catalog has to have it."""
    return f"file://{store.path(name)}" if store.is_local else f"{store.uri.rstrip('/')}/{name}"


@contextlib.contextmanager
def _catalog_errors(name: str) -> Iterator[None]:
    """Raise one StorageError in place of whatever pyiceberg raises: its exceptions have no class in common."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise StorageError(f"the Iceberg catalog {name}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pyiceberg from warning of each column of each file that has no statistics, such as masks."""
    logger = logging.getLogger("pyiceberg.io.pyarrow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
