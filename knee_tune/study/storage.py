"""Optuna's storage: opened the way many writers and a killed driver need it."""

import importlib
import logging
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DatabaseError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from knee_tune.databases import cause_of
from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.study.patience import StorageGoneError, patience_with, storage_timeout
from knee_tune.study.patient_storage import PatientStorage
from knee_tune.urls import in_memory, is_url, shown_url, sqlite_file


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's log and its notes on experimental parts: our lines say what happens."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # A trial that goes on from a checkpoint may report a step again, with the same value.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        logger.setLevel(level)


def preload(*, sampler: str) -> threading.Thread:
    """Import in the background what the trials will need; join it before importing anything else.

    It is done while a worker group warms up on another core, which takes longer than all of it:
    what Optuna's storage needs takes half a second, its Dashboard (notes) about 2 s, torch (which
    the GP sampler uses) as long again. One thread is fastest for the sampler's small matrices, and
    leaves the others to the ranks.
    """

    def load() -> None:
        # What cannot be imported is said by whoever needs it; a command that ends meanwhile
        # does not.
        with suppress(Exception):
            for module in ("sqlalchemy.orm", "alembic.context", "optuna_dashboard"):
                importlib.import_module(module)
            if sampler == "gp":
                importlib.import_module("torch").set_num_threads(1)

    thread = threading.Thread(target=load, daemon=True, name="preload")
    thread.start()
    return thread


HEARTBEAT_SECONDS = 15

GRACE_SECONDS = 60

SQLITE_TIMEOUT = 15.0
"""Seconds that SQLite itself waits for a lock, before people are told that we wait."""

_NOTICE_A_LOST_SERVER = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""For PostgreSQL's client library: a machine that went without a word is missed after a minute."""

OnStale = Callable[[optuna.Study, FrozenTrial], None]


def check_storage_url(url: str) -> None:
    """Refuse (UserError) what is no SQLAlchemy URL, has no driver here, or is in memory."""
    shown = shown_url(url, password="***")
    if not is_url(url):
        raise UserError(
            f"`storage` {shown_url(url)}: not an SQLAlchemy URL; for example "
            "sqlite:////home/me/optuna.db or postgresql+psycopg://user@host:5432/name, with @ and "
            "/ in a password as %40 and %2F"
        )
    if in_memory(url):
        raise UserError(
            f"`storage` {shown}: a database in memory keeps nothing; name a file, as in "
            "sqlite:////home/me/optuna.db"
        )
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"`storage` {shown}: its database driver is not installed ({first_line(error)}); "
            "for PostgreSQL: pip install 'knee-tune[postgresql]' and postgresql+psycopg://..."
        ) from error


def open_storage(url: str, *, on_stale: OnStale | None = None) -> PatientStorage:
    """The storage at an SQLAlchemy URL, with heartbeats; SQLite in WAL mode.

    ``on_stale`` is called with every trial whose driver stopped beating.
    A database that goes away is waited for, see :class:`knee_tune.study.patience.Patience`.
    UserError if nothing can be opened there.
    """
    check_storage_url(url)
    storage_timeout()
    shown = shown_url(url, password="***")
    patience = patience_with(url)
    patience.resume()
    try:
        storage = _make_tables(
            lambda: patience.outlast(
                lambda: PatientStorage(
                    url.replace("{", "{{").replace("}", "}}"),  # Optuna takes it for a template
                    patience=patience,
                    engine_kwargs=engine_options(url),
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=on_stale,
                )
            )
        )
    except (DatabaseError, StorageInternalError, StorageGoneError) as error:
        _name_the_file(error, url)
        if disk_trouble(error):
            raise
        if patience.reached and isinstance(error, StorageGoneError):
            raise
        raise UserError(
            f"`storage` {shown}: cannot be opened ({cause_of(error)}); "
            "is the folder there, or the server up?"
        ) from error
    except RuntimeError as error:  # tables of another Optuna version
        raise UserError(f"`storage` {shown}: {' '.join(str(error).split())}") from error
    if make_url(url).get_backend_name() == "sqlite":
        _use_wal(storage.engine, url)
    return storage


def is_missing(url: str) -> bool:
    """Whether it is an SQLite file that is not there: looking must not make one."""
    check_storage_url(url)
    file = sqlite_file(url)
    return file is not None and not file.is_file()


def refuse_missing(url: str) -> None:
    """Refuse (UserError) what :func:`is_missing`."""
    if is_missing(url) and (file := sqlite_file(url)) is not None:
        raise UserError(
            f"{file.parent}: there is no study in it (no {file.name}); check `home` and `storage`"
        )


def _make_tables(open_it: Callable[[], PatientStorage]) -> PatientStorage:
    """Open a storage whose tables another driver may be making at this very moment."""
    for wait in (0.2, 0.5, 1.0, 2.0):
        try:
            with quiet_optuna():
                return open_it()
        except (IntegrityError, ProgrammingError):
            time.sleep(wait)
        except OperationalError as error:
            if "already exists" not in str(error.orig):
                raise
            time.sleep(wait)
    with quiet_optuna():
        return open_it()


def engine_options(url: str) -> dict[str, Any]:
    """Options by which connections are made and kept; what the URL itself says comes first."""
    parts = make_url(url)
    if parts.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_TIMEOUT}}
    options: dict[str, Any] = {"pool_pre_ping": True}  # one may be dropped between two reports
    if parts.get_dialect().driver.startswith("psycopg"):
        options["connect_args"] = {
            name: value for name, value in _NOTICE_A_LOST_SERVER.items() if name not in parts.query
        }
    return options


def _name_the_file(error: BaseException | None, url: str) -> None:
    """Name the file: SQLite says that a disk is full, but not which."""
    while error is not None:
        if isinstance(error, sqlite3.Error):
            error.filename = str(sqlite_file(url))  # type: ignore[attr-defined]
        error = error.__cause__


def _use_wal(engine: sqlalchemy.Engine, url: str) -> None:
    """Use WAL: readers and writers work at once; NORMAL still survives a crash.

    The pool is emptied so that every later connection passes here.
    """

    def set_pragmas(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    def whose_it_is(context: sqlalchemy.engine.ExceptionContext) -> None:
        error = context.original_exception
        _name_the_file(error, url)
        name = getattr(error, "sqlite_errorname", "")
        moved = name == "SQLITE_READONLY_DBMOVED"  # or deleted
        if name.startswith("SQLITE_READONLY") and not moved and not disk_trouble(error):
            raise UserError(f"{sqlite_file(url)}: {error}; may you write it, and its folder?")

    sqlalchemy.event.listen(engine, "connect", set_pragmas)
    sqlalchemy.event.listen(engine, "handle_error", whose_it_is)
    engine.dispose()
