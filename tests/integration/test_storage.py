"""Optuna's storage as several processes and a killed one need it."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tuning.storage import open_storage
from knee_tune.tuning.study import study_names


def test_sqlite_is_opened_in_wal_mode(tmp_path: Path) -> None:
    study_names(open_storage(f"sqlite:///{tmp_path}/optuna.db"))
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_processes_that_start_together_make_the_tables_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from knee_tune.tuning.storage import open_storage; print(flush=True); "
        "sys.stdin.readline(); open_storage(sys.argv[1]).get_all_studies()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"sqlite:///{tmp_path}/optuna.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # imported
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("optuna.db", "--storage optuna.db: not an SQLAlchemy URL"),
        ("nosuch://me:secret@host/db", "--storage nosuch://me:***@host/db: its database driver is"),
        ("sqlite:////no/such/folder/optuna.db", "is the folder there"),
    ],
)
def test_a_storage_that_cannot_be_opened_gets_one_line(url: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        open_storage(url)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
