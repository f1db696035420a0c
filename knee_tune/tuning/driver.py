"""The driver: asks Optuna for trials, has worker groups train them, and tells every one's fate.

It is the only writer of the study and of the tracking. Whatever happens to a rank, its trial is
told once: complete, pruned or failed, with the reason.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from types import MappingProxyType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from knee_tune.distributed.protocol import Decision, Done, Failure, GroupRunner, Outcome, Report
from knee_tune.errors import UserError
from knee_tune.planning.plan import TrainPlan
from knee_tune.specs.records import TrialRecord
from knee_tune.specs.tracking import TrialFinished, TrialReported, TrialStarted
from knee_tune.tuning.dashboard import write_trial_note
from knee_tune.tuning.listeners import TOLD, End, Recorder, Watcher
from knee_tune.tuning.points import wanted
from knee_tune.tuning.quiet import quiet_optuna
from knee_tune.tuning.recovery import give_back, recover, requeue
from knee_tune.tuning.study import trial_record
from knee_tune.tuning.trial import Search, TrialRun

ATTEMPTS = 3
"""Times one trial is started: once, and twice more from its newest checkpoint."""

FAILURES_IN_A_ROW = 3
"""Failed trials after which the driver stops: the next one would most likely fail too."""

INTERRUPTED = "interrupted; the same command continues it"


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
        after_trial: Callable[[TrialRecord], None],
    ) -> None:
        self._search, self._study = search, search.study
        self._runner, self._slots = runner, slots
        self._tracker, self._watcher, self._after_trial = tracker, watcher, after_trial
        self._asking = threading.Lock()
        self._stop = threading.Event()
        self._failures_in_a_row = 0

    def run(self, *, trials: int | None, timeout: float | None = None) -> None:
        """Train until the study has ``trials`` trials, or every point of its search space if None.

        It ends as well when no point is left, and starts no trial after ``timeout`` seconds.

        Raises KeyboardInterrupt after every running trial was told and put back into the queue,
        UserError when trial after trial fails.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        errors: list[BaseException] = []
        with quiet_optuna(), ThreadPoolExecutor(max_workers=self._slots) as pool:
            for trial in recover(self._study, self._tracker):
                self._watcher.line(f"trial {trial.number}: its driver was killed")
            others = [
                pool.submit(self._drive, slot, trials, deadline, errors)
                for slot in range(1, self._slots)
            ]
            self._drive(0, trials, deadline, errors)  # in this thread, where Ctrl-C arrives
            try:
                wait(others)
            except KeyboardInterrupt as error:
                errors.append(error)
                self._stop.set()
                wait(others)
            give_back(self._study, reason=INTERRUPTED)
        if errors:
            raise errors[0]
        if not wanted(self._study, self._search.axes, trials=None):
            self._watcher.line("every point of the search space was tried")

    def _drive(
        self, slot: int, trials: int | None, deadline: float, errors: list[BaseException]
    ) -> None:
        """One slot's life: one trial after another until there is nothing left to do."""
        try:
            while time.monotonic() < deadline and self._drive_one(slot, trials):
                pass
        except BaseException as error:
            errors.append(error)
            self._stop.set()

    def _drive_one(self, slot: int, trials: int | None) -> bool:
        """Drive one more trial to its end; False if none is wanted.

        One slot asks at a time, until its trial has its parameters: so each one counts, and
        samples beside, the trials of the others.
        """
        taken_over = False
        with ExitStack() as asking:
            asking.enter_context(self._asking)
            asking.enter_context(self._search.asking)
            if self._stop.is_set() or not wanted(self._study, self._search.axes, trials=trials):
                return False

            def objective(trial: optuna.Trial) -> float:
                nonlocal taken_over
                try:
                    run = TrialRun(trial, self._search)
                    asking.close()
                    return self._objective(run, slot)
                except (KeyboardInterrupt, StudyInterruptedError):
                    known = self._study.get_trials(deepcopy=False)
                    requeue(self._study, known[trial.number], counts=False)
                    raise
                except UpdateFinishedTrialError:
                    taken_over = True
                    raise

            try:
                self._study.optimize(
                    objective,
                    n_trials=1,
                    catch=(TrialFailedError,),
                    callbacks=[lambda study, trial: self._after_trial(trial_record(study, trial))],
                )
            except (UpdateFinishedTrialError, ValueError):  # Optuna cannot tell a told trial either
                if not taken_over:
                    raise
                self._watcher.line(
                    "this driver was silent for so long that another one took over its trial"
                )
        return True

    def _objective(self, run: TrialRun, slot: int) -> float:
        twin = run.finished_twin()
        if twin is not None:
            return self._repeat(run, twin)
        plan = run.plan_for(slot)
        try:
            self._start(run, plan)
            outcome = self._train(run, plan)
        except BaseException as error:
            run.count_steps(None)
            interrupted = isinstance(error, KeyboardInterrupt | StudyInterruptedError)
            reason = INTERRUPTED if interrupted else f"{type(error).__name__}: {error}"
            self._finish(run, plan, "failed", reason=reason)
            raise
        return self._tell(run, plan, outcome)

    def _start(self, run: TrialRun, plan: TrainPlan) -> None:
        run.note(
            key=run.key,
            checkpoint=str(plan.checkpoint_dir),
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
            if isinstance(outcome, Done) or outcome.kind == "user_error":
                break  # what people must put right comes out the same again
            if attempt < ATTEMPTS:
                self._watcher.line(
                    f"trial {run.number}: {outcome.message}; "
                    f"starting again from its newest checkpoint ({attempt} of {ATTEMPTS - 1})"
                )
        return outcome

    def _on_report(self, run: TrialRun, report: Report) -> Decision:
        self._raise_if_stopped()
        run.saw_step(report.step)
        run.trial.report(run.comparable(report.metrics), report.step)
        metrics = dict(report.metrics)
        self._tracker.record(
            TrialReported(key=run.key, step=report.step, lr=metrics.pop("lr"), metrics=metrics)
        )
        self._note_run(run)
        self._watcher.trial_reported(run.number, report)
        at_the_end = report.step == report.total_steps
        return Decision(stop=not at_the_end and run.trial.should_prune())

    def _note_run(self, run: TrialRun) -> None:
        """Note a trial's MLflow run once it is known; training never waits for it."""
        if run.url is None and (link := self._tracker.run_of(run.key)) is not None:
            run.url = link.url
            run.note(mlflow_run_id=link.run_id, mlflow_run_url=link.url)

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
            self._finish(run, plan, "failed", reason=outcome.message)
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_IN_A_ROW:
                raise UserError(
                    f"study {self._study.study_name}: {FAILURES_IN_A_ROW} trials in a row failed, "
                    f"the last one with: {outcome.message}; see {plan.log_dir}"
                )
            raise TrialFailedError(outcome.message)
        self._failures_in_a_row = 0
        metrics: dict[str, float] = outcome.result.get("metrics", {})
        if outcome.state == "stopped":
            reason = f"pruned at step {outcome.step}"
        elif outcome.state == "diverged":
            reason = f"diverged: {outcome.reason}"
        elif not all(map(math.isfinite, metrics.values())):
            reason = "diverged: non-finite metric of the final evaluation"
        else:
            run.note(metrics=metrics, weights=outcome.result["weights"])
            self._finish(run, plan, "complete", value=metrics[run.metric], metrics=metrics)
            return metrics[run.metric]
        self._finish(run, plan, "pruned", reason=reason)
        raise optuna.TrialPruned(reason)

    def _repeat(self, run: TrialRun, twin: FrozenTrial) -> float:
        """The same training was done before, and would end the same way."""
        reason = f"same as trial {twin.number}"
        run.copy(twin, reason=reason)
        pruned = twin.state == TrialState.PRUNED
        value = None if pruned else twin.value
        self._watcher.trial_finished(
            run.number, "pruned" if pruned else "complete", value=value, reason=reason
        )
        if value is None:
            raise optuna.TrialPruned(reason)
        return value

    def _finish(
        self,
        run: TrialRun,
        plan: TrainPlan,
        end: End,
        *,
        value: float | None = None,
        metrics: Mapping[str, float] = MappingProxyType({}),
        reason: str = "",
    ) -> None:
        """Record the end everywhere but in Optuna's state, which Optuna itself writes next."""
        run.note(steps_trained=run.steps_trained, **({"reason": reason} if reason else {}))
        self._note_run(run)
        write_trial_note(run, plan, end=end, reason=reason)
        self._tracker.record(
            TrialFinished(
                key=run.key,
                state=TOLD[end],
                metrics={f"final_{name}": number for name, number in metrics.items()},
                reason=reason,
            )
        )
        self._watcher.trial_finished(run.number, end, value=value, reason=reason)
