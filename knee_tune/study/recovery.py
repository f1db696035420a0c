"""Trials that did not reach their end: told, put back into the queue, counted once."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from knee_tune.records.events import TrialFinished
from knee_tune.records.values import RunEnd
from knee_tune.runs.locks import lives, process_id
from knee_tune.study.events import Recorder
from knee_tune.study.storage import GRACE_SECONDS, OnStale, quiet_optuna

KILLED = "its driver was killed"

_NOT_INHERITED = ("driver", "reason")
"""What was true of the attempt that ended, not of the one that continues it."""

LEFT = "left"
"""Noted with a trial's driver once that gave the trial up: who takes it up signs it a moment later.

As long as that driver lives the trial is nobody else's to tell or to put back: it may not be in the
queue yet, or another driver may just have taken it out.
"""

BATCH = "batch"
"""Trial attribute that names the batch that the trial is a part of, if it is."""

_INHERITED_IN_A_BATCH = ("key", BATCH, "mlflow_run_id", "mlflow_run_url")
"""All that the next attempt does not note anew, with every curve: there may be hundreds of trials
to requeue, and seconds until the driver is killed."""


def key_of(trial: FrozenTrial | optuna.Trial) -> str:
    """Names a trial's checkpoints and its MLflow run, also once it got another number."""
    return str(trial.user_attrs.get("key", f"trial-{trial.number:04d}"))


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Its parameters; while it has none yet, those of the queued point that it is."""
    queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return queued | trial.params


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial that was told, but did not reach its end, under a new number.

    It goes on with its run and its checkpoints, however often: whoever takes it up was asked to by
    a person, or lives while its driver died.
    """
    attributes = {
        name: value for name, value in trial.user_attrs.items() if name not in _NOT_INHERITED
    }
    reports = trial.intermediate_values
    if BATCH in attributes:
        attributes = {
            name: attributes[name] for name in _INHERITED_IN_A_BATCH if name in attributes
        }
        reports = {}
    attributes |= {"key": key_of(trial), "continues": trial.number}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=trial.system_attrs,  # a queued point that was not yet asked for
            intermediate_values=reports,
        )
    )


def put_back(study: optuna.Study, trial_id: int, *, reason: str) -> None:
    """Queue a running trial of this driver again, under its own number, with all it has.

    UpdateFinishedTrialError if another driver took it over. What a driver that died left running
    must be told instead (see :func:`recover`): it may turn out to live.
    """
    storage = study._storage
    storage.set_trial_user_attr(trial_id, "reason", reason)
    storage.set_trial_user_attr(trial_id, "driver", {**process_id(), LEFT: True})
    storage.set_trial_state_values(trial_id, TrialState.WAITING)


def current(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that live on under another number, or ended before they began."""
    trials = list(trials)
    continued = {trial.user_attrs.get("continues") for trial in trials}
    return [
        trial
        for trial in trials
        if trial.number not in continued and (params_of(trial) or not trial.state.is_finished())
    ]


def place_of(trial: FrozenTrial, trials: Iterable[FrozenTrial]) -> int:
    """Place of a trial, or of the one it goes on with, among those asked for: 0 is the first."""
    trials = [*trials, trial]
    before = {each.number: each.user_attrs.get("continues") for each in trials}

    def origin(number: int) -> int:
        while (earlier := before.get(number)) is not None:
            number = earlier
        return number

    asked = {origin(each.number) for each in current(trials)}
    return sum(other < origin(trial.number) for other in asked)


def stale_trial_callback(recorder: Recorder) -> OnStale:
    """Callback of Optuna for a trial whose driver stopped beating."""

    def on_stale(study: optuna.Study, trial: FrozenTrial) -> None:
        requeue(study, trial)
        _record_death(recorder, trial)

    return on_stale


def recover(study: optuna.Study, recorder: Recorder, *, locked: bool) -> list[FrozenTrial]:
    """Tell and requeue every running trial whose driver is gone; those that can be seen from here.

    Call it where no other driver does, nor asks (see :func:`knee_tune.study.locks.asking_lock`);
    ``locked``: whether there is such a lock for this storage.
    All others are judged by their heartbeat (see :func:`stale_trial_callback`).
    """
    dead = []
    for trial in _running(study):
        if not _is_abandoned(trial, locked=locked):
            continue
        try:
            study._storage.set_trial_user_attr(trial._trial_id, "reason", KILLED)
            study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            continue  # another driver was quicker, and will continue it
        requeue(study, trial)
        dead.append(trial)
    for trial in dead:
        _record_death(recorder, trial)
    with quiet_optuna():
        fail_stale_trials(study)
    return dead


def give_back(study: optuna.Study, *, reason: str) -> None:
    """Put back what this very driver still has running."""
    me = process_id()
    for trial in _running(study):
        if trial.user_attrs.get("driver") == me:
            with suppress(UpdateFinishedTrialError):
                put_back(study, trial._trial_id, reason=reason)


def requeue_failed(study: optuna.Study) -> None:
    """Queue every failed trial: a command is a person's decision to try them again.

    What failed on a full disk is to go on when there is room again, and the paper's default is in
    every search. Call it once for a command, and where no other driver does (see
    :func:`knee_tune.study.locks.asking_lock`).
    """
    for trial in current(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.FAIL:
            requeue(study, trial)


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.RUNNING,))


def _record_death(recorder: Recorder, trial: FrozenTrial) -> None:
    recorder.record(TrialFinished(key=key_of(trial), state=RunEnd.FAILED, reason=KILLED))


def _is_abandoned(trial: FrozenTrial, *, locked: bool) -> bool:
    driver = trial.user_attrs.get("driver")
    if driver is not None and lives(driver) is not False:
        return False
    if driver is None or LEFT in driver:  # killed before it could sign: no heartbeat may ever tell
        grace = timedelta(seconds=0 if locked else GRACE_SECONDS)
        started = trial.datetime_start
        return started is None or datetime.now() - started > grace
    return True
