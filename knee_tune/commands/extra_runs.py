"""Runs outside the search: baselines, confirmation, audit, budgets. No trials, but on record."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from knee_tune.commands.workers import Workers
from knee_tune.errors import MachineError, UserError
from knee_tune.plans.plan import Schedule
from knee_tune.plans.planner import knee_schedule
from knee_tune.records.events import Attached
from knee_tune.records.findings import AtPoint
from knee_tune.records.values import Evaluation, RunEnd, RunRecord, StepCount
from knee_tune.report.run_figures import curves_figure
from knee_tune.runs.slots import Slots
from knee_tune.runs.trainer import RunResult, error_of
from knee_tune.schedules import Decay
from knee_tune.study.attributes import Attributes, extra_steps, note_extra_steps
from knee_tune.study.events import Ending, Recorder, RunEvents
from knee_tune.study.trial_trainer import RunTraining
from knee_tune.workers.protocol import Decision, Done, Failure, Outcome, Report

LINES = 4
"""Evaluations that are worth a line each, where one run of many is trained."""


@dataclass(frozen=True, kw_only=True)
class ExtraRun:
    """One run to train, never pruned."""

    key: str
    """Unique in its study. The same key is the same run, in MLflow too."""
    name: str
    """What people read, in lines and in MLflow's list of runs."""
    schedule: Schedule
    seed: int
    label: str
    """The schedule's name, or what the run is for: by it MLflow tells such runs apart."""
    explore_fraction: float | None = None
    decay: Decay | None = None
    """None: nothing but the recipe's is searched."""


def run_at(
    workers: Workers,
    place: AtPoint,
    *,
    key: str,
    name: str,
    seed: int,
    label: str,
) -> ExtraRun:
    """The run of the Knee schedule of one point of the search space."""
    return ExtraRun(
        key=key,
        name=name,
        schedule=knee_schedule(workers.recipe, workers.facts, **place.coordinates),
        seed=seed,
        label=label,
        explore_fraction=place.explore_fraction,
        decay=place.decay,
    )


@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """A run that has just ended, in the slot that trained it."""

    run: ExtraRun
    record: RunRecord
    weights: Path | None
    """None: it is not complete."""
    slot: int
    task: str
    on_life: Callable[[], None]
    """To be called at every sign of life of what is done with it: an interrupt comes through."""
    failure: Failure | None = None
    """What its group died of, if that is how it ended."""

    def error(self, said: str) -> UserError | MachineError:
        """The error that says ``said`` of its failure."""
        assert self.failure is not None, "it has failed"
        return error_of(self.failure, task=self.task, said=said)


Follow = Callable[[EndedRun], Mapping[str, float]]
"""What is done with a run when it has ended, before the next one begins in its slot.

It returns further metrics of the run, for its record in MLflow.
"""


def _nothing(ended: EndedRun) -> Mapping[str, float]:
    return {}


Choose = Callable[[list[ExtraRun], ExitStack], ExtraRun | None]
"""Takes the next run out of those that wait, where a slot is free; None: begin none.

It takes out all that is not to be begun any more as well. One slot at a time asks. What it puts on
the stack ends with the run.
"""


def _first(waiting: list[ExtraRun], claim: ExitStack) -> ExtraRun | None:
    return waiting.pop(0) if waiting else None


class Lines(Protocol):
    """Display of lines. Called from the thread of every slot."""

    def line(self, text: str) -> None:
        """Show a line."""
        ...


class TrainingFor(Protocol):
    """Owner of extra runs: a study that is open, or a budget search."""

    @property
    def workers(self) -> Workers:
        """What they are trained with."""
        ...

    @property
    def study(self) -> Attributes:
        """Where their steps are counted."""
        ...

    @property
    def tracker(self) -> Recorder:
        """Where they are recorded."""
        ...

    @property
    def on_interrupt(self) -> Callable[[], None]:
        """To be called when Ctrl-C comes (see ``Slots``)."""
        ...


def train_extra_runs(
    opened: TrainingFor,
    watcher: Lines,
    runs: Sequence[ExtraRun],
    *,
    choose: Choose = _first,
    follow: Follow = _nothing,
    timeout: float | None = None,
) -> list[EndedRun]:
    """Train ``runs``, as many at a time as there are slots; how they ended, in the same order.

    One that was finished before, or is the same training as another, comes from the run cache.
    One that cannot be trained has the state "failed", one that diverges "pruned". ``choose`` picks
    the next one, or none; ``follow`` is called for every one, in the thread of its slot. After
    ``timeout`` seconds none is begun, and there are ends of those that were.
    KeyboardInterrupt ends all that train; the same call goes on from their checkpoints.
    """
    waiting, choosing = list(runs), threading.Lock()
    ends: dict[int, EndedRun] = {}
    slots = Slots(
        min(opened.workers.options.slots, max(1, len(runs))), on_interrupt=opened.on_interrupt
    )
    until = float("inf") if timeout is None else time.monotonic() + timeout

    def work(slot: int) -> None:
        while not slots.stopped and time.monotonic() < until:
            with ExitStack() as claim:
                with choosing:
                    run = choose(waiting, claim)
                if run is None:
                    return
                place = runs.index(run)
                shown = run.name if len(runs) == 1 else f"{run.name} ({place + 1} of {len(runs)})"
                training = _ExtraTraining(
                    opened, watcher, run, slots, slot=slot, shown=shown, brief=len(runs) > 1
                )
                ends[place] = training.end(follow)

    slots.run(work)
    return [ends[place] for place in sorted(ends)]


