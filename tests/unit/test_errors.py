"""What an error says, what of a text from elsewhere is shown, how a command ends with an error."""

import errno
import os
import sqlite3
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import typer

from knee_tune.cli import main
from knee_tune.errors import (
    LONGEST,
    MachineError,
    UserError,
    disk_trouble,
    first_line,
    one_line,
    printable,
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "no"),
        (ValueError("\n  what is wrong\n  and much more"), "what is wrong"),
        (OSError("no answer\r\nfrom there"), "no answer"),
        (ValueError("\x1b[0m\nwhat is wrong"), "what is wrong"),
        (AssertionError(), "AssertionError"),
        (KeyboardInterrupt(" \n"), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_says_something(error: BaseException, line: str) -> None:
    assert first_line(error) == line


def full(path: str = "/home/optuna.db") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_a_disk_is_told_with_its_path_wherever_in_a_chain_it_is() -> None:
    error = RuntimeError("torch: unexpected pos")
    error.__cause__ = full("/data/x")
    assert disk_trouble(error) == "/data/x: No space left on device"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_disks_say(number: int) -> None:
    assert disk_trouble(OSError(number, os.strerror(number))) == os.strerror(number)


def test_libraries_that_only_write_it_down() -> None:
    assert disk_trouble(Exception("I/O error: No space left on device (os error 28)"))
    assert disk_trouble(Exception("I/O error: Permission denied (os error 13)")) is None


def test_sqlite_has_its_own_words_for_it() -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as raised:
            database.executemany("INSERT INTO t VALUES (?)", [("x" * 9000,)] * 9)
    assert disk_trouble(raised.value) == "No space left on device"


def read_only(name: str = "SQLITE_READONLY") -> sqlite3.Error:
    error = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorname = name
    error.filename = "/home/optuna.db"  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("flags", "said"), [(os.ST_RDONLY, "/home/optuna.db: Read-only file system"), (0, None)]
)
def test_a_database_that_may_not_be_written_is_a_disk_if_its_file_system_is_read_only(
    flags: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    assert disk_trouble(read_only()) == said


def test_a_database_that_was_moved_is_no_disk() -> None:
    assert disk_trouble(read_only("SQLITE_READONLY_DBMOVED")) is None


def test_other_errors_are_no_disks() -> None:
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
    assert disk_trouble(KeyError("x")) is None


ENDS: list[tuple[Exception, int, str]] = [
    (UserError("`trials` 0: at least one"), 2, "knee-tune: --trials 0: at least one"),
    (UserError("`best` of 3: no `fuse=False`"), 2, "knee-tune: `best` of 3: no --no-fuse"),
    (MachineError("rank 0 was killed"), 1, "knee-tune: rank 0 was killed"),
    (
        full(),
        1,
        "knee-tune: /home/optuna.db: No space left on device; fix that, and the same command "
        "continues",
    ),
]


@pytest.mark.parametrize(("error", "code", "line"), ENDS)
def test_every_such_end_of_a_command_is_one_line_and_its_exit_code(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def run(trials: int = 1, fuse: bool = True) -> None:
        raise error

    monkeypatch.setattr("knee_tune.cli.commands.app", app)
    monkeypatch.setattr(sys, "argv", ["knee-tune", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines() == [line]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c\x1b(Bd", "abcd"),
        ("\x1b]52;c;never ended", ""),
        ("\x9b31mred\x07\x08\x7f\x00", "31mred"),
        ("file\u202egpj.exe\u2066\u200f\ufeff", "filegpj.exe"),
        ("a\tb\rc\x0bd\u2028e", "a b c d e"),
        ("two\nlines", "two\nlines"),
        ("\udcff", "?"),
        *(
            (same, same)
            for same in ("grüße, 漢字", "👩\u200d💻", "می\u200cخواهم", "[bold] :smile:")
        ),
    ],
)
def test_a_text_from_elsewhere_steers_no_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_line_is_one_line_and_cut_in_the_middle() -> None:
    assert one_line("  a\n\n b ") == "a b"
    long = one_line("what is wrong " + "x" * 10_000 + " what to do")
    assert len(long) == LONGEST
    assert long.startswith("what is wrong xx")
    assert " ... " in long
    assert long.endswith("xx what to do")
