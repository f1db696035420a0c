"""Which points of a grid train together as one batched model, and the trials that stand for them.

A batch's points are written down before its trials are made. Whatever becomes of the driver then,
the next one takes the same batch up: the same run, which goes on from its checkpoint or is cached.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from knee_tune.plans.plan import Replica, TrainPlan
from knee_tune.plans.step_note import counted_elsewhere
from knee_tune.records.study import TrialRecord
from knee_tune.records.values import RunEnd, StepCount
from knee_tune.runs.locks import process_id
from knee_tune.runs.trainer import RunResult, Trainer, error_of
from knee_tune.study.attributes import extra_steps, note_extra_steps
from knee_tune.study.dashboard import record_end
from knee_tune.study.events import (
    NO_FAULT_OF_ITS_OWN,
    TAKEN_OVER,
    Ending,
    Recorder,
    RefusedError,
    Watcher,
)
from knee_tune.study.locks import retaken
from knee_tune.study.recovery import BATCH, current, params_of, put_back
from knee_tune.study.samplers import Axes, Point, untried
from knee_tune.study.storage import HEARTBEAT_SECONDS
from knee_tune.study.study import TOLD, Study, trial_record
from knee_tune.study.trial import FusedTrial, Search
from knee_tune.study.trial_trainer import RunTraining
from knee_tune.workers.protocol import Decision, Done, Failure, Report

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


def take_batch(
    search: Search, recorder: Recorder, *, slot: int, trials: int | None
) -> Batch | None:
    """The next batch of the study, its trials running; None if the study wants no more of them.

    Call it where no other driver does (see :func:`knee_tune.study.locks.asking_lock`). The
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
    before, points = _broken_off(study, queued, left=left)
    if not points:
        points = sorted({*queued, *untried(known, axes)})
        replicas = min(MAX_REPLICAS, MAX_PARAMETERS // max(1, search.facts.parameters))
        points = points[: min(left, MAX_TRIALS, max(1, replicas // len(search.seeds)))]
    if not points:
        return None
    plan = _plan(search, points, slot=slot)
    name = f"{BATCH}:{plan.checkpoint_dir.name}"
    study.set_user_attr(name, points)
    if before not in ("", name):
        _count_on(study, plan, name, before=before)
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
            running[place] = FusedTrial(trial, search, recorder)
    for run in running.values():
        run.begin(plan)
    return Batch(name=name, points=tuple(points), plan=plan, trials=running)


def _broken_off(
    study: optuna.Study, queued: Mapping[Point, FrozenTrial], *, left: int
) -> tuple[str, list[Point]]:
    """The batch that queued trials are left of and its points, if there are that many left."""
    attrs = study.user_attrs
    for trial in queued.values():
        name = trial.user_attrs.get(BATCH, "")
        points = [tuple(point) for point in attrs.get(name, ())]
        if points and sum(point in queued for point in points) <= left:
            return name, points
    return "", []


def _count_on(study: optuna.Study, plan: TrainPlan, name: str, *, before: str) -> None:
    """Have a batch cost what other code has trained of it, under the name ``before``."""
    checkpoint = plan.checkpoint_dir.with_name(before.removeprefix(f"{BATCH}:"))
    spent = StepCount(trained=extra_steps(study, before).trained)
    with counted_elsewhere(plan, spent, checkpoint=str(checkpoint)) as steps:
        if steps.trained > extra_steps(study, name).trained:
            note_extra_steps(study, name, steps)


def _plan(search: Search, points: Sequence[Point], *, slot: int) -> TrainPlan:
    values = [dict(zip(search.axes, point, strict=True)) for point in points]
    schedules = [search.schedule(**at) for at in values]
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


def _point_of(trial: FrozenTrial, axes: Axes) -> Point | None:
    """Point that a trial is at, or will be; None if the grid has no such one."""
    params = params_of(trial)
    if not all(params.get(name) in axis.points for name, axis in axes.items()):
        return None
    return tuple(params[name] for name in axes)


class ReportWriter:
    """A thread that keeps trials alive by their heartbeats and has every report written.

    The batch trains on meanwhile: ranks are not to wait for the storage, and Optuna beats for
    trials of ``Study.optimize`` alone. What goes wrong in the thread is raised by the next
    :meth:`check`, :meth:`put` or :meth:`flush`.
    """

    def __init__(
        self, storage: BaseStorage, trials: Sequence[int], write: Callable[[Report], None]
    ) -> None:
        self._storage, self._trials, self._write = storage, trials, write
        self._queue = queue.Queue[Report | None]()
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)

    def put(self, report: Report) -> None:
        """Have a report written, after those before."""
        self.check()
        self._queue.put(report)

    def flush(self) -> None:
        """Wait until every report is written."""
        self._queue.join()
        self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # after an interrupt nobody waits for what is not yet written
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        beat = time.monotonic()
        while not self._over.is_set():
            if time.monotonic() >= beat:
                beat = time.monotonic() + HEARTBEAT_SECONDS
                self._try(self._beat)
            try:
                report = self._queue.get(timeout=max(0.0, beat - time.monotonic()))
            except queue.Empty:
                continue
            if report is not None and self._error is None:
                self._try(partial(self._write, report))
            self._queue.task_done()

    def _beat(self) -> None:
        if isinstance(self._storage, BaseHeartbeat):
            for trial in self._trials:
                if self._over.is_set():
                    return
                self._storage.record_heartbeat(trial)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error


T = TypeVar("T")


class BatchTraining(RunTraining):
    """One fused run of many trials, each of which gets an end of its own.

    ``after_trial`` is called with every trial that was told.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        study: Study,
        trainer: Trainer,
        watcher: Watcher,
        raise_if_stopped: Callable[[], None],
        after_trial: Callable[[TrialRecord], None],
    ) -> None:
        super().__init__(
            batch.plan, trainer=trainer, on_line=watcher.line, raise_if_stopped=raise_if_stopped
        )
        self._batch, self._study = batch, study
        self._watcher, self._after_trial = watcher, after_trial
        self._replicates = len(batch.plan.replicas) // len(batch.points)
        ids = [run.trial._trial_id for run in batch.trials.values()]
        self._writer = ReportWriter(study._storage, ids, self._write)

    def run(self) -> None:
        """Train, and tell every trial. However that ends, none is left running.

        UserError or MachineError if the run fails: another one would most likely fail too. Trials
        are told of it only if the fault may be their own, as single ones are.
        """
        try:
            with self._writer:
                self._begin()
                result = self.train()
                self._writer.flush()
                self._tell_all(result)
        except UpdateFinishedTrialError:
            self._break_off(Ending(end=RunEnd.FAILED, reason=TAKEN_OVER), go_on=True)
            raise
        except BaseException as error:
            go_on = isinstance(error, NO_FAULT_OF_ITS_OWN)
            self._break_off(Ending.of_exception(error), go_on=go_on)
            if isinstance(error, RefusedError):
                raise error.error from None
            raise

    def _begin(self) -> None:
        trials = self._batch.trials
        for run in trials.values():
            run.started(run.own_plan(self.plan))
        points = {run.number: run.point for run in trials.values()}
        self._watcher.batch_started(points, self.plan)

    def _counted(self) -> StepCount:
        return extra_steps(self._study, self._batch.name)

    def _count(self, steps: StepCount) -> None:
        note_extra_steps(self._study, self._batch.name, steps)

    def _hear(self, report: Report, *, new: bool) -> Decision:
        self._writer.put(report)
        if new:
            self._watcher.batch_reported(report)
        return Decision(stop=False)

    def _progressed(self, step: int) -> None:
        self._writer.check()
        self._watcher.batch_progressed(step)

    def _write(self, report: Report) -> None:
        """Have every trial take its share, told and tracked while its replicates all train."""
        for place, run in self._batch.trials.items():
            values = {name: self._share(each, place) for name, each in report.replicas.items()}
            run.hear(report.model_copy(update={"replicas": values}))

    def _share(self, each: tuple[T, ...], place: int) -> tuple[T, ...]:
        return each[place * self._replicates : (place + 1) * self._replicates]

    def _tell_all(self, result: RunResult) -> None:
        outcome = result.outcome
        if isinstance(outcome, Failure) and outcome.for_all:
            raise RefusedError(self._failed(outcome))
        for place, run in self._batch.trials.items():
            own = outcome
            if isinstance(outcome, Done):
                own = outcome.model_copy(update={"replicas": self._share(outcome.replicas, place)})
            ending = run.settle(own, result.steps, cached=result.cached)
            if ending.end is RunEnd.COMPLETE:
                ending = run.complete()
            record_end(run, ending, watcher=self._watcher)
            self._tell(run, ending)
        if isinstance(outcome, Failure):
            raise self._failed(outcome)

    def _failed(self, failure: Failure) -> Exception:
        return error_of(
            failure,
            task=self.plan.task,
            said=f"study {self._study.study_name}: its batch of {len(self._batch.trials)} "
            f"trials failed: {failure.message}; see {self.plan.log_dir}",
        )

    def _tell(self, run: FusedTrial, ending: Ending) -> None:
        if ending.end is RunEnd.COMPLETE:
            self._study.tell(run.number, ending.metrics[run.metric])
        else:
            self._study.tell(run.number, state=TOLD[ending.end])
        told = self._study._storage.get_trial(run.trial._trial_id)
        self._after_trial(trial_record(self._study, told))

    def _break_off(self, ending: Ending, *, go_on: bool) -> None:
        """Tell every trial that was not told yet, or put it back if it is to ``go_on`` later."""
        storage = self._study._storage
        for run in self._batch.trials.values():
            trial_id = run.trial._trial_id
            try:
                if go_on:
                    put_back(self._study, trial_id, reason=ending.reason)
                else:
                    run.note(reason=ending.reason)
                    storage.set_trial_state_values(trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue  # it has its end, or another driver took it over
            run.events.finished(ending)
            self._watcher.trial_finished(run.number, ending.state, value=None, reason=ending.reason)
