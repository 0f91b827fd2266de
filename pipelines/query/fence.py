"""What a database connection may touch: DuckDB's own locks, and a private folder for what outgrows its memory."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

import duckdb

from pipelines.errors import QueryError, StorageError

# Nothing is looked for on the web, nor among the variables of a Python program; no code is loaded.
_SETTINGS = """
SET python_enable_replacements = false;
SET autoinstall_known_extensions = false;
SET autoload_known_extensions = false;
SET allow_community_extensions = false;
SET allow_persistent_secrets = false
"""
_LOCKS = "SET enable_external_access = false; SET lock_configuration = true"


def harden(connection: duckdb.DuckDBPyConnection, spill: Path | None) -> None:
    """Make a new connection load and look for nothing by itself, and spill to a private folder.

    Args:
        connection: nothing has been run on it yet.
        spill: new folder for temporary files, which the caller removes; by default one below a folder of this process
            that is removed when it ends.

    Raises:
        StorageError: there is no place for such a folder.
    """
    connection.execute(_SETTINGS)
    try:
        if spill is None:
            spill = Path(_private_folder(os.getpid())) / secrets.token_hex(8)  # DuckDB makes and removes it
        else:
            spill.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"no folder for temporary files can be made: {error}; set TMPDIR") from error
    connection.execute(f"SET temp_directory = {sql_literal(str(spill))}")


def fence(connection: duckdb.DuckDBPyConnection, folders: Collection[str], own_files: Collection[str]) -> None:
    """Lock a connection for good: beside some files it opens nothing, and no setting can be changed.

    DuckDB does not tell reading from writing here. That a person's statement only reads is checked by select_text, and
    files of a store that is not local are opened by a file system that refuses to write.

    Args:
        connection: with all its views.
        folders: folders and protocols (``name://``) whose files may be opened.
        own_files: names and patterns of files of this machine that may be opened, as statements write them.

    Raises:
        QueryError: there is no file of such a name.
    """
    files, more = [], []
    for name in own_files:
        if os.path.isdir(name):
            more.append(name)
            files.append(name)
            continue
        found = [path for (path,) in connection.execute("SELECT file FROM glob($name)", {"name": name}).fetchall()]
        if not found and not os.path.exists(name):
            raise QueryError(f'No files found that match the pattern "{name}"')
        files += [name, *found]
    connection.execute(f"SET allowed_directories = {_list([*folders, *more])}")
    connection.execute(f"SET allowed_paths = {_list(files)}")
    connection.execute(_LOCKS)


@cache
def _private_folder(pid: int) -> str:
    """Make this process' folder, of a name that nobody can guess and for nobody else to read."""
    folder = tempfile.mkdtemp(prefix="xsam-label-query-")

    def remove() -> None:
        if os.getpid() == pid:  # not a fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _list(texts: Collection[str]) -> str:
    return f"[{', '.join(map(sql_literal, texts))}]"


def sql_literal(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
