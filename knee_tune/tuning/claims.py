"""Claims on runs outside the search: of several drivers of a study one alone trains each."""

import hashlib
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.urls import sqlite_file

_TRY = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")

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
    which the server frees. A lost connection loses it too; what that costs is a run trained twice.
    On any other server nothing is ever taken.
    """
    file = sqlite_file(url)
    with ExitStack() as claim:
        if file is not None:
            lock = file_lock(Path(f"{file}.claims") / f"{name}.lock")
            if not try_lock(lock):
                return None
            claim.callback(lock.release)
        elif make_url(url).get_backend_name() == "postgresql":
            connection = claim.enter_context(_connection(url))
            if not connection.scalar(_TRY, {"key": _key(name)}):
                return None
        return claim.pop_all()


def _connection(url: str) -> sqlalchemy.Connection:
    """One of its own, for hours: not in a transaction, which a server may limit and must keep."""
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    connection = engine.connect()
    for setting in _NOTICE_A_LOST_MACHINE:
        connection.exec_driver_sql(setting)
    return connection


def _key(name: str) -> int:
    """PostgreSQL's locks have numbers of 64 bits for names."""
    digest = hashlib.blake2b(f"knee-tune trains {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
