"""Which points of a grid train together as one batched model, and the trials that stand for them.

A batch's points are written down before its trials are made. Whatever becomes of the driver then,
the next one takes the same batch up: the same run, which goes on from its checkpoint or is answered
from its record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from knee_tune.planning.plan import Replica, TrainPlan
from knee_tune.runs.processes import process_id
from knee_tune.tuning.asking import retaken
from knee_tune.tuning.fused import FusedTrial
from knee_tune.tuning.points import Axis, Point, untried
from knee_tune.tuning.recovery import BATCH, current, params_of
from knee_tune.tuning.trial import Search

MAX_REPLICAS = 4096
"""Models in one batch; more of them gain nothing."""

MAX_PARAMETERS = 50_000_000
"""Of all models in one batch: with gradients, momenta, kept weights and what is copied where a
trunk branches, they take some two gigabytes, which a laptop has."""

MAX_TRIALS = 256
"""Trials in one batch: the storage hears of each of them at every evaluation and heartbeat, which
takes a millisecond or two."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Trials that train as one fused run."""

    name: str
    """Its trials note it, the study attribute of that name lists its points."""
    points: tuple[Point, ...]
    """Of all its trials, also of those that were told before."""
    plan: TrainPlan
    """Its replicas are every random seed of the first point, then of the second, ..."""
    trials: Mapping[int, FusedTrial]
    """Those that are to be told, by the place of their point; none if others were quicker."""


def take_batch(search: Search, *, slot: int, trials: int | None) -> Batch | None:
    """The next batch of the study, its trials running; None if the study wants no more of them.

    Call it where no other driver does (see :func:`knee_tune.tuning.asking.asking_lock`). The
    study is to have ``trials`` trials, or every point of the grid if None.
    """
    study, axes = search.study, search.axes
    known = study.get_trials(deepcopy=False)
    alive = current(known)
    queued = {
        point: trial
        for trial in alive
        if trial.state == TrialState.WAITING and (point := _point_of(trial, axes)) is not None
    }
    left = len(untried((), axes))
    if trials is not None:
        begun = sum(trial.state != TrialState.WAITING for trial in alive)
        left = max(0, trials - begun)
    points = _broken_off(study, queued, left=left)
    if not points:
        points = sorted({*queued, *untried(known, axes)})
        replicas = min(MAX_REPLICAS, MAX_PARAMETERS // max(1, search.parameters))
        points = points[: min(left, MAX_TRIALS, max(1, replicas // len(search.seeds)))]
    if not points:
        return None
    plan = _plan(search, points, slot=slot)
    name = f"{BATCH}:{plan.checkpoint_dir.name}"
    study.set_user_attr(name, points)
    tried = {_point_of(trial, axes) for trial in alive} - queued.keys()
    running = dict[int, FusedTrial]()
    for place, point in enumerate(points):
        if retaken(search.asking):  # meanwhile others may have asked
            now = current(study.get_trials(deepcopy=False))
            tried = {_point_of(trial, axes) for trial in now} - queued.keys()
        if point in tried:
            continue
        trial = _running(search, point, queued.get(point), batch=name)
        if trial is not None:
            running[place] = FusedTrial(trial, search)
    for run in running.values():
        run.begin(plan)
    return Batch(name=name, points=tuple(points), plan=plan, trials=running)


def _broken_off(
    study: optuna.Study, queued: Mapping[Point, FrozenTrial], *, left: int
) -> list[Point]:
    """The points of the batch that queued trials are left of, if there are that many left."""
    attrs = study.user_attrs
    for trial in queued.values():
        points = [tuple(point) for point in attrs.get(trial.user_attrs.get(BATCH, ""), ())]
        if points and sum(point in queued for point in points) <= left:
            return points
    return []


def _plan(search: Search, points: Sequence[Point], *, slot: int) -> TrainPlan:
    values = [dict(zip(search.axes, point, strict=True)) for point in points]
    schedules = [search.schedule(at["seed_lr"], at["explore_fraction"]) for at in values]
    replicas = [
        Replica(seed=seed, schedule=schedule) for schedule in schedules for seed in search.seeds
    ]
    return search.plan(
        schedules[0],
        log_key=f"batch-of-{len(points)}",
        seed=search.seeds[0],
        slot=slot,
        replicas=replicas,
    )


def _running(
    search: Search, point: Point, queued: FrozenTrial | None, *, batch: str
) -> optuna.Trial | None:
    """The trial of a point: the queued one, unless another driver was quicker, else a new one.

    To ask Optuna for hundreds, one by one, would take many seconds.
    """
    study, storage = search.study, search.study._storage
    if queued is not None:
        trial_id = queued._trial_id
        if queued.datetime_start is not None and isinstance(storage, BaseHeartbeat):
            storage.record_heartbeat(trial_id)  # it was put back, and beat last hours ago
        if not storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            return None
        storage.set_trial_user_attr(trial_id, BATCH, batch)
    else:
        distributions = {name: axis.distribution() for name, axis in search.axes.items()}
        trial_id = storage.create_new_trial(
            study._study_id,
            template_trial=optuna.create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(search.axes, point, strict=True)),
                distributions=dict(distributions),
                user_attrs={"driver": process_id(), BATCH: batch},
            ),
        )
    return optuna.Trial(study, trial_id)


def _point_of(trial: FrozenTrial, axes: Mapping[str, Axis]) -> Point | None:
    """Where a trial is, or will be; None if the grid has no such point."""
    params = params_of(trial)
    if not all(params.get(name) in axis.points for name, axis in axes.items()):
        return None
    return tuple(params[name] for name in axes)
