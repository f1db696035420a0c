"""Errors that people are told in one line, by whose they are, and what any error says in one."""

import errno
import os
import re

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_OF_SQLITE = {
    "SQLITE_FULL": errno.ENOSPC,
    "SQLITE_READONLY": errno.EROFS,
    "SQLITE_IOERR": errno.EIO,
}


GOES_ON = "once that is put right, the same command goes on"
"""What is said of a disk."""


class UserError(Exception):
    """Bad input, data and code of one's own included: one line, exit code 2.

    The line says what is wrong, where, and what to do. Every exception that is neither this nor a
    :class:`MachineError` is ours and keeps its traceback (exit code 1).
    """

    exit_code = 2


class MachineError(Exception):
    """No input's fault: one line, exit code 1, and the same command goes on.

    The machine ended a process, a disk is full, a server is gone; or something of ours went wrong
    in a rank, whose log has the traceback.
    """

    exit_code = 1


def disk_trouble(error: BaseException | None) -> str | None:
    """What a full, read-only or broken disk said, with its path, if that is behind ``error``."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _said_errno(error)
        if number in _OF_DISKS:
            path = getattr(error, "filename", None)
            said = (isinstance(error, OSError) and error.strerror) or os.strerror(number)
            return f"{path}: {said}" if path else said
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _said_errno(error: BaseException) -> int | None:
    """The number behind an error of SQLite, or of a library in Rust that only writes it down."""
    sqlite = str(getattr(error, "sqlite_errorname", ""))
    for name, number in _OF_SQLITE.items():
        if sqlite.startswith(name):
            return number
    written = re.search(r"\(os error (\d+)\)", str(error))
    return int(written[1]) if written else None


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
