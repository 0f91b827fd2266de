"""Sandbox a DuckDB connection: its own locks, and a private folder for spilled data."""

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

# No look-up of names among Python variables, no extension fetched from the web or loaded, no secrets stored on disk.
_SETTINGS = """
SET python_enable_replacements = false;
SET autoinstall_known_extensions = false;
SET autoload_known_extensions = false;
SET allow_community_extensions = false;
SET allow_persistent_secrets = false
"""
# lock_configuration last: it also forbids the statement to undo any of this.
_LOCKS = "SET enable_external_access = false; SET lock_configuration = true"


def harden(connection: duckdb.DuckDBPyConnection, spill: Path | None) -> None:
    """Keep a new connection from loading or looking up anything by itself, and let it spill to a private folder.

    Args:
        connection: a connection on which nothing has been run yet.
        spill: a folder to create for temporary files, which the caller removes; by default one below a folder of this
            process that is removed when the process ends.

    Raises:
        StorageError: the folder cannot be created.
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
    """Lock a connection permanently: it can open no files but those given, and change no settings.

    DuckDB's locks do not distinguish reading from writing. That a user's statement only reads is checked in
    select_text, and files of remote stores are opened by a file system that refuses to write.

    Args:
        connection: the connection, with all its views.
        folders: folders and protocols (``name://``) whose files may be opened.
        own_files: names and patterns of local files that may be opened, spelled as the statements do.

    Raises:
        QueryError: a name or pattern matches no file.
    """
    files, more = [], []
    for name in own_files:
        if os.path.isdir(name):
            more.append(name)
            files.append(name)
            continue
        # DuckDB compares both the name as written and the paths that a pattern expands to.
        found = [path for (path,) in connection.execute("SELECT file FROM glob($name)", {"name": name}).fetchall()]
        if not found and not os.path.exists(name):
            raise QueryError(f'No files found that match the pattern "{name}"')
        files += [name, *found]
    connection.execute(f"SET allowed_directories = {_list([*folders, *more])}")
    connection.execute(f"SET allowed_paths = {_list(files)}")
    connection.execute(_LOCKS)


@cache
def _private_folder(pid: int) -> str:
    """Create this process's temporary folder, with an unguessable name and readable by this user only.

    Cached by process id, so that a forked process gets one of its own.
    """
    folder = tempfile.mkdtemp(prefix="xsam-label-query-")

    def remove() -> None:
        if os.getpid() == pid:  # a forked process inherits this handler, and must leave its parent's folder alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _list(texts: Collection[str]) -> str:
    return f"[{', '.join(map(sql_literal, texts))}]"


def sql_literal(text: str) -> str:
    """Return a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
