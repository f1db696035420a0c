"""The driver: asks Optuna for trials, has worker groups train them, and tells every one's fate.

It is the only writer of the study and of the tracking. Whatever happens to a rank, its trial is
told once: complete, pruned or failed, with the reason.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from knee_tune.distributed.protocol import Decision, Done, Failure, GroupRunner, Outcome, Report
from knee_tune.errors import UserError
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.tracking import (
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from knee_tune.tuning.listeners import End, Recorder, Watcher
from knee_tune.tuning.quiet import quiet_optuna
from knee_tune.tuning.study import (
    continued_numbers,
    driver_id,
    fail_trials_of_dead_drivers,
    requeue,
)
from knee_tune.tuning.trial import Search, TrialRun

ATTEMPTS = 3
"""Times one trial is started: once, and twice more from its newest checkpoint."""

FAILURES_IN_A_ROW = 3
"""Failed trials after which the driver stops: the next one would most likely fail too."""

_TOLD: Mapping[End, Literal["COMPLETE", "PRUNED", "FAIL"]] = MappingProxyType(
    {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
)


class TrialFailedError(Exception):
    """A trial could not be trained; the study goes on."""


class StudyInterruptedError(TrialFailedError):
    """Another slot was interrupted: this slot's trial goes back into the queue as well."""


