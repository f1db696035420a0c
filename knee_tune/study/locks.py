"""Locks between the drivers of a study: one at a time asks, and one alone trains a claimed run."""

import hashlib
import threading
import time
import zlib
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.study.patience import Patience, patience_with
from knee_tune.study.patient_storage import UPTIME
from knee_tune.study.storage import engine_options
from knee_tune.urls import sqlite_file

_TURN_SECONDS = 1.0
"""Seconds that PostgreSQL waits for a turn before the driver looks whether Ctrl-C came."""

_WAIT = f"""
DO $$ BEGIN
  PERFORM set_config('lock_timeout', '{_TURN_SECONDS:g}s', true), pg_advisory_xact_lock({{key}});
EXCEPTION WHEN lock_not_available THEN NULL;
END $$"""

_HELD = sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:key)")
"""True, too, where this very transaction has it."""

_TRY = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")


def asking_lock(url: str, *, study: str) -> AbstractContextManager[object]:
    """Lock to be held while a driver asks for a trial, until the trial has its parameters.

    So each driver counts the trials of the others and samples beside them: the number of trials is
    exact, and no point is tried twice. Optuna sees to neither, and SQLite ignores the
    SELECT ... FOR UPDATE by which it takes a queued trial. Drivers meet at a file beside an SQLite
    database, and at an advisory lock in PostgreSQL; on any other server nobody waits. Ctrl-C ends
    the wait in any thread (see :meth:`knee_tune.study.patience.Patience.interrupt`).
    """
    file = sqlite_file(url)
    if file is not None:
        return _FileTurn(f"{file}.asking", patience_with(url))
    if make_url(url).get_backend_name() == "postgresql":
        return _AdvisoryLock(url, zlib.crc32(f"knee-tune asks {study}".encode()))
    return nullcontext()


def retaken(lock: AbstractContextManager[object]) -> bool:
    """Tell whether a lock that we hold had got lost meanwhile; then it is ours again.

    A PostgreSQL that restarts frees its locks: what was read under one may no longer be so.
    """
    return isinstance(lock, _AdvisoryLock) and lock.retaken()


class _FileTurn:
    """A lock on a file, waited for until Ctrl-C."""

    def __init__(self, file: str, patience: Patience) -> None:
        self._lock, self._patience = FileLock(file), patience

    def __enter__(self) -> Self:
        while not try_lock(self._lock):
            self._patience.raise_if_interrupted()
            time.sleep(_FILE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_FILE_SECONDS = 0.05
"""Between two looks whether the lock on a file is free."""


class _AdvisoryLock:
    """PostgreSQL's lock of one number: it ends with its connection, and so with the driver."""

    def __init__(self, url: str, key: int, **options: Any) -> None:
        self._engine = sqlalchemy.create_engine(
            url, poolclass=NullPool, **options, **engine_options(url)
        )
        self._patience = patience_with(url)
        self._key = key
        self._connection: sqlalchemy.Connection | None = None

    def __enter__(self) -> Self:
        self._patience.outlast(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def retaken(self) -> bool:
        """Tell whether it had got lost; then it is ours again."""
        if self._answers():
            return False
        self._close()
        self._patience.outlast(self._take)
        return True

    def _take(self) -> bool:
        """Take it with a new connection; False if another driver has it."""
        self._connection = self._engine.connect()
        taken = False
        try:
            taken = self._acquire(self._connection)
        finally:
            if not taken:
                self._close()
        return taken

    def _acquire(self, connection: sqlalchemy.Connection) -> bool:
        """Wait for it; it is the transaction's, which a server that pools connections keeps."""
        wait = _WAIT.format(key=self._key)
        while True:
            connection.exec_driver_sql(wait)
            if connection.scalar(_HELD, {"key": self._key}):
                return True
            self._patience.raise_if_interrupted()

    def _answers(self) -> bool:
        """Tell whether its connection stands, and the lock with it."""
        assert self._connection is not None, "it was taken"
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except SQLAlchemyError:
            return False
        return True

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):  # it may be no more, and its lock neither
                connection.close()


LOOK_SECONDS = 2.0
"""Between two looks at whether a claim still stands."""

PRECEDENCE_SECONDS = 10.0
"""From a restart of the server: meanwhile only those who held a claim before may take it."""

_NOTICE_A_LOST_MACHINE = (
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
)
"""The server asks after the driver, and drops what it held when a minute goes by in silence."""


def take_claim(url: str, name: str) -> AbstractContextManager[object] | None:
    """Claim what ``name`` says, against every driver of this storage; None if it is taken.

    It lasts until its context ends. A driver that dies leaves none: it is a lock on a file beside
    an SQLite database, which the system frees, and an advisory lock of a connection to PostgreSQL,
    which the server frees. A connection that is lost is made anew, and the claim taken again before
    another driver may have it; only where a network fails can it be lost, which costs a run that is
    trained twice. On any other server nothing is ever taken.
    """
    file = sqlite_file(url)
    if file is not None:
        lock = file_lock(Path(f"{file}.claims") / f"{name}.lock")
        if not try_lock(lock):
            return None
        claim = ExitStack()
        claim.callback(lock.release)
        return claim
    if make_url(url).get_backend_name() == "postgresql":
        advisory = _Claim(url, _claim_key(name))
        return advisory if advisory.take() else None
    return nullcontext()


class _Claim(_AdvisoryLock):
    """A lock that nobody waits for, and a thread that takes it again after a restart."""

    def __init__(self, url: str, key: int) -> None:
        # For hours: not in a transaction, which a server may limit and must keep.
        super().__init__(url, key, isolation_level="AUTOCOMMIT")
        self._was_ours = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self) -> bool:
        """Take it until the context ends; False if another driver has it."""
        self._was_ours = self._patience.outlast(self._take)
        if self._was_ours:
            self._thread.start()
        return self._was_ours

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._close()

    def _acquire(self, connection: sqlalchemy.Connection) -> bool:
        """Take it if nobody has it; after a restart those who had it before come first."""
        for setting in _NOTICE_A_LOST_MACHINE:
            connection.exec_driver_sql(setting)
        uptime = float(connection.scalar(UPTIME))
        if not self._was_ours and uptime < PRECEDENCE_SECONDS:
            self._over.wait(PRECEDENCE_SECONDS - uptime)
        return bool(connection.scalar(_TRY, {"key": self._key}))

    def _keep(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if self._connection is None:
                with suppress(SQLAlchemyError):
                    self._take()
            elif not self._answers():
                self._close()


def _claim_key(name: str) -> int:
    """Number of 64 bits that PostgreSQL has for the name of a lock."""
    digest = hashlib.blake2b(f"knee-tune trains {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
