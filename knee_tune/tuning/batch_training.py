"""The training of a batch: one fused run of many trials, each of which gets an end of its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from knee_tune.distributed.protocol import Decision, Failure, Report
from knee_tune.runs.restarts import error_of
from knee_tune.runs.trainer import RunResult, Trainer
from knee_tune.specs.records import TrialRecord
from knee_tune.specs.steps import StepCount
from knee_tune.tuning.attributes import extra_steps, note_extra_steps
from knee_tune.tuning.batches import Batch
from knee_tune.tuning.ends import record_end
from knee_tune.tuning.events import (
    NO_FAULT_OF_ITS_OWN,
    TAKEN_OVER,
    Ending,
    RefusedError,
    RunEvents,
)
from knee_tune.tuning.fused import FusedTrial
from knee_tune.tuning.listeners import Recorder, Watcher
from knee_tune.tuning.recovery import put_back
from knee_tune.tuning.replicates import NOTE_SECONDS
from knee_tune.tuning.scribe import Scribe
from knee_tune.tuning.study import Study, trial_record

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchCrew:
    """Who trains a batch and who hears of it."""

    study: Study
    trainer: Trainer
    tracker: Recorder
    watcher: Watcher
    raise_if_stopped: Callable[[], None]
    """Called at every sign of life."""
    after_trial: Callable[[TrialRecord], None]
    """Called with every trial that was told."""


class BatchTraining:
    """A batch on its way: its trials learn of their replicates from the reports of one run."""

    def __init__(self, batch: Batch, crew: BatchCrew) -> None:
        self._batch, self._crew, self._study = batch, crew, crew.study
        self._replicates = len(batch.plan.replicas) // len(batch.points)
        self._events = {
            place: RunEvents(crew.tracker, run.key) for place, run in batch.trials.items()
        }
        ids = [run.trial._trial_id for run in batch.trials.values()]
        self._scribe = Scribe(crew.study._storage, ids, self._write)
        self._before = extra_steps(crew.study, batch.name)
        """Counted before this attempt."""
        self._first: int | None = None
        """The step that this attempt started from; what it reports before it trains is history."""
        self._noted = time.monotonic()

    def run(self) -> None:
        """Train, and tell every trial. However that ends, none is left running.

        UserError or MachineError if the run fails: another one would most likely fail too. Trials
        are told of it only if the fault may be their own, as single ones are.
        """
        try:
            with self._scribe:
                self._begin()
                result = self._crew.trainer.train(
                    self._batch.plan,
                    steps=lambda: self._before,
                    on_report=self._on_report,
                    on_line=self._crew.watcher.line,
                    on_progress=self._on_progress,
                    on_steps=self._on_steps,
                )
                self._scribe.flush()
                self._tell_all(result)
        except UpdateFinishedTrialError:
            self._break_off(Ending(end="failed", reason=TAKEN_OVER), go_on=True)
            raise
        except BaseException as error:
            go_on = isinstance(error, NO_FAULT_OF_ITS_OWN)
            self._break_off(Ending.of_exception(error), go_on=go_on)
            if isinstance(error, RefusedError):
                raise error.error from None
            raise

    def _begin(self) -> None:
        trials = self._batch.trials
        for place, run in trials.items():
            self._events[place].started(
                run.own_plan,
                name=f"trial {run.number}",
                number=run.number,
                seed_lr=run.seed_lr,
                explore_fraction=run.explore_fraction,
                replicates=len(run.replicates),
            )
        points = {run.number: (run.seed_lr, run.explore_fraction) for run in trials.values()}
        self._crew.watcher.batch_started(points, self._batch.plan)

    def _on_report(self, report: Report) -> Decision:
        self._crew.raise_if_stopped()
        self._scribe.put(report)
        if self._first is not None:
            self._crew.watcher.batch_reported(report)
            if time.monotonic() - self._noted >= NOTE_SECONDS:
                self._note(self._before.after(first=self._first, last=report.step))
        return Decision(stop=False)

    def _on_progress(self, step: int) -> None:
        self._crew.raise_if_stopped()
        self._scribe.check()
        if self._first is None and step != self._before.reached:
            self._first = step - 1
        self._crew.watcher.batch_progressed(step)

    def _on_steps(self, steps: StepCount) -> None:
        self._before, self._first = steps, None
        self._note(steps)

    def _note(self, steps: StepCount) -> None:
        note_extra_steps(self._study, self._batch.name, steps)
        self._noted = time.monotonic()

    def _write(self, report: Report) -> None:
        """Have every trial whose replicates all train take, tell and track its share."""
        for place, run in self._batch.trials.items():
            values = {name: self._share(each, place) for name, each in report.replicas.items()}
            own = report.model_copy(update={"replicas": values})
            if run.remember_all(own) and run.whole(own):
                self._events[place].reported(run.mean(own))
                run.report_all(report.step)
                run.note_link(self._events[place].link)

    def _share(self, each: tuple[T, ...], place: int) -> tuple[T, ...]:
        return each[place * self._replicates : (place + 1) * self._replicates]

    def _tell_all(self, result: RunResult) -> None:
        outcome = result.outcome
        if isinstance(outcome, Failure) and outcome.for_all:
            raise RefusedError(self._failed(outcome))
        for place, run in self._batch.trials.items():
            if isinstance(outcome, Failure):
                run.broken_off()
                ending = Ending.of(outcome)
            else:
                dones = self._share(outcome.replicas, place)
                ending = run.settle(dones, result.steps, answered=result.answered)
            record_end(run, ending, events=self._events[place], watcher=self._crew.watcher)
            self._tell(run, ending)
        if isinstance(outcome, Failure):
            raise self._failed(outcome)

    def _failed(self, failure: Failure) -> Exception:
        return error_of(
            failure,
            task=self._batch.plan.task,
            said=f"study {self._study.study_name}: its batch of {len(self._batch.trials)} "
            f"trials failed: {failure.message}; see {self._batch.plan.log_dir}",
        )

    def _tell(self, run: FusedTrial, ending: Ending) -> None:
        states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        if ending.end == "complete":
            self._study.tell(run.number, ending.metrics[run.metric])
        else:
            self._study.tell(run.number, state=states[ending.end])
        told = self._study._storage.get_trial(run.trial._trial_id)
        self._crew.after_trial(trial_record(self._study, told))

    def _break_off(self, ending: Ending, *, go_on: bool) -> None:
        """Tell every trial that was not told yet, or put it back if it is to ``go_on`` later."""
        storage = self._study._storage
        for place, run in self._batch.trials.items():
            trial_id = run.trial._trial_id
            try:
                if go_on:
                    put_back(self._study, trial_id, reason=ending.reason)
                else:
                    run.note(reason=ending.reason)
                    storage.set_trial_state_values(trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue  # it has its end, or another driver took it over
            self._events[place].finished(ending)
            self._crew.watcher.trial_finished(
                run.number, ending.end, value=None, reason=ending.reason
            )
