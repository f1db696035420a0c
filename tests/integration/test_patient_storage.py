"""A study whose database goes away, and comes back: nothing is lost, nothing is done twice."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from benchmarks.postgresql import PostgresServer
from knee_tune.study import locks
from knee_tune.study import storage as storages
from knee_tune.study.locks import asking_lock, retaken, take_claim
from knee_tune.study.patience import patience_with
from knee_tune.study.patient_storage import PatientStorage
from knee_tune.study.storage import open_storage

MINIMIZE = [StudyDirection.MINIMIZE]


@pytest.fixture
def storage(tmp_path: Path) -> PatientStorage:
    return open_storage(f"sqlite:///{tmp_path}/optuna.db")


@contextmanager
def lost_answer(storage: PatientStorage, *, committed: bool) -> Iterator[list[bool]]:
    """The next commit's answer is lost, and the commit too unless it got through."""
    commit, lost = storage.engine.dialect.do_commit, list[bool]()

    def do_commit(connection: Any) -> None:
        if committed or lost:
            commit(connection)
        if not lost:
            lost.append(True)
            error = sqlite3.OperationalError("the connection is lost")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.engine.dialect, "do_commit", do_commit)
        yield lost


Change = Callable[[PatientStorage, int], Any]


def claim(storage: PatientStorage, trial: int) -> None:
    assert storage.set_trial_state_values(trial, TrialState.RUNNING)


def complete(storage: PatientStorage, trial: int) -> None:
    claim(storage, trial)
    assert storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.5])


def put_back(storage: PatientStorage, trial: int) -> None:
    claim(storage, trial)
    assert storage.set_trial_state_values(trial, TrialState.WAITING)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize(
    ("prepare", "state", "values"),
    [
        (None, TrialState.RUNNING, None),
        (claim, TrialState.COMPLETE, [0.5]),
        (claim, TrialState.FAIL, None),
        (claim, TrialState.WAITING, None),
    ],
)
def test_a_change_of_state_whose_answer_is_lost_is_ours(
    storage: PatientStorage,
    prepare: Change | None,
    state: TrialState,
    values: list[float] | None,
    *,
    committed: bool,
) -> None:
    study = storage.create_new_study(MINIMIZE, "a")
    trial = storage.create_new_trial(study, create_trial(state=TrialState.WAITING))
    if prepare is not None:
        prepare(storage, trial)
    with lost_answer(storage, committed=committed) as lost:
        assert storage.set_trial_state_values(trial, state, values)
    assert lost
    assert storage.get_trial(trial).state == state
    assert storage.get_trial(trial).values == values


@pytest.mark.parametrize("committed", [True, False])
def test_a_trial_whose_making_was_not_answered_is_made_once(
    storage: PatientStorage, *, committed: bool
) -> None:
    study = storage.create_new_study(MINIMIZE, "a")
    template = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": 1}})
    for number, wanted in enumerate((None, template)):
        with lost_answer(storage, committed=committed):
            made = storage.create_new_trial(study, wanted)
        assert storage.get_trial(made).number == number
    assert [trial.state for trial in storage.get_all_trials(study)] == [
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    assert storage.get_trial(made).system_attrs["fixed_params"] == {"x": 1}


@pytest.mark.parametrize("committed", [True, False])
def test_a_study_whose_making_was_not_answered_is_ours(
    storage: PatientStorage, *, committed: bool
) -> None:
    with lost_answer(storage, committed=committed):
        study = storage.create_new_study(MINIMIZE, "a")
    assert [each._study_id for each in storage.get_all_studies()] == [study]
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study(MINIMIZE, "a")


def test_what_another_driver_did_is_not_ours(storage: PatientStorage) -> None:
    study = storage.create_new_study(MINIMIZE, "a")
    trial = storage.create_new_trial(study, create_trial(state=TrialState.WAITING))
    claim(storage, trial)
    assert not storage.set_trial_state_values(trial, TrialState.RUNNING)
    storage.set_trial_state_values(trial, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, TrialState.FAIL)


@pytest.mark.parametrize("committed", [True, False])
def test_what_is_noted_is_noted(storage: PatientStorage, *, committed: bool) -> None:
    study = storage.create_new_study(MINIMIZE, "a")
    trial = storage.create_new_trial(study)
    writes: tuple[Callable[[], None], ...] = (
        lambda: storage.set_trial_param(trial, "x", 0.5, FloatDistribution(0, 1)),
        lambda: storage.set_trial_user_attr(trial, "key", 1),
        lambda: storage.set_trial_intermediate_value(trial, 1, 0.25),
        lambda: storage.set_study_user_attr(study, "key", 2),
    )
    for write in writes:
        with lost_answer(storage, committed=committed) as lost:
            write()
        assert lost
    found = storage.get_trial(trial)
    assert (found.params, found.user_attrs, found.intermediate_values) == (
        {"x": 0.5},
        {"key": 1},
        {1: 0.25},
    )
    assert storage.get_study_user_attrs(study) == {"key": 2}


def test_a_locked_database_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storages, "SQLITE_TIMEOUT", 0.01)
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    with sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=storage.create_new_study, args=(MINIMIZE, "a"))
        waiting.start()
        while not caplog.messages:
            waiting.join(0.01)
        assert "cannot be used now (database is locked)" in caplog.messages[0]
        other.rollback()
        waiting.join()
    assert [study.study_name for study in storage.get_all_studies()] == ["a"]


