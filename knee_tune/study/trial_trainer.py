"""The trial trainer: has runs trained, counts what they cost, hears their reports."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from knee_tune.plans.plan import TrainPlan
from knee_tune.records.values import RunEnd, StepCount
from knee_tune.runs.trainer import RunResult, Trainer
from knee_tune.study.events import Ending, Watcher
from knee_tune.study.trial import TrialRun
from knee_tune.workers.protocol import Callbacks, Decision, Report

NOTE_SECONDS = 10.0
"""Least time between two notes of what a run has cost so far, for the case that we are killed."""


class RunTraining(ABC):
    """One run on its way: a replicate, a fused trial, a batch, or a run outside the search.

    The bookkeeping is the same for all of them: its steps are counted over all attempts, noted
    while it trains and when an attempt ends, and an interrupt comes through at every sign of life.
    Subclasses say where the count is kept and what a report means.
    """

    def __init__(
        self,
        plan: TrainPlan,
        *,
        trainer: Trainer,
        on_line: Callable[[str], None],
        raise_if_stopped: Callable[[], None],
    ) -> None:
        self.plan = plan
        self._trainer, self._on_line, self._raise_if_stopped = trainer, on_line, raise_if_stopped
        self._before = StepCount()
        """Counted before this attempt."""
        self._first: int | None = None
        """The step that this attempt started from; what it reports before it trains is history."""
        self._noted = time.monotonic()

    @abstractmethod
    def _counted(self) -> StepCount:
        """Read what the run has cost so far."""

    @abstractmethod
    def _count(self, steps: StepCount) -> None:
        """Keep what the run has cost so far."""

    @abstractmethod
    def _hear(self, report: Report, *, new: bool) -> Decision:
        """Take an evaluation; ``new``: of a step that this attempt trained, no history."""

    def _progressed(self, step: int) -> None:
        """Show a sign of life at a step; by default nobody watches."""
        return

    def _branched(self, step: int) -> None:
        """Show that the run starts from a checkpoint of its trunk; by default nobody watches."""
        return

    def train(self) -> RunResult:
        """Train, or take the cached result of the same run. What a callback raises ends it."""
        return self._trainer.train(
            self.plan,
            Callbacks(
                on_report=self._on_report, on_line=self._on_line, on_progress=self._on_progress
            ),
            steps=self._read_count,
            on_steps=self._on_steps,
        )

    def _read_count(self) -> StepCount:
        self._before = self._counted()
        return self._before

    def _on_report(self, report: Report) -> Decision:
        self._raise_if_stopped()
        decision = self._hear(report, new=self._first is not None)
        if self._first is not None and time.monotonic() - self._noted >= NOTE_SECONDS:
            self._note(self._before.after(first=self._first, last=report.step))
        return decision

    def _on_progress(self, step: int) -> None:
        self._raise_if_stopped()
        reached = self._before.reached
        if self._first is None and step != reached:  # while it waits for another it stands still
            self._first = step - 1
            trunk = self.plan.trunk
            trunk_steps = () if trunk is None else trunk.checkpoint_steps
            if self._first > reached and self._first in trunk_steps:
                self._branched(self._first)
        self._progressed(step)

    def _on_steps(self, steps: StepCount) -> None:
        self._before, self._first = steps, None
        self._note(steps)

    def _note(self, steps: StepCount) -> None:
        self._count(steps)
        self._noted = time.monotonic()


def train_trial(
    run: TrialRun,
    plans: Sequence[TrainPlan],
    *,
    trainer: Trainer,
    watcher: Watcher,
    raise_if_stopped: Callable[[], None],
) -> Ending:
    """Train until the last replicate is complete, or one of them ends the trial.

    The metrics of a complete trial are means over its replicates. A trial that goes on after its
    driver died does not train again what is complete. The weights that may be registered are those
    of the first replicate, whose random seed is the study's own. A fused trial has one plan, for
    all replicates.
    """
    for index, plan in enumerate(plans):
        if run.has_trained(index):
            continue
        run.begin(plan, replicate=index)
        training = _TrialTraining(
            run, plan, trainer=trainer, watcher=watcher, raise_if_stopped=raise_if_stopped
        )
        ending = training.end()
        if ending.end is not RunEnd.COMPLETE:
            return ending
        last = index + 1 == len(plans)
        if not last and run.trial.should_prune():
            return run.of_replicate(Ending(end=RunEnd.PRUNED, reason="pruned at its end"), index)
    return run.complete()


class _TrialTraining(RunTraining):
    """The run of one replicate of a trial, or of all replicates of a fused one."""

    def __init__(
        self,
        run: TrialRun,
        plan: TrainPlan,
        *,
        trainer: Trainer,
        watcher: Watcher,
        raise_if_stopped: Callable[[], None],
    ) -> None:
        super().__init__(
            plan, trainer=trainer, on_line=watcher.line, raise_if_stopped=raise_if_stopped
        )
        self._run, self._watcher = run, watcher

    def end(self) -> Ending:
        """Train; how it ended, which is noted with the trial."""
        run = self._run
        try:
            result = self.train()
        except BaseException:
            run.broken_off()
            raise
        ending = run.settle(result.outcome, result.steps, cached=result.cached)
        if result.cached:
            self._watcher.trial_reused(
                run.number, result.steps.reached, replicate=run.replicate, origin="record"
            )
        return ending

    def _counted(self) -> StepCount:
        return self._run.steps

    def _count(self, steps: StepCount) -> None:
        self._run.count(steps)

    def _hear(self, report: Report, *, new: bool) -> Decision:
        run = self._run
        told = run.hear(report)
        if told is None:
            return Decision(stop=not run.whole(report))
        if new:
            self._watcher.trial_reported(run.number, told, replicate=run.replicate)
        at_its_end = report.step == report.total_steps
        return Decision(stop=not at_its_end and run.trial.should_prune())

    def _progressed(self, step: int) -> None:
        run = self._run
        self._watcher.trial_progressed(run.number, run.replicate * run.total_steps + step)

    def _branched(self, step: int) -> None:
        run = self._run
        self._watcher.trial_reused(run.number, step, replicate=run.replicate, origin="trunk")
