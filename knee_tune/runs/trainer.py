"""Trains a run once: takes a cached result, shares its trunk, starts it again if it dies."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from knee_tune.config.recipe import task_slug
from knee_tune.errors import CONTINUES, MachineError, UserError
from knee_tune.plans.plan import (
    Plan,
    TrainPlan,
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
    discard_checkpoints,
)
from knee_tune.plans.step_note import begin_note, end_note, read_note
from knee_tune.records.values import StepCount
from knee_tune.runs.locks import POLL_SECONDS, file_lock, held_once
from knee_tune.runs.run_cache import RECORD, read_record, write_record
from knee_tune.runs.sharing import Sharing
from knee_tune.runs.trunks import TrunkStore
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.protocol import (
    QUIET,
    Callbacks,
    Decision,
    Done,
    Failure,
    GroupRunner,
    Outcome,
    Report,
)

OWN_STARTS = 3
"""Times a run is started whose errors are its own: once, and twice more from its checkpoint."""

MACHINE_STARTS = 6
"""Starts in a row that the machine may end without the run having got any further."""

JOB_STARTS = 3
"""The same, of a job that keeps no checkpoint."""

FIRST_PAUSE = 1.0
"""Seconds before a group that the machine ended is started again; each time twice as many."""


class Restarts:
    """Rule by which a group that died is started again: how often, after which pause."""

    def __init__(self, *, own: int = OWN_STARTS, machine: int = MACHINE_STARTS) -> None:
        self._own, self._machine = own, machine
        self._errors = self._deaths = 0
        self._furthest = -1

    def pause(self, failure: Failure, *, start: int | None = None) -> float | None:
        """Seconds until another start, which ``failure`` is a reason for; None: it is given up.

        ``start``: the step from which the group that died trained, if it came that far. As long as
        that is a later one every time the machine may end as many as it likes.
        """
        if failure.kind == "user_error":
            return None  # what people must fix comes out the same again
        if not failure.by_machine:
            self._errors += 1
            return 0.0 if self._errors < self._own else None
        self._deaths = self._deaths + 1 if start is None or start <= self._furthest else 1
        self._furthest = max(self._furthest, -1 if start is None else start)
        return FIRST_PAUSE * 2 ** (self._deaths - 1) if self._deaths < self._machine else None

    def given_up(self, failure: Failure) -> Failure:
        """Word ``failure`` as the last one, for the people who have to find out."""
        if not failure.by_machine:
            return failure
        times = f"{failure.message}, {self._deaths} times without getting any further"
        return failure.model_copy(update={"message": times})

    def words(self, failure: Failure) -> str:
        """Count which of how many starts comes next, as in ``1 of 2``."""
        if failure.by_machine:
            return f"{self._deaths} of {self._machine - 1}"
        return f"{self._errors} of {self._own - 1}"


def wait(seconds: float, on_life: Callable[[], None]) -> None:
    """Wait, calling ``on_life`` often; what it raises ends the wait."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        on_life()
        time.sleep(min(left, POLL_SECONDS))


def run_job(runner: GroupRunner, plan: Plan, callbacks: Callbacks = QUIET) -> Done:
    """Run a plan that is no run of a study; the machine may end its group twice.

    UserError or MachineError with the root cause if it fails. ``on_progress`` is called with every
    sign of life; what it raises ends the job and propagates.
    """
    restarts = Restarts(own=1, machine=JOB_STARTS)
    while True:
        outcome = runner.run(plan, callbacks)
        if isinstance(outcome, Done):
            return outcome
        pause = restarts.pause(outcome)
        if pause is None:
            outcome = restarts.given_up(outcome)
            _write_down(plan, outcome)
            raise error_of(outcome, task=plan.task, said=_shown(outcome, plan))
        callbacks.on_line(
            f"{outcome.message}; starting again in {pause:g} s ({restarts.words(outcome)})"
        )
        wait(pause, lambda: callbacks.on_progress(0))


def _write_down(plan: Plan, failure: Failure) -> None:
    """Put what the group died of beside the logs of its ranks, where its error sends people.

    The stacks of a stall, and what a group said that did not start, are in no rank's log.
    """
    if failure.traceback and failure.kind != "user_error":
        with suppress(OSError):
            plan.log_dir.mkdir(parents=True, exist_ok=True)
            said = f"{failure.message}\n\n{failure.traceback}"
            (plan.log_dir / "failure.log").write_text(said, encoding="utf-8")


def error_of(failure: Failure, *, task: str, said: str) -> UserError | MachineError:
    """The error that says ``said``: whose the failure was decides the command's exit code.

    An exception in a task that is not ours is its author's to fix.
    """
    theirs = not task_entry(task).task.startswith("knee_tune.")
    of_code = failure.kind in ("exception", "exit")
    if failure.kind == "user_error" or (theirs and of_code):
        return UserError(said)
    return MachineError(f"{said}; {CONTINUES}" if failure.kind == "disk" else said)