class _ExtraTraining(RunTraining):
    """One run on its way: trained, shown, tracked."""

    def __init__(
        self,
        opened: TrainingFor,
        watcher: Lines,
        run: ExtraRun,
        slots: Slots,
        *,
        slot: int,
        shown: str,
        brief: bool,
    ) -> None:
        super().__init__(
            opened.workers.train_plan(run.schedule, log_key=run.key, seed=run.seed, slot=slot),
            trainer=opened.workers.trainer,
            on_line=watcher.line,
            raise_if_stopped=slots.raise_if_stopped,
        )
        self._opened, self._run, self._slot = opened, run, slot
        self._shown, self._brief = shown, brief
        self._events = RunEvents(opened.tracker, run.key)
        self._curve: dict[int, Evaluation] = {}
        """By step: a run that goes on reports its past again."""
        self._metric = opened.workers.recipe.objective_metric.name
        self._watched = opened.workers.recipe.watched_metric.name

    def end(self, follow: Follow) -> EndedRun:
        """Train; whatever happens, the tracking learns how it ended."""
        plan, run = self.plan, self._run
        started = time.time()
        self._events.started(
            plan,
            name=run.name,
            schedule=run.label,
            seed_lr=run.schedule.seed_lr,
            explore_fraction=run.explore_fraction,
            decay=run.decay,
        )
        self._on_line(f"{self._shown}: seed LR {run.schedule.seed_lr:g}, {plan.total_steps} steps")
        try:
            result = self.train()
            ending = Ending.of(result.outcome)
            record = self._record(ending, result, started=started)
            self._attach_curves(record)
            self._show_end(record)
            ended = EndedRun(
                run=run,
                record=record,
                weights=_weights(result.outcome) if ending.end is RunEnd.COMPLETE else None,
                slot=self._slot,
                task=plan.task,
                on_life=self._raise_if_stopped,
                failure=ending.failure,
            )
            more = follow(ended)
        except BaseException as error:
            self._events.finished(Ending.of_exception(error))
            raise
        self._events.finished(ending, **more)
        return ended

    def _counted(self) -> StepCount:
        return extra_steps(self._opened.study, self._run.key)

    def _count(self, steps: StepCount) -> None:
        note_extra_steps(self._opened.study, self._run.key, steps)

    def _record(self, ending: Ending, result: RunResult, *, started: float) -> RunRecord:
        plan = self.plan
        return RunRecord(
            seed=plan.seed,
            state=ending.state,
            value=ending.metrics.get(self._metric),
            metrics=dict(ending.metrics),
            curve=tuple(evaluation for _, evaluation in sorted(self._curve.items())),
            steps=result.steps,
            budget=plan.total_steps,
            answered=result.cached,
            reason=ending.reason,
            started=started,
            seconds=time.time() - started,
            checkpoint=str(plan.checkpoint_dir),
            code=plan.facts.code if plan.facts else "",
        )

    def _hear(self, report: Report, *, new: bool) -> Decision:
        metrics = self._events.reported(report)
        last = max(self._curve, default=0)
        self._curve[report.step] = Evaluation(step=report.step, metrics=metrics)
        part = 1 if not self._brief else report.total_steps / LINES
        if last // part < report.step // part:
            self._on_line(
                f"{self._shown}: step {report.step}/{report.total_steps}, "
                f"{self._watched} {metrics[self._watched]:.4g}"
            )
        return Decision(stop=False)

    def _attach_curves(self, record: RunRecord) -> None:
        figure = curves_figure(
            record,
            title=f"{self._run.name}: seed LR {self._run.schedule.seed_lr:g}",
            schedule=self._run.schedule,
        )
        attached = Attached(key=self._run.key, name="plots/curves.html", figure=figure)
        self._opened.tracker.record(attached)

    def _show_end(self, record: RunRecord) -> None:
        value = "" if record.value is None else f", {self._metric} {record.value:.4g}"
        reason = f": {record.reason}" if record.reason else ""
        before = " (trained before)" if record.answered else ""
        state = "failed" if record.state == "failed" else "done"
        self._on_line(f"{self._shown}: {state}{value}{reason}{before}")


def _weights(outcome: Outcome) -> Path | None:
    """Where a complete run left its weights."""
    name = outcome.result.get("weights") if isinstance(outcome, Done) else None
    return None if name is None else Path(name)
