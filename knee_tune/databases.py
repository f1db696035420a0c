"""What an error of a database says: whether it was away, or what it was asked is wrong."""

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from knee_tune.errors import MachineError, one_line

_LONGEST_CAUSE = 200
"""Characters of an error that a line has room for."""

_SQLSTATES = {"57P01", "57P02", "57P03", "40001", "40P01"}
"""Shut down, crashed, cannot connect now; serialization failure, deadlock."""

_SQLSTATE_CLASSES = ("08", "53")
"""Connection exceptions; insufficient resources (connections, memory, disk)."""

_MYSQL = {1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013, 2055}
"""Too many connections, shutdown, lock wait, deadlock; not reached, gone, lost."""

_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied",
    "not currently accepting connections",
    "not permitted to log in",
    "invalid port",
    "SSL was required",
)
"""Where PostgreSQL's client gives no SQLSTATE: what waiting does not mend. (A server that says it
in another language is waited for like one that is away.)"""


def is_outage(error: BaseException | None) -> bool:
    """Tell whether the database was away, or asked for a repeat: what was sent is right."""
    while error is not None and not isinstance(error, MachineError):
        if isinstance(error, PendingRollbackError):  # of a session that met an outage before
            return True
        if isinstance(error, DBAPIError):
            return error.connection_invalidated or _was_away(error)
        error = error.__cause__
    return False


def _was_away(error: DBAPIError) -> bool:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        primary = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state:
        return state in _SQLSTATES or state.startswith(_SQLSTATE_CLASSES)
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    number = next(iter(getattr(cause, "args", ())), None)
    if isinstance(number, int):
        return number in _MYSQL
    return not any(refusal in str(cause) for refusal in _REFUSALS)


def cause_of(error: BaseException) -> str:
    """Cause that the database, or its driver, gave, in one line."""
    innermost = error
    while innermost.__cause__ is not None and not isinstance(innermost, DBAPIError):
        innermost = innermost.__cause__
    said = innermost.orig if isinstance(innermost, DBAPIError) else innermost
    return one_line(str(said), longest=_LONGEST_CAUSE) or type(said).__name__
