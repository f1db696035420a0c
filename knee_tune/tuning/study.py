"""One Optuna study as knee-tune keeps it: what is stored where, and what a trial's end means."""

import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import optuna
import psutil
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.errors import UserError
from knee_tune.specs import records
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.records import BaselineRecord, Evaluation, StudyRecord, TrialRecord
from knee_tune.specs.study import StudySpec
from knee_tune.tuning.quiet import quiet_optuna

Study = optuna.Study
"""What the rest of knee-tune passes around without importing Optuna."""

RETRY_LIMIT = 2
"""Times a trial is started again after its driver died."""

FIXED_FIELDS = ("task", "recipe", "seed")
"""What may not change while a study lives: its trials would no longer be comparable."""

BASELINE_PREFIX = "baseline:"
"""Study attributes that hold the runs of other schedules."""

_STATES: Mapping[TrialState, records.TrialState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def open_study(storage: BaseStorage, spec: StudySpec, *, recipe: Recipe) -> optuna.Study:
    """The study of that name, made on first use.

    UserError if a study of that name was made with another task, recipe or seed.
    """
    objective, watched = recipe.metric(recipe.objective), recipe.metric(recipe.watched)
    with quiet_optuna():
        study = optuna.create_study(
            storage=storage,
            study_name=spec.name,
            direction=objective.direction,
            load_if_exists=True,
        )
        attributes = study.user_attrs
        if "spec" not in attributes:
            study.set_user_attr("key", uuid.uuid4().hex[:8])
            study.set_user_attr("metric", f"valid_{objective.name}")
            study.set_user_attr("watched", f"valid_{watched.name}")
            study.set_user_attr("reported_sign", reported_sign(recipe))
            study.set_metric_names([f"valid_{objective.name}"])
        else:
            _refuse_changes(StudySpec.model_validate(attributes["spec"]), spec)
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        return study


def reported_sign(recipe: Recipe) -> int:
    """-1 where the watched metric improves in the other direction than the objective.

    Optuna's pruners compare what is reported in the study's own direction, so a study of BLEU is
    told the negative perplexity.
    """
    objective, watched = recipe.metric(recipe.objective), recipe.metric(recipe.watched)
    return 1 if objective.direction == watched.direction else -1


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """An existing study; UserError naming the studies there are if it does not exist."""
    with quiet_optuna():
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            known = ", ".join(sorted(study_names(storage))) or "none yet"
            raise UserError(f"study {name}: not in this storage; there are: {known}") from None


def study_names(storage: BaseStorage) -> list[str]:
    """Every study in the storage, in the order of their making."""
    return [study.study_name for study in storage.get_all_studies()]


def spec_of(study: optuna.Study) -> StudySpec:
    """The specification the study was last run with; UserError for a study not made by us."""
    if "spec" not in study.user_attrs:
        raise UserError(f"study {study.study_name}: it was not made by knee-tune")
    return StudySpec.model_validate(study.user_attrs["spec"])


def enqueue_default(study: optuna.Study, *, seed_lr: float) -> None:
    """The paper's default (the recipe's seed LR, 50 % explore) is the first trial of a study."""
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({"seed_lr": seed_lr, "explore_fraction": 0.5}, skip_if_exists=True)


def requeue(study: optuna.Study, trial: FrozenTrial, *, counts: bool = True) -> None:
    """Put a trial that did not reach its end back into the queue, with its run and checkpoints.

    ``counts`` is whether this uses up one of its retries (an interrupt does not).
    """
    retries = trial.user_attrs.get("retries", 0) + int(counts)
    if retries > RETRY_LIMIT:
        return
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, "retries": retries, "continues": trial.number},
            system_attrs=dict(trial.system_attrs),
            intermediate_values=trial.intermediate_values,
        )
    )


def driver_id() -> dict[str, Any]:
    """This process, so that another can tell whether it still lives."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process.create_time()}


def fail_trials_of_dead_drivers(study: optuna.Study) -> list[FrozenTrial]:
    """Tell and requeue every running trial whose driver ran on this host and is gone.

    Drivers on other hosts are judged by their heartbeat, which Optuna checks before every trial.
    """
    dead = [
        trial
        for trial in study.get_trials(states=(TrialState.RUNNING,))
        if (driver := trial.user_attrs.get("driver")) is not None
        and driver["host"] == socket.gethostname()
        and not _lives(driver)
    ]
    for trial in dead:
        study._storage.set_trial_user_attr(trial._trial_id, "reason", "its driver was killed")
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.number not in continued_numbers(study.trials):
            requeue(study, trial)
    return dead


def continued_numbers(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the trials that did not reach their end and live on under another number."""
    return {trial.user_attrs["continues"] for trial in trials if "continues" in trial.user_attrs}


def study_record(study: optuna.Study) -> StudyRecord:
    """The study and its trials as reports read them; a continued trial appears once."""
    spec = spec_of(study)
    trials = study.get_trials(deepcopy=False)
    continued = continued_numbers(trials)
    return StudyRecord(
        name=study.study_name,
        task=spec.task,
        metric=study.user_attrs["metric"],
        direction="minimize" if study.direction == StudyDirection.MINIMIZE else "maximize",
        trials=tuple(
            _trial_record(trial, study.user_attrs)
            for trial in trials
            if trial.number not in continued and trial.params
        ),
        spec=spec,
        baselines=tuple(
            BaselineRecord.model_validate(value)
            for name, value in study.user_attrs.items()
            if name.startswith(BASELINE_PREFIX)
        ),
    )


def record_baseline(study: optuna.Study, record: BaselineRecord) -> None:
    """Keep a run of another schedule with the study, one per schedule and seed LR."""
    name = f"{BASELINE_PREFIX}{record.schedule}:{record.seed_lr:g}"
    study.set_user_attr(name, record.model_dump(mode="json"))


def _trial_record(trial: FrozenTrial, study_attrs: Mapping[str, Any]) -> TrialRecord:
    attrs = trial.user_attrs
    watched, sign = study_attrs["watched"], study_attrs["reported_sign"]
    curve = tuple(
        Evaluation(step=step, metrics={watched: sign * value})
        for step, value in sorted(trial.intermediate_values.items())
    )
    started, ended = trial.datetime_start, trial.datetime_complete
    state = _STATES[trial.state]
    return TrialRecord(
        number=trial.number,
        seed_lr=trial.params["seed_lr"],
        explore_fraction=trial.params["explore_fraction"],
        state=state,
        value=trial.value if state == "complete" else None,
        metrics=attrs.get("metrics", {}),
        curve=curve,
        steps_trained=attrs.get("steps_trained", 0),
        steps_budget=attrs.get("steps_budget", 0),
        reason=attrs.get("reason", ""),
        started=started.timestamp() if started else None,
        seconds=(ended - started).total_seconds() if started and ended else None,
        run_id=attrs.get("mlflow_run_id"),
        run_url=attrs.get("mlflow_run_url"),
        checkpoint=attrs.get("checkpoint"),
        seed=attrs.get("seed"),
    )


def _lives(driver: dict[str, Any]) -> bool:
    try:
        started: float = psutil.Process(driver["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    then: float = driver["started"]
    return abs(started - then) < 1  # another process may have got its pid


def _refuse_changes(old: StudySpec, new: StudySpec) -> None:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for field in FIXED_FIELDS:
        for path, was, now in _differences(field, before[field], after[field]):
            raise UserError(
                f"study {new.name}: it was made with {path}={json.dumps(was)}, not "
                f"{json.dumps(now)}; choose another --study-name"
            )


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield path, old, new