def _shown(failure: Failure, plan: Plan) -> str:
    """A user's mistake in its own words; anything else with the place of its traceback."""
    if failure.kind == "user_error":
        return failure.message
    return f"task {task_slug(plan.task)}: {failure.message}; its log: {plan.log_dir}"


T = TypeVar("T")

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Outcome of a run, and what it cost."""

    outcome: Outcome
    steps: StepCount
    """Including what was counted before."""
    cached: bool = False
    """From the run cache: nothing was trained."""


@dataclass(frozen=True, kw_only=True)
class _Listener(Callbacks):
    """Callbacks of one run, and of what it cost."""

    on_steps: Callable[[StepCount], None]


def _ignore(steps: StepCount) -> None: ...


class Trainer:
    """Has a group runner train runs, each of them once, in any number of threads and drivers.

    A run's checkpoint folder is named after everything that decides its result
    (``plans/identity.py``), so one driver at a time works in it, and what it leaves there serves
    the next. ``trunks``: None if none are kept. ``sharing``: what other homes left, and get; None:
    nothing. ``on_life`` is called at every sign of life of
    every run, also of one that waits, and before anything is said of it; what it raises ends the
    run.
    """

    def __init__(
        self,
        runner: GroupRunner,
        *,
        trunks: TrunkStore | None,
        sharing: Sharing | None = None,
        on_life: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner, self._trunks, self._on_life = runner, trunks, on_life
        self._sharing = sharing

    def train(
        self,
        plan: TrainPlan,
        callbacks: Callbacks,
        *,
        steps: Callable[[], StepCount] = StepCount,
        on_steps: Callable[[StepCount], None] = _ignore,
    ) -> RunResult:
        """Train ``plan`` to its end, which another driver may be doing already: then wait for it.

        ``steps`` tells what was counted for this run before, and is asked again when nobody else
        trains it any more: they may have counted meanwhile. ``on_steps`` gets the new count after
        every attempt, also after one that ended in an exception, while still nobody else does.
        ``on_progress`` is called while there is nothing to do but wait, too. Reports of a
        cached run or from a checkpoint come again; only those of new steps decide anything.
        What a callback raises ends the run and propagates; no lock stays held.
        """
        listener = _Listener(
            on_report=self._alive(callbacks.on_report),
            on_line=self._alive(callbacks.on_line),
            on_progress=self._alive(callbacks.on_progress),
            on_steps=on_steps,
        )
        folder = plan.checkpoint_dir
        lock = file_lock(folder.with_name(f"{folder.name}.lock"))
        why = f"{plan.log_dir.name}: waiting for the same run elsewhere, to take its result"
        wait = _Wait(listener, step=steps().reached, why=why)
        with held_once(lock, unless=lambda: False, meanwhile=wait):
            before = _counted(plan, steps(), listener)
            if self._sharing is not None:
                alive = partial(listener.on_progress, before.reached)
                self._sharing.fetch_run(folder, on_line=listener.on_line, on_life=alive)
            result = _cached(plan, before, listener) or self._train(plan, before, listener)
            if self._sharing is not None and (folder / RECORD).is_file():
                self._sharing.put_run(folder, on_line=callbacks.on_line)
            return result

    def _alive(self, callback: Callable[[T], R]) -> Callable[[T], R]:
        """Wrap ``callback``: it is called as long as ``on_life`` raises nothing."""

        def called(what: T) -> R:
            self._on_life()
            return callback(what)

        return called

    def _train(self, plan: TrainPlan, steps: StepCount, listener: _Listener) -> RunResult:
        """Train, and train again from the newest checkpoint if the group dies."""
        reports: dict[int, Report] = {}
        self._use_trunk(plan, listener)
        restarts = Restarts()
        while True:
            outcome, start, steps = self._attempt(plan, steps, reports, listener)
            if isinstance(outcome, Done):
                _record(plan, outcome, reports, listener)
                break
            pause = restarts.pause(outcome, start=start)
            if pause is None:
                outcome = restarts.given_up(outcome)
                _write_down(plan, outcome)
                break
            when = f" in {pause:g} s" if pause else ""
            listener.on_line(
                f"{plan.log_dir.name}: {outcome.message}; starting again from its newest "
                f"checkpoint{when} ({restarts.words(outcome)})"
            )
            wait(pause, partial(listener.on_progress, steps.reached))
        return RunResult(outcome=outcome, steps=steps)

    def _attempt(
        self,
        plan: TrainPlan,
        steps: StepCount,
        reports: dict[int, Report],
        listener: _Listener,
    ) -> tuple[Outcome, int | None, StepCount]:
        """Start the group once: its outcome, its first step, and all steps with its own among.

        An attempt that did not come back is counted by what its rank 0 noted, or else by its signs
        of life: the first step it gave tells where it started. Reports do not, for it repeats those
        of earlier steps.
        """
        first: int | None = None
        last = 0
        outcome: Outcome | None = None

        def see(step: int) -> None:
            nonlocal last
            last = max(last, step)
            passed(step)

        def on_report(report: Report) -> Decision:
            reports[report.step] = report
            see(report.step)
            return listener.on_report(report)

        def on_progress(step: int) -> None:
            nonlocal first
            first = step - 1 if first is None and step else first
            see(step)
            listener.on_progress(step)

        with self._trunk_alone(plan, steps, listener) as passed:
            with suppress(OSError):
                begin_note(plan, steps)
            try:
                outcome = self._runner.run(
                    plan,
                    Callbacks(
                        on_report=on_report, on_line=listener.on_line, on_progress=on_progress
                    ),
                )
            finally:
                noted = read_note(plan)
                if isinstance(outcome, Done):
                    steps = steps.after(first=outcome.first_step, last=outcome.step)
                elif noted is not None and noted.trained > steps.trained:
                    steps = noted
                elif first is not None:
                    steps = steps.after(first=first, last=last)
                listener.on_steps(steps)
                end_note(plan)
        return outcome, first, steps

    @contextmanager
    def _trunk_alone(
        self, plan: TrainPlan, steps: StepCount, listener: _Listener
    ) -> Iterator[Callable[[int], None]]:
        """Keep others from training this trunk until the run, which tells its steps, has left it.

        There is no need for that if the state where it leaves is known, or becomes known while we
        wait. From then on the run adds nothing to the store, which is kept within its limit.
        """
        if self._trunks is None or plan.trunk is None or not plan.trunk.checkpoint_steps:
            yield lambda step: None
            return
        trunk, leaves = plan.trunk, plan.trunk.checkpoint_steps[-1]
        sharing, put = self._sharing, 0

        def known() -> bool:
            own = checkpoint_paths(plan.checkpoint_dir)
            return checkpoint_path(trunk.folder, step=leaves).is_dir() or any(
                checkpoint_step(path) >= leaves for path in own
            )

        def passed(step: int) -> None:
            nonlocal put
            if step > leaves:
                leaving.close()
            elif sharing is not None and (saved := bisect_left(trunk.checkpoint_steps, step)) > put:
                put = saved  # a step that is over was written, if it was to be
                sharing.put_trunk(plan, on_line=listener.on_line)

        why = f"{plan.log_dir.name}: waiting for another run that is training the same trunk"
        wait = _Wait(listener, step=steps.reached, why=why)
        lock = self._trunks.lock(trunk.key)
        with ExitStack() as leaving:
            leaving.callback(self._shrink, listener)
            leaving.enter_context(held_once(lock, unless=known, meanwhile=wait))
            if sharing is not None:
                leaving.enter_context(
                    sharing.trunk_alone(
                        plan,
                        unless=known,
                        meanwhile=wait,
                        on_line=listener.on_line,
                        on_life=partial(listener.on_progress, steps.reached),
                    )
                )
            yield passed

    def _use_trunk(self, plan: TrainPlan, listener: _Listener) -> None:
        if self._trunks is not None and plan.trunk is not None:
            try:
                self._trunks.use(plan)
            except OSError as error:
                listener.on_line(f"{self._trunks.root}: its use is not noted: {error}")

    def _shrink(self, listener: _Listener) -> None:
        if self._trunks is not None:
            try:
                self._trunks.shrink()
            except OSError as error:
                listener.on_line(f"{self._trunks.root}: cannot be kept within its limit: {error}")


class _Wait:
    """Wait for another run: say why, once, and let interrupts through."""

    def __init__(self, listener: _Listener, *, step: int, why: str) -> None:
        self._listener, self._step, self._why = listener, step, why
        self._said = False

    def __call__(self) -> None:
        if not self._said:
            self._listener.on_line(self._why)
            self._said = True
        self._listener.on_progress(self._step)


def _counted(plan: TrainPlan, steps: StepCount, listener: _Listener) -> StepCount:
    """Add to ``steps`` those of an attempt whose driver was killed before it counted them."""
    noted = read_note(plan)
    if noted is not None and noted.trained > steps.trained:
        steps = noted
        listener.on_steps(steps)
    end_note(plan)
    return steps


def _cached(plan: TrainPlan, steps: StepCount, listener: _Listener) -> RunResult | None:
    """The result of a run that was trained before, told as if it were trained now."""
    record = read_record(plan, on_line=listener.on_line)
    if record is None:
        return None
    outcome = record.answer(plan)
    steps = steps.after(first=outcome.step, last=outcome.step)
    listener.on_steps(steps)
    for report in record.reports:
        listener.on_report(report)  # how it ended is known: there is nothing to decide
    return RunResult(outcome=outcome, steps=steps, cached=True)


def _record(
    plan: TrainPlan, outcome: Done, reports: dict[int, Report], listener: _Listener
) -> None:
    """Cache a run that is done, and discard its checkpoints."""
    curve = [report for step, report in sorted(reports.items()) if step <= outcome.step]
    try:
        if write_record(plan, outcome, curve):
            discard_checkpoints(plan.checkpoint_dir)
    except OSError as error:
        listener.on_line(f"{plan.checkpoint_dir}: the run is not recorded: {error}")
