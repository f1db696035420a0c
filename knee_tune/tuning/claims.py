"""Claims on runs outside the search: of several drivers of a study one alone trains each."""

import hashlib
import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Self

import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.tuning.patience import patience_with
from knee_tune.tuning.patient_storage import UPTIME
from knee_tune.tuning.storage import engine_options
from knee_tune.urls import sqlite_file

_TRY = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")

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
    """A claim on what ``name`` says, against every driver of this storage; None if it is taken.

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
        advisory = _AdvisoryClaim(url, name)
        return advisory if patience_with(url).outlast(advisory.take) else None
    return nullcontext()


class _AdvisoryClaim:
    """PostgreSQL's lock of one name, and a thread that takes it again after a restart."""

    def __init__(self, url: str, name: str) -> None:
        # For hours: not in a transaction, which a server may limit and must keep.
        self._engine = sqlalchemy.create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", **engine_options(url)
        )
        self._key = _key(name)
        self._connection: sqlalchemy.Connection | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self) -> bool:
        """Whether it is ours, which it stays until the context ends."""
        if not self._try():
            return False
        self._thread.start()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._close()

    def _try(self, *, again: bool = False) -> bool:
        """Take the lock if nobody has it; after a restart those who had it before come first."""
        self._connection = self._engine.connect()
        try:
            for setting in _NOTICE_A_LOST_MACHINE:
                self._connection.exec_driver_sql(setting)
            uptime = float(self._connection.scalar(UPTIME))
            if not again and uptime < PRECEDENCE_SECONDS:
                self._over.wait(PRECEDENCE_SECONDS - uptime)
            taken = bool(self._connection.scalar(_TRY, {"key": self._key}))
        except BaseException:
            self._close()
            raise
        if not taken:
            self._close()
        return taken

    def _keep(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                if self._connection is None:
                    self._try(again=True)
                else:
                    self._connection.exec_driver_sql("SELECT 1")
            except SQLAlchemyError:
                self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):  # it may be no more, and its lock neither
                connection.close()


def _key(name: str) -> int:
    """PostgreSQL's locks have numbers of 64 bits for names."""
    digest = hashlib.blake2b(f"knee-tune trains {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