class Driver:
    """Drives one study: ``slots`` trials at a time, each with a worker group of its own."""

    def __init__(
        self,
        search: Search,
        *,
        runner: GroupRunner,
        slots: int,
        tracker: Recorder,
        watcher: Watcher,
        after_trial: Callable[[int], None],
    ) -> None:
        self._search, self._study = search, search.study
        self._runner, self._slots = runner, slots
        self._tracker, self._watcher, self._after_trial = tracker, watcher, after_trial
        self._asking = threading.Lock()
        self._claimed = 0
        self._stop = threading.Event()
        self._failures_in_a_row = 0

    def run(self, *, trials: int, timeout: float | None = None) -> None:
        """Train until the study has ``trials`` finished trials; start none after ``timeout`` s.

        Raises KeyboardInterrupt after every running trial was told and put back into the queue,
        UserError when trial after trial fails.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        errors: list[BaseException] = []
        others = [
            threading.Thread(target=self._drive, args=(slot, trials, deadline, errors))
            for slot in range(1, self._slots)
        ]
        with quiet_optuna():
            self._bury_the_dead()
            for thread in others:
                thread.start()
            self._drive(0, trials, deadline, errors)
            for thread in others:
                thread.join()
        if errors:
            raise errors[0]

    def _bury_the_dead(self) -> None:
        """What a killed driver left running is told, and continued by this one."""
        for trial in fail_trials_of_dead_drivers(self._study):
            key = str(trial.user_attrs.get("key", f"trial-{trial.number:04d}"))
            self._tracker.record(
                TrialFinished(key=key, state="FAIL", reason=trial.user_attrs["reason"])
            )
            self._watcher.line(f"trial {trial.number}: its driver was killed; it is continued")

    def _drive(self, slot: int, trials: int, deadline: float, errors: list[BaseException]) -> None:
        """One slot's life: one trial after another until there is nothing left to do."""
        try:
            while self._claim(trials) and time.monotonic() < deadline:
                self._study.optimize(
                    lambda trial: self._objective(trial, slot),
                    n_trials=1,
                    catch=(TrialFailedError,),
                    callbacks=[lambda _, trial: self._after_trial(trial.number)],
                )
        except BaseException as error:
            errors.append(error)
            self._stop.set()

    def _claim(self, trials: int) -> bool:
        """Whether this slot may ask for one more trial. Other drivers' running trials count."""
        with self._asking:
            known = self._study.get_trials(deepcopy=False)
            continued = continued_numbers(known)
            taken = sum(
                trial.state != TrialState.WAITING and trial.number not in continued
                for trial in known
            )
            if self._stop.is_set() or taken + self._claimed >= trials:
                return False
            self._claimed += 1
            return True

    def _objective(self, trial: optuna.Trial, slot: int) -> float:
        run = TrialRun(trial, self._search)
        with self._asking:
            self._claimed -= 1
        twin = run.finished_twin()
        if twin is not None:
            return self._repeat(run, twin)
        plan = run.plan_for(slot)
        self._start(run, plan)
        try:
            outcome = self._train(run, plan)
        except (KeyboardInterrupt, StudyInterruptedError):
            run.count_steps(None)
            self._finish(run, "failed", reason="interrupted; the same command continues it")
            requeue(self._study, run.frozen(), counts=False)
            raise
        return self._tell(run, plan, outcome)

    def _start(self, run: TrialRun, plan: TrainPlan) -> None:
        run.note(
            driver=driver_id(),
            key=run.key,
            checkpoint=str(plan.checkpoint_dir),
            seed=plan.seed,
            steps_budget=plan.total_steps,
            plan=plan.model_dump(mode="json"),
        )
        self._tracker.record(
            TrialStarted(
                key=run.key,
                name=f"trial {run.number}",
                number=run.number,
                seed_lr=run.seed_lr,
                explore_fraction=run.explore_fraction,
                params=plan.model_dump(mode="json", include={"recipe", "schedule", "seed"}),
            )
        )
        self._watcher.trial_started(run.number, plan, explore_fraction=run.explore_fraction)

    def _train(self, run: TrialRun, plan: TrainPlan) -> Outcome:
        """Train, and train again from the newest checkpoint if the group dies."""
        for attempt in range(1, ATTEMPTS + 1):
            outcome = self._runner.run(
                plan,
                on_report=lambda report: self._on_report(run, report),
                on_line=self._watcher.line,
                on_progress=lambda step: self._on_progress(run, step),
            )
            run.count_steps(outcome)
            if isinstance(outcome, Done):
                break
            if attempt < ATTEMPTS:
                self._watcher.line(
                    f"trial {run.number}: {outcome.message}; "
                    f"starting again from its newest checkpoint ({attempt} of {ATTEMPTS - 1})"
                )
        return outcome

    def _on_report(self, run: TrialRun, report: Report) -> Decision:
        self._raise_if_stopped()
        run.trial.report(run.comparable(report.metrics), report.step)
        metrics = dict(report.metrics)
        self._tracker.record(
            TrialReported(key=run.key, step=report.step, lr=metrics.pop("lr"), metrics=metrics)
        )
        self._watcher.trial_reported(run.number, report)
        at_the_end = report.step == report.total_steps
        return Decision(stop=not at_the_end and run.trial.should_prune())

    def _on_progress(self, run: TrialRun, step: int) -> None:
        self._raise_if_stopped()
        run.saw_step(step)
        self._watcher.trial_progressed(run.number, step)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise StudyInterruptedError("another slot was interrupted")

    def _tell(self, run: TrialRun, plan: TrainPlan, outcome: Outcome) -> float:
        """The trial's value, or the exception by which Optuna tells its fate."""
        if isinstance(outcome, Failure):
            self._finish(run, "failed", reason=outcome.message)
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_IN_A_ROW:
                raise UserError(
                    f"study {self._study.study_name}: {FAILURES_IN_A_ROW} trials in a row failed, "
                    f"the last one with: {outcome.message}; see {plan.log_dir}"
                )
            raise TrialFailedError(outcome.message)
        self._failures_in_a_row = 0
        if outcome.state == "complete":
            metrics: dict[str, float] = outcome.result["metrics"]
            run.note(metrics=metrics, weights=outcome.result["weights"])
            self._finish(run, "complete", value=metrics[run.metric], metrics=metrics)
            return metrics[run.metric]
        pruned = outcome.state == "stopped"
        reason = f"pruned at step {outcome.step}" if pruned else f"diverged: {outcome.reason}"
        self._finish(run, "pruned", reason=reason)
        raise optuna.TrialPruned(reason)

    def _repeat(self, run: TrialRun, twin: FrozenTrial) -> float:
        """The same seed LR, explore fraction and seed were trained before: nothing to train."""
        run.note(**{**twin.user_attrs, "steps_trained": 0, "reason": f"same as {twin.number}"})
        value = float(twin.values[0])
        self._watcher.trial_finished(
            run.number, "complete", value=value, reason=f"same as trial {twin.number}"
        )
        return value

    def _finish(
        self,
        run: TrialRun,
        end: End,
        *,
        value: float | None = None,
        metrics: Mapping[str, float] = MappingProxyType({}),
        reason: str = "",
    ) -> None:
        """Record the end everywhere but in Optuna's state, which Optuna itself writes next."""
        run.note(reason=reason, steps_trained=run.steps_trained)
        link = self._tracker.run_of(run.key)
        if link is not None:
            run.note(mlflow_run_id=link.run_id, mlflow_run_url=link.url)
        self._tracker.record(
            TrialFinished(
                key=run.key,
                state=_TOLD[end],
                metrics={f"final_{name}": number for name, number in metrics.items()},
                reason=reason,
            )
        )
        self._watcher.trial_finished(run.number, end, value=value, reason=reason)
