"""Which errors of a database are an outage, and which say that something is wrong."""

import sqlite3

import pytest
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, PendingRollbackError

from knee_tune.databases import is_outage
from knee_tune.tracking.store import is_away


class Said(Exception):
    """An error of a database driver."""

    def __init__(self, *said: object, sqlstate: str | None = None, pgcode: str = "") -> None:
        super().__init__(*said)
        self.sqlstate, self.pgcode = sqlstate, pgcode


def operational(cause: BaseException) -> DBAPIError:
    return OperationalError("SELECT 1", {}, cause)


def locked(code: int = sqlite3.SQLITE_BUSY) -> DBAPIError:
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = code
    return operational(cause)


def wrapped(error: Exception) -> StorageInternalError:
    """As Optuna raises it."""
    outer = StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


REFUSED = operational(Said("connection failed: Connection refused"))


@pytest.mark.parametrize(
    "error",
    [
        *(operational(Said(sqlstate=state)) for state in ("08006", "53300", "57P01", "57P03")),
        *(operational(Said(sqlstate=state)) for state in ("40001", "40P01")),
        operational(Said(pgcode="57P02")),
        operational(Said("FATAL:  the database system is starting up")),
        operational(Said(2013, "Lost connection to MySQL server during query")),
        OperationalError("", {}, Said(), connection_invalidated=True),
        PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        locked(),
        locked(sqlite3.SQLITE_BUSY | (2 << 8)),
        locked(sqlite3.SQLITE_LOCKED),
        REFUSED,
        wrapped(REFUSED),
    ],
    ids=str,
)
def test_an_outage_is_waited_for(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        operational(Said('FATAL:  password authentication failed for user "ann"')),
        operational(Said('FATAL:  database "db" does not exist')),
        operational(Said(1045, "Access denied for user 'ann'@'host'")),
        operational(Said(sqlstate="42501")),
        IntegrityError("INSERT", {}, Said(sqlstate="23505")),
        operational(sqlite3.OperationalError("unable to open database file")),
        StorageInternalError("too long a value"),
        KeyError("no such study"),
    ],
    ids=str,
)
def test_what_waiting_does_not_mend_is_not(error: Exception) -> None:
    assert not is_outage(error)


@pytest.mark.parametrize(
    ("error", "away"),
    [(REFUSED, True), (operational(Said("FATAL:  password authentication failed")), False)],
    ids=str,
)
def test_a_tracking_store_that_refuses_a_password_is_not_away(error: Exception, away: bool) -> None:
    of_mlflow = MlflowException("as MLflow raises it")
    of_mlflow.__cause__ = error
    assert is_away(of_mlflow, "postgresql://ann@host/mlflow") is away
