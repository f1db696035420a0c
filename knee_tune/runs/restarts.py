"""Groups that died: whether and when another is started, and whose fault it was in the end."""

import time
from collections.abc import Callable

from knee_tune.distributed.protocol import Decision, Done, Failure, GroupRunner, Report
from knee_tune.errors import GOES_ON, MachineError, UserError
from knee_tune.planning.plan import Plan
from knee_tune.runs.locks import POLL_SECONDS
from knee_tune.tasks.registry import task_entry

OWN_STARTS = 3
"""Times a run is started whose errors are its own: once, and twice more from its checkpoint."""

MACHINE_STARTS = 6
"""Starts in a row that the machine may end without the run having got any further."""

JOB_STARTS = 3
"""The same, of a job that keeps no checkpoint."""

FIRST_PAUSE = 1.0
"""Seconds before a group that the machine ended is started again; each time twice as many."""


class Restarts:
    """How often, and after which pause, a group that died is started again."""

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
            return None  # what people must put right comes out the same again
        if not failure.by_machine:
            self._errors += 1
            return 0.0 if self._errors < self._own else None
        self._deaths = self._deaths + 1 if start is None or start <= self._furthest else 1
        self._furthest = max(self._furthest, -1 if start is None else start)
        return FIRST_PAUSE * 2 ** (self._deaths - 1) if self._deaths < self._machine else None

    def given_up(self, failure: Failure) -> Failure:
        """``failure`` as the last one, for the people who have to find out."""
        if not failure.by_machine:
            return failure
        times = f"{failure.message}, {self._deaths} times without getting any further"
        return failure.model_copy(update={"message": times})

    def words(self, failure: Failure) -> str:
        """Which of how many starts comes next, as in ``1 of 2``."""
        if failure.by_machine:
            return f"{self._deaths} of {self._machine - 1}"
        return f"{self._errors} of {self._own - 1}"


def wait(seconds: float, on_life: Callable[[], None]) -> None:
    """Wait, calling ``on_life`` often; what it raises ends the wait."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        on_life()
        time.sleep(min(left, POLL_SECONDS))


def run_job(
    runner: GroupRunner,
    plan: Plan,
    *,
    on_report: Callable[[Report], Decision] = lambda report: Decision(stop=False),
    on_line: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int], None] = lambda step: None,
) -> Done:
    """Run a plan that is no run of a study; the machine may end its group twice.

    UserError or MachineError with the root cause if it fails. ``on_progress`` is called with every
    sign of life; what it raises ends the job and propagates.
    """
    restarts = Restarts(own=1, machine=JOB_STARTS)
    while True:
        outcome = runner.run(plan, on_report=on_report, on_line=on_line, on_progress=on_progress)
        if isinstance(outcome, Done):
            return outcome
        pause = restarts.pause(outcome)
        if pause is None:
            outcome = restarts.given_up(outcome)
            raise error_of(outcome, task=plan.task, said=_shown(outcome, plan))
        on_line(f"{outcome.message}; starting again in {pause:g} s ({restarts.words(outcome)})")
        wait(pause, lambda: on_progress(0))


def error_of(failure: Failure, *, task: str, said: str) -> UserError | MachineError:
    """The error that says ``said``: whose the failure was decides the command's exit code.

    An exception in a task that is not ours is its author's to put right.
    """
    theirs = not task_entry(task).task.startswith("knee_tune.")
    of_code = failure.kind in ("exception", "exit")
    if failure.kind == "user_error" or (theirs and of_code):
        return UserError(said)
    return MachineError(f"{said}; {GOES_ON}" if failure.kind == "disk" else said)


def _shown(failure: Failure, plan: Plan) -> str:
    """What people can put right in its own words; anything else with the place of its traceback."""
    if failure.kind == "user_error":
        return failure.message
    return f"task {plan.task}: {failure.message}; its log: {plan.log_dir}"
