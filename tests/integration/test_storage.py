"""Optuna's storage as several processes and a killed one need it."""

import importlib
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import event

from knee_tune.errors import UserError, disk_trouble
from knee_tune.study.patient_storage import PatientStorage, note_together
from knee_tune.study.storage import open_storage, preload
from knee_tune.study.study import study_names


def test_sqlite_is_opened_in_wal_mode(tmp_path: Path) -> None:
    study_names(open_storage(f"sqlite:///{tmp_path}/optuna.db"))
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def facts(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial; as text what was reported, since NaN is not equal to itself."""
    reported = repr(sorted(trial.intermediate_values.items()))
    return vars(trial) | {"intermediate_values": reported}


def test_a_whole_study_is_read_as_optuna_itself_reads_it(tmp_path: Path) -> None:
    """In fewer seconds: a study of thousands of trials is looked at again and again."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(storage=open_storage(url), study_name="mine")
    optuna.create_study(storage=open_storage(url), study_name="another").ask()
    study.enqueue_trial({"lr": 0.5})
    for number in range(4):
        trial = study.ask()
        value = trial.suggest_float("lr", 0.1, 1.0, log=True)
        trial.suggest_float("fraction", 0, 1)
        trial.set_user_attr("plan", {"steps": [1, 2], "number": number})
        for step in (3, 1, 2):
            trial.report(value * step, step)
        trial.report(float("nan"), 4)
        if number:
            study.tell(trial, [value, float("inf"), float("-inf")][number - 1])
    study.ask()
    study.enqueue_trial({"lr": 0.2})

    found, same = open_storage(url), RDBStorage(url)
    identity = found.get_study_id_from_name("mine")
    ours, optunas = found.get_all_trials(identity), same.get_all_trials(identity)
    assert [facts(trial) for trial in ours] == [facts(trial) for trial in optunas]
    assert len(ours) == 6
    first, *_, last = (trial._trial_id for trial in ours)
    for included, newer_than in (({first, last}, last - 2), (set[int](), first), ({first}, last)):
        read = [
            storage._get_trials(identity, None, included, newer_than) for storage in (found, same)
        ]
        assert [facts(trial) for trial in read[0]] == [facts(trial) for trial in read[1]]
    with pytest.raises(KeyError):
        found.get_all_trials(99)


def test_notes_that_are_set_together_are_there_for_everybody(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    trials = [optuna.create_study(storage=storage).ask() for storage in (open_storage(url), None)]
    for trial in trials:
        note_together(trial, {"plan": {"steps": [1]}, "code": "a"})
        note_together(trial, {"code": "b"})
        assert trial.user_attrs == {"plan": {"steps": [1]}, "code": "b"}
    assert RDBStorage(url).get_trial(trials[0]._trial_id).user_attrs == trials[0].user_attrs


def test_processes_that_start_together_make_the_tables_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from knee_tune.study.storage import open_storage; print(flush=True); "
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
        ("optuna.db", "`storage` optuna.db: not an SQLAlchemy URL"),
        ("nosuch://me:secret@host/db", "`storage` nosuch://me:***@host/db: its database driver is"),
        ("sqlite:////no/such/folder/optuna.db", "is the folder there"),
    ],
)
def test_a_storage_that_cannot_be_opened_gets_one_line(url: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        open_storage(url)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Full(sqlite3.Connection):
    """To a database on a disk that has no more room."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA max_page_count = 2")


def test_a_storage_that_is_opened_on_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"connect_args": {"factory": Full}}
    monkeypatch.setattr("knee_tune.study.storage.engine_options", lambda url: options)
    with pytest.raises(Exception, match="database or disk is full") as full:
        open_storage(f"sqlite:///{tmp_path}/optuna.db")
    assert disk_trouble(full.value) == f"{tmp_path}/optuna.db: No space left on device"
    assert not isinstance(full.value, UserError)


@pytest.fixture
def protected(tmp_path: Path) -> tuple[PatientStorage, int]:
    """A storage whose file may not be written any more, and a trial in it."""
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = storage.create_new_study([StudyDirection.MINIMIZE], "a")
    trial = storage.create_new_trial(study)
    event.listen(storage.engine, "connect", lambda line, _: line.execute("PRAGMA query_only = ON"))
    storage.remove_session()
    storage.engine.dispose()
    return storage, trial


def test_a_database_that_may_not_be_written_is_named(
    protected: tuple[PatientStorage, int], tmp_path: Path
) -> None:
    storage, trial = protected
    with pytest.raises(UserError, match="may you write it") as refusal:
        storage.set_trial_user_attr(trial, "key", 1)
    assert str(refusal.value).startswith(f"{tmp_path}/optuna.db: attempt to write a readonly")


def test_a_heartbeat_that_is_not_written_ends_nothing(
    protected: tuple[PatientStorage, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, trial = protected
    storage.record_heartbeat(trial)

    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise StorageInternalError("during the commit") from error

    monkeypatch.setattr(RDBStorage, "record_heartbeat", full)
    storage.record_heartbeat(trial)


def test_what_cannot_be_imported_ahead_is_left_to_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command that ends with its one line, while this goes on, ends with no traceback."""

    def broken(name: str) -> None:
        raise RuntimeError("can't register atexit after shutdown")

    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    monkeypatch.setattr(importlib, "import_module", broken)
    preload(sampler="gp").join()
    assert not told
