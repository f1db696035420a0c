"""Trials that did not reach their end: told, put back into the queue, counted once."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from knee_tune.runs.processes import lives, process_id
from knee_tune.specs.tracking import TrialFinished
from knee_tune.tuning.listeners import Recorder
from knee_tune.tuning.quiet import quiet_optuna
from knee_tune.tuning.storage import GRACE_SECONDS, OnStale

RETRY_LIMIT = 2
"""Times a trial is started again after its driver died."""

KILLED = "its driver was killed"

_NOT_INHERITED = ("driver", "reason")
"""What was true of the attempt that ended, not of the one that continues it."""

BATCH = "batch"
"""Trial attribute that names the batch that the trial is a part of, if it is."""

_INHERITED_IN_A_BATCH = ("key", "retries", BATCH, "mlflow_run_id", "mlflow_run_url")
"""All that the next attempt does not note anew, with every curve: there may be hundreds of trials
to requeue, and seconds until the driver is killed."""


def driver_id() -> dict[str, Any]:
    """This process, so that another can tell whether it still lives."""
    return process_id()


def key_of(trial: FrozenTrial | optuna.Trial) -> str:
    """Names a trial's checkpoints and its MLflow run, also once it got another number."""
    return str(trial.user_attrs.get("key", f"trial-{trial.number:04d}"))


def requeue(study: optuna.Study, trial: FrozenTrial, *, counts: bool = True) -> None:
    """Put a trial that did not reach its end back into the queue, with its run and checkpoints.

    ``counts`` is whether this uses up one of its retries (an interrupt does not).
    """
    attributes = {
        name: value for name, value in trial.user_attrs.items() if name not in _NOT_INHERITED
    }
    retries = attributes.get("retries", 0) + int(counts)
    if retries > RETRY_LIMIT:
        return
    reports = trial.intermediate_values
    if BATCH in attributes:
        attributes = {
            name: attributes[name] for name in _INHERITED_IN_A_BATCH if name in attributes
        }
        reports = {}
    attributes |= {"key": key_of(trial), "retries": retries, "continues": trial.number}
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


def current(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that live on under another number, or ended before they began."""
    trials = list(trials)
    continued = {trial.user_attrs.get("continues") for trial in trials}
    return [
        trial
        for trial in trials
        if trial.number not in continued and (trial.params or not trial.state.is_finished())
    ]


def stale_trial_callback(recorder: Recorder) -> OnStale:
    """What Optuna is to do with a trial whose driver stopped beating."""

    def on_stale(study: optuna.Study, trial: FrozenTrial) -> None:
        requeue(study, trial)
        _record_death(recorder, trial)

    return on_stale


def recover(study: optuna.Study, recorder: Recorder) -> list[FrozenTrial]:
    """Tell and requeue every running trial whose driver is gone; those that can be seen from here.

    All others are judged by their heartbeat (see :func:`stale_trial_callback`).
    """
    dead = _fail(study, _is_abandoned, reason=KILLED, counts=True)
    for trial in dead:
        _record_death(recorder, trial)
    with quiet_optuna():
        fail_stale_trials(study)
    return dead


def give_back(study: optuna.Study, *, reason: str) -> None:
    """Tell and requeue what this very driver still has running, at no cost of a retry."""
    me = driver_id()
    _fail(study, lambda trial: trial.user_attrs.get("driver") == me, reason=reason, counts=False)


def requeue_failed(study: optuna.Study) -> None:
    """Put every failed trial back into the queue: a grid is to be whole.

    It uses up no retry, for a command is a person's decision: what failed on a full disk is to go
    on when there is room again. Call it once for a command, and where no other driver does (see
    :func:`knee_tune.tuning.asking.asking_lock`).
    """
    for trial in current(study.get_trials(deepcopy=False)):
        if trial.state == TrialState.FAIL:
            requeue(study, trial, counts=False)


def _fail(
    study: optuna.Study, which: Callable[[FrozenTrial], bool], *, reason: str, counts: bool
) -> list[FrozenTrial]:
    failed = []
    for trial in filter(which, study.get_trials(states=(TrialState.RUNNING,))):
        try:
            study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            continue  # another driver was quicker, and will continue it
        requeue(study, trial, counts=counts)
        failed.append(trial)
    return failed


def _record_death(recorder: Recorder, trial: FrozenTrial) -> None:
    recorder.record(TrialFinished(key=key_of(trial), state="FAIL", reason=KILLED))


def _is_abandoned(trial: FrozenTrial) -> bool:
    driver = trial.user_attrs.get("driver")
    if driver is None:  # killed before it could sign: no heartbeat will ever tell
        started = trial.datetime_start
        return started is None or datetime.now() - started > timedelta(seconds=GRACE_SECONDS)
    return lives(driver) is False
