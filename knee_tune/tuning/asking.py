"""One driver at a time asks a study for its next trial."""

import zlib
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from knee_tune.urls import sqlite_file


def asking_lock(url: str, *, study: str) -> AbstractContextManager[object]:
    """Held while a driver asks for a trial, until the trial has its parameters.

    So each driver counts the trials of the others and samples beside them: the number of trials is
    exact, and no point is tried twice. Optuna sees to neither, and SQLite ignores the
    SELECT ... FOR UPDATE by which it takes a queued trial. Drivers meet at a file beside an SQLite
    database, and at an advisory lock in PostgreSQL; on any other server nobody waits.
    """
    file = sqlite_file(url)
    if file is not None:
        return FileLock(f"{file}.asking")
    if make_url(url).get_backend_name() == "postgresql":
        return _AdvisoryLock(url, name=study)
    return nullcontext()


class _AdvisoryLock:
    """A transaction that holds PostgreSQL's lock of one name; it ends with the driver as well."""

    def __init__(self, url: str, *, name: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        self._key = zlib.crc32(f"knee-tune asks {name}".encode())
        self._connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> None:
        self._connection = self._engine.connect()
        lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
        self._connection.execute(lock, {"key": self._key})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            self._connection.close()
