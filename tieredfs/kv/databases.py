"""The engine behind a metadata URL: opened, made, looked for, removed. Who has a URL needs to know no engine.

What speaks to a server is imported only for a URL that names one.
"""

import contextlib
import os
from types import ModuleType
from typing import Final

from tieredfs.config import MetaUrl, SqliteUrl
from tieredfs.errors import ConfigurationError, VolumeNotFoundError
from tieredfs.host import local_host
from tieredfs.kv.engine import Engine

_FILE_SUFFIXES: Final = ("", "-wal", "-shm")


def open_engine(url: MetaUrl) -> Engine:
    """Raises VolumeNotFoundError, NewerFormatError, CorruptError; of a server also ConfigurationError, UnavailableError."""
    if isinstance(url, SqliteUrl):
        from tieredfs.kv.sqlite import SqliteEngine

        return SqliteEngine(url.path)
    engine: Engine = _postgres().PostgresEngine(url)
    return engine


def create_engine(url: MetaUrl) -> Engine:
    """Make the database (of a server: the tables) and open it; one that is there is opened. Raises what opening raises."""
    if isinstance(url, SqliteUrl):
        from tieredfs.kv.sqlite import SqliteEngine

        local_host().files.make_directory(os.path.dirname(url.path))
        return SqliteEngine(url.path, create=True)
    engine: Engine = _postgres().PostgresEngine(url, create=True)
    return engine


def database_exists(url: MetaUrl) -> bool:
    """Whether there is something in the place of a volume's metadata. Raises what opening it raises, but for its absence."""
    if isinstance(url, SqliteUrl):
        return os.path.exists(url.path)
    try:
        open_engine(url).close()
    except VolumeNotFoundError:
        return False
    return True


def remove_database(url: MetaUrl) -> None:
    """Nobody has it open."""
    if isinstance(url, SqliteUrl):
        for suffix in _FILE_SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(url.path + suffix)
    else:
        _postgres().drop(url)


def _postgres() -> ModuleType:
    try:
        from tieredfs.kv import postgres
    except ImportError as error:
        raise ConfigurationError(
            f"a postgresql:// URL needs psycopg ({error}): pip install 'tieredfs[cluster]'"
        ) from error
    return postgres
