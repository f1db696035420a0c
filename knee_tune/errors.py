"""Errors that people are told in one line, by whose they are, and what may stand in a line."""

import errno
import os
import re
import unicodedata

from knee_tune.urls import without_secrets

LONGEST = 500
"""Characters of a line that came from elsewhere."""

_MOST_READ = 20_000
"""Characters of a text from elsewhere that are looked at: the middle of more is never shown."""

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])", re.DOTALL
)
"""What a terminal takes for orders: colours, titles, links, cursor moves."""

_JOINERS = "\u200c\u200d"
"""Characters that some scripts, and emoji, are written with, though nothing is seen of them."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room says, or a quota."""

_OF_DISKS = (*FULL, errno.EROFS, errno.EIO)
_OF_SQLITE = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_IOERR": errno.EIO}

CONTINUES = "fix that, and the same command continues"
"""What to do about a disk."""


class UserError(Exception):
    """Bad input, data and code of one's own included: one line, exit code 2.

    The line says what is wrong, where, and what to do. It has the fields that it is about in
    backticks, ``amp`` or ``amp=False``, which the command line shows as its flags. Every exception
    that is neither this nor a :class:`MachineError` is ours and keeps its traceback (exit code 1).
    """

    exit_code = 2


class MachineError(Exception):
    """No input's fault: one line, exit code 1, and the same command continues.

    The machine ended a process, a disk is full, a server is gone; or something of ours went wrong
    in a rank, whose log has the traceback.
    """

    exit_code = 1


class HomeGoneError(MachineError):
    """The home was deleted, moved or replaced while a command worked in it."""


def disk_trouble(error: BaseException | None) -> str | None:
    """Return what a full, read-only or broken disk behind ``error`` said, with its path."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _said_errno(error)
        if number in _OF_DISKS:
            path = getattr(error, "filename", None)
            said = (isinstance(error, OSError) and error.strerror) or os.strerror(number)
            return f"{path}: {said}" if path else said
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def refused_outright(error: BaseException) -> bool:
    """Whether an HTTP server answered and will say the same again: it is neither away nor busy."""
    from urllib.error import HTTPError  # slow

    return isinstance(error, HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)


def _said_errno(error: BaseException) -> int | None:
    """The number behind an error of SQLite, or of a library in Rust that only writes it down."""
    sqlite = str(getattr(error, "sqlite_errorname", ""))
    for name, number in _OF_SQLITE.items():
        if sqlite.startswith(name):
            return number
    if sqlite.startswith("SQLITE_READONLY") and _is_read_only(getattr(error, "filename", "")):
        return errno.EROFS  # else it is the file: its rights, or that it is gone
    written = re.search(r"\(os error (\d+)\)", str(error))
    return int(written[1]) if written else None


def _is_read_only(path: str) -> bool:
    """Whether it lies on a file system that nobody may write."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def first_line(error: BaseException) -> str:
    """Return what an error says, as :func:`one_line`; the name of its type if it says nothing."""
    lines = printable(str(error)).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


def one_line(text: str, *, longest: int = LONGEST) -> str:
    """Return a text from elsewhere as it may be shown: printable, in one line, without secrets.

    Of what is longer than ``longest`` characters the middle is left out.
    """
    if len(text) > _MOST_READ:
        text = f"{text[: _MOST_READ // 2]} ... {text[-_MOST_READ // 2 :]}"
    line = without_secrets(" ".join(printable(text).split()))
    if len(line) <= longest:
        return line
    tail = longest // 3
    return f"{line[: longest - tail - 5]} ... {line[-tail:]}"


def printable(text: str) -> str:
    """Return ``text`` without what steers a terminal or turns the direction of writing.

    Line ends stay, tabs become spaces, and what is no character at all becomes a question mark.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, _ESCAPES.sub("", text)))


def _shown(character: str) -> str:
    if character == "\n" or character in _JOINERS:
        return character
    match unicodedata.category(character):
        case "Cc":
            return " " if character.isspace() else ""
        case "Zl" | "Zp":
            return " "
        case "Cf":
            return ""
        case "Cs":
            return "?"
    return character
