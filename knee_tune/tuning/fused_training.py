"""The training of one fused trial: one run, which tells of all replicates at once."""

import time

from knee_tune.distributed.protocol import Decision, Done, Report
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.steps import StepCount
from knee_tune.tuning.events import Ending
from knee_tune.tuning.fused import FusedTrial
from knee_tune.tuning.replicates import NOTE_SECONDS, Crew


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
            if self._first > reached and trunk is not None and self._first in trunk.knots:
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
