"""The training of one trial: a run for every random seed, one after another."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from knee_tune.plans.plan import TrainPlan
from knee_tune.plans.step_note import counted_elsewhere
from knee_tune.records.values import StepCount
from knee_tune.runs.trainer import Trainer
from knee_tune.study.events import Ending, RunEvents, Watcher
from knee_tune.study.trial import FusedTrial, TrialRun
from knee_tune.workers.protocol import Decision, Done, Report

NOTE_SECONDS = 10.0

"""Least time between two notes of what a run has cost so far, for the case that we are killed."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who trains a trial's runs and who hears of them."""

    trainer: Trainer
    events: RunEvents
    watcher: Watcher
    raise_if_stopped: Callable[[], None]
    """Called at every sign of life."""


def train_replicates(run: TrialRun, plans: Sequence[TrainPlan], crew: Crew) -> Ending:
    """Train until the last replicate is complete, or one of them ends the trial.

    The metrics of a complete trial are means over its replicates. A trial that goes on after its
    driver died does not train again what is complete. The weights that may be registered are those
    of the first replicate, whose random seed is the study's own.
    """
    for index, plan in enumerate(plans):
        if run.replicates[index].state == "complete":
            continue
        ending = _Replicate(run, index, plan, crew).train()
        last = index + 1 == len(plans)
        if ending.end == "complete" and not last and run.trial.should_prune():
            ending = Ending(end="pruned", reason="pruned at its end")
        if ending.end != "complete":
            which = f" (replicate {index + 1} of {len(plans)})" if len(plans) > 1 else ""
            return replace(ending, reason=ending.reason + which)
    return Ending(end="complete", metrics=run.note_means())


class _Replicate:
    """One run of a trial on its way."""

    def __init__(self, run: TrialRun, index: int, plan: TrainPlan, crew: Crew) -> None:
        self._run, self._index, self._plan, self._crew = run, index, plan, crew
        self._before = run.replicates[index].steps
        """Counted before this attempt."""
        self._first: int | None = None
        """The step that this attempt started from; what it reports before it trains is history."""
        self._noted = time.monotonic()

    def train(self) -> Ending:
        """How it ended, which is noted with the trial."""
        run, index, plan = self._run, self._index, self._plan
        run.log_dir = plan.log_dir
        before = run.replicates[index].checkpoint
        with counted_elsewhere(plan, self._before, checkpoint=before) as self._before:
            run.note_replicate(
                index, state="running", checkpoint=str(plan.checkpoint_dir), steps=self._before
            )
        try:
            result = self._crew.trainer.train(
                plan,
                steps=lambda: self._before,
                on_report=self._on_report,
                on_line=self._crew.watcher.line,
                on_progress=self._on_progress,
                on_steps=self._on_steps,
            )
        except BaseException:
            run.note_replicate(index, state="failed")
            raise
        ending = Ending.of(result.outcome)
        metrics = dict(ending.metrics)
        value = metrics.get(run.metric)
        # Before it counts as complete: an interrupted trial does not come here again.
        if index == 0 and ending.end == "complete" and isinstance(result.outcome, Done):
            run.note(weights=result.outcome.result["weights"])
        run.note_replicate(
            index, state=ending.end, value=value, metrics=metrics, answered=result.answered
        )
        if result.answered:
            self._crew.watcher.trial_reused(
                run.number, result.steps.reached, replicate=index, origin="record"
            )
        return ending

    def _on_report(self, report: Report) -> Decision:
        self._crew.raise_if_stopped()
        run, index = self._run, self._index
        if not run.remember(index, report.step, report.metrics):
            return Decision(stop=False)
        self._crew.events.reported(report, replicate=index)
        run.report(index, report.step)
        run.note_link(self._crew.events.link)
        if self._first is not None:
            self._crew.watcher.trial_reported(run.number, report, replicate=index)
            if time.monotonic() - self._noted >= NOTE_SECONDS:
                self._note(self._before.after(first=self._first, last=report.step))
        at_its_end = report.step == report.total_steps
        return Decision(stop=not at_its_end and run.trial.should_prune())

    def _on_progress(self, step: int) -> None:
        self._crew.raise_if_stopped()
        run, index, reached = self._run, self._index, self._before.reached
        if self._first is None and step != reached:  # while it waits for another it stands still
            self._first = step - 1
            trunk = self._plan.trunk
            if (
                self._first > reached
                and trunk is not None
                and self._first in trunk.checkpoint_steps
            ):
                self._crew.watcher.trial_reused(
                    run.number, self._first, replicate=index, origin="trunk"
                )
        self._crew.watcher.trial_progressed(run.number, index * run.total_steps + step)

    def _on_steps(self, steps: StepCount) -> None:
        self._before, self._first = steps, None
        self._note(steps)

    def _note(self, steps: StepCount) -> None:
        self._run.note_replicate(self._index, steps=steps)
        self._run.note_steps(pruned=False)
        self._noted = time.monotonic()


