"""One driver at a time asks a study for its next trial."""

import zlib
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from knee_tune.tuning.patience import patience_with
from knee_tune.tuning.storage import engine_options
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


def retaken(lock: AbstractContextManager[object]) -> bool:
    """Whether a lock that we hold had got lost meanwhile; then it is ours again.

    A PostgreSQL that restarts frees its locks: what was read under one may no longer be so.
    """
    return isinstance(lock, _AdvisoryLock) and lock.retaken()


class _AdvisoryLock:
    """A transaction that holds PostgreSQL's lock of one name; it ends with the driver as well."""

    def __init__(self, url: str, *, name: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool, **engine_options(url))
        self._patience = patience_with(url)
        self._key = zlib.crc32(f"knee-tune asks {name}".encode())
        self._connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> None:
        self._connection = self._patience.outlast(self._take)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):  # of a connection that is no more: nor is its lock
                connection.close()

    def _take(self) -> sqlalchemy.Connection:
        connection = self._engine.connect()
        try:
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            connection.execute(lock, {"key": self._key})
        except BaseException:
            with suppress(SQLAlchemyError):
                connection.close()
            raise
        return connection

    def retaken(self) -> bool:
        assert self._connection is not None, "it was taken"
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            self.__exit__(None, None, None)
            self.__enter__()
            return True
        return False
