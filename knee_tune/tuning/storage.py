"""Optuna's storage: opened the way many writers and a killed driver need it."""

import time
from collections.abc import Callable
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DatabaseError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from knee_tune.errors import UserError, first_line, one_line
from knee_tune.tuning.quiet import quiet_optuna
from knee_tune.urls import in_memory, is_url, shown_url, sqlite_file

HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 60

_SQLITE_ENGINE = {"connect_args": {"timeout": 60}}
_SERVER_ENGINE = {"pool_pre_ping": True}  # a connection may be dropped between two reports

OnStale = Callable[[optuna.Study, FrozenTrial], None]


def check_storage_url(url: str) -> None:
    """UserError if ``url`` is no SQLAlchemy URL, has no driver here, or is in memory."""
    if not is_url(url):
        raise UserError(
            f"--storage {shown_url(url)}: not an SQLAlchemy URL; for example "
            "sqlite:////home/me/optuna.db or postgresql+psycopg://user@host:5432/name, with @ and "
            "/ in a password as %40 and %2F"
        )
    if in_memory(url):
        raise UserError(
            f"--storage {_shown(url)}: a database in memory keeps nothing; name a file, as in "
            "sqlite:////home/me/optuna.db"
        )
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"--storage {_shown(url)}: its database driver is not installed ({first_line(error)}); "
            "for PostgreSQL: pip install 'knee-tune[postgresql]' and postgresql+psycopg://..."
        ) from error


def open_storage(url: str, *, on_stale: OnStale | None = None) -> RDBStorage:
    """The storage at an SQLAlchemy URL, with heartbeats; SQLite in WAL mode.

    ``on_stale`` is called with every trial whose driver stopped beating.
    UserError if nothing can be opened there.
    """
    check_storage_url(url)
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    try:
        storage = _make_tables(
            lambda: RDBStorage(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna takes it for a template
                engine_kwargs=_SQLITE_ENGINE if is_sqlite else _SERVER_ENGINE,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=on_stale,
            )
        )
    except DatabaseError as error:
        cause = one_line(str(error.orig))
        raise UserError(
            f"--storage {_shown(url)}: cannot be opened ({cause}); "
            "is the folder there, or the server up?"
        ) from error
    except RuntimeError as error:  # tables of another Optuna version
        raise UserError(f"--storage {_shown(url)}: {' '.join(str(error).split())}") from error
    if is_sqlite:
        _use_wal(storage.engine)
    return storage


def refuse_missing(url: str) -> None:
    """UserError if ``url`` is an SQLite file that is not there: looking must not make one."""
    check_storage_url(url)
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        raise UserError(
            f"{file.parent}: there is no study in it (no {file.name}); check --home and --storage"
        )


def _make_tables(open_it: Callable[[], RDBStorage]) -> RDBStorage:
    """Open a storage whose tables another driver may be making at this very moment."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            with quiet_optuna():
                return open_it()
        except (IntegrityError, ProgrammingError):
            time.sleep(wait)
        except OperationalError as error:
            if not any(sign in str(error.orig) for sign in ("already exists", "locked")):
                raise
            time.sleep(wait)
    with quiet_optuna():
        return open_it()


def _shown(url: str) -> str:
    return shown_url(url, password="***")


def _use_wal(engine: sqlalchemy.Engine) -> None:
    """WAL lets readers (dashboard, status) and writers work at once; NORMAL still survives a crash.

    The pool is emptied so that every later connection passes here.
    """

    def set_pragmas(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", set_pragmas)
    engine.dispose()