# The training of one fused trial: one run, which tells of all replicates at once.


def train_fused(run: FusedTrial, plan: TrainPlan, crew: Crew) -> Ending:
    """Train until all replicates are complete, the pruner ends them all, or one diverges."""
    return _FusedTraining(run, plan, crew).train()


class _FusedTraining:
    """The run of a fused trial on its way."""

    def __init__(self, run: FusedTrial, plan: TrainPlan, crew: Crew) -> None:
        self._run, self._plan, self._crew = run, plan, crew
        self._before = run.run_steps
        """Counted before this attempt."""
        self._first: int | None = None
        """The step that this attempt started from; what it reports before it trains is history."""
        self._noted = time.monotonic()

    def train(self) -> Ending:
        """How it ended, which is noted with the trial."""
        run, plan = self._run, self._plan
        run.log_dir = plan.log_dir
        try:
            result = self._crew.trainer.train(
                plan,
                steps=lambda: self._before,
                on_report=self._on_report,
                on_line=self._crew.watcher.line,
                on_progress=self._on_progress,
                on_steps=self._on_steps,
            )
        except BaseException:
            run.broken_off()
            raise
        if not isinstance(result.outcome, Done):
            run.broken_off()
            return Ending.of(result.outcome)
        ending = run.settle(result.outcome.replicas, result.steps, answered=result.answered)
        if result.answered:
            self._crew.watcher.trial_reused(
                run.number, result.steps.reached, replicate=0, origin="record"
            )
        return ending

    def _on_report(self, report: Report) -> Decision:
        self._crew.raise_if_stopped()
        run = self._run
        new = run.remember_all(report)
        if not run.whole(report):
            return Decision(stop=True)
        if not new:
            return Decision(stop=False)
        mean = run.mean(report)
        self._crew.events.reported(mean)
        run.report_all(report.step)
        run.note_link(self._crew.events.link)
        if self._first is not None:
            self._crew.watcher.trial_reported(run.number, mean, replicate=0)
            if time.monotonic() - self._noted >= NOTE_SECONDS:
                self._note(self._before.after(first=self._first, last=report.step))
        at_its_end = report.step == report.total_steps
        return Decision(stop=not at_its_end and run.trial.should_prune())

    def _on_progress(self, step: int) -> None:
        self._crew.raise_if_stopped()
        run, reached = self._run, self._before.reached
        if self._first is None and step != reached:  # while it waits for another it stands still
            self._first = step - 1
            trunk = self._plan.trunk
            if (
                self._first > reached
                and trunk is not None
                and self._first in trunk.checkpoint_steps
            ):
                self._crew.watcher.trial_reused(
                    run.number, self._first, replicate=0, origin="trunk"
                )
        self._crew.watcher.trial_progressed(run.number, step)

    def _on_steps(self, steps: StepCount) -> None:
        self._before, self._first = steps, None
        self._note(steps)

    def _note(self, steps: StepCount) -> None:
        self._run.note_run(steps)
        self._noted = time.monotonic()