def test_a_missed_heartbeat_ends_nothing_and_nobody_is_judged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "SQLITE_TIMEOUT", 0.01)
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    study = storage.create_new_study(MINIMIZE, "a")
    trial = storage.create_new_trial(study)
    storage.record_heartbeat(trial)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    assert storage._get_stale_trial_ids(study) == [trial]
    with sqlite3.connect(tmp_path / "optuna.db") as other:
        other.execute("BEGIN IMMEDIATE")
        storage.record_heartbeat(trial)
        other.rollback()
    assert storage._get_stale_trial_ids(study) == []  # every driver may have missed a beat


@pytest.mark.parametrize("immediately", [False, True])
def test_a_server_that_restarts_is_outlasted(
    postgres_server: PostgresServer, *, immediately: bool
) -> None:
    storage = open_storage(postgres_server.url)
    study = storage.create_new_study(MINIMIZE, f"restart-{immediately}")
    storage.create_new_trial(study)
    postgres_server.stop(immediately=immediately)
    storage.record_heartbeat(1)
    back = threading.Timer(0.5, postgres_server.start)
    back.start()
    trial = storage.create_new_trial(study)
    back.join()
    assert storage.get_trial(trial).number == 1


def test_after_a_restart_nobody_is_judged_by_who_did_not_see_it(
    postgres_server: PostgresServer,
) -> None:
    storage = open_storage(postgres_server.url)
    study = storage.create_new_study(MINIMIZE, "stale")
    trial = storage.create_new_trial(study)
    storage.record_heartbeat(trial)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    postgres_server.restart()
    patience_with.cache_clear()  # a new command
    storage = open_storage(postgres_server.url)
    assert storage._get_stale_trial_ids(study) == []
    storage.grace_period = 0
    assert storage._get_stale_trial_ids(study) == [trial]


def test_of_hundreds_of_trials_one_finds_the_database_away(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt takes ten seconds where a server drops what it gets."""
    tried = list[int]()

    def away(_: RDBStorage, trial: int) -> None:
        tried.append(trial)
        raise OperationalError("", {}, Exception("timeout"), connection_invalidated=True)

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, "record_heartbeat", away)
        for trial in range(256):
            storage.record_heartbeat(trial)
    assert tried == [0]
    storage.get_all_studies()  # it is back
    monkeypatch.setattr(RDBStorage, "record_heartbeat", lambda _, trial: tried.append(trial))
    storage.record_heartbeat(1)
    assert tried == [0, 1]


def test_a_lock_that_a_restart_freed_is_noticed_and_taken_again(
    postgres_server: PostgresServer,
) -> None:
    mine, other = (asking_lock(postgres_server.url, study="a") for _ in range(2))
    with mine:
        assert not retaken(mine)
        postgres_server.restart()
        with other:
            pass
        assert retaken(mine)
        assert not retaken(mine)
        postgres_server.restart(immediately=True)
    with other:  # nothing is held, and nothing was raised
        pass


def test_after_a_restart_a_claim_is_still_its_holders(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(locks, "PRECEDENCE_SECONDS", 4.0)
    claimed = take_claim(postgres_server.url, "row-0-1")
    assert claimed is not None
    with claimed:
        postgres_server.restart(immediately=True)
        assert take_claim(postgres_server.url, "row-0-1") is None
    free = take_claim(postgres_server.url, "row-0-1")
    assert free is not None
    with free:
        pass
