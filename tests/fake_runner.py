"""A group runner for tests: its ranks are this process, and do what a test has them do."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from knee_tune.config.recipe import Spec
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.workers.protocol import (
    Callbacks,
    Channel,
    Decision,
    Failure,
    GroupRunner,
    Outcome,
    Report,
)

What = Callable[[int], None]
"""Called with the step at every sign of life of a training run; what it raises ends the run."""

Job = Callable[[Plan, Channel], Outcome]
"""What the ranks do with a plan."""

Message = TypeVar("Message", bound=Spec)


class Died(Exception):
    """A rank's end, with the cause that a group runner would name."""

    def __init__(self, kind: str = "signal") -> None:
        self.failure = Failure.model_validate({"kind": kind, "rank": 1, "message": f"died: {kind}"})


def at(step: int, error: BaseException | type[BaseException]) -> What:
    """An error at one step."""

    def happen(now: int) -> None:
        if now == step:
            raise error

    return happen


def over_the_line(message: Message) -> Message:
    """What arrives of a message between a driver and a rank, which read and write JSON."""
    return type(message).model_validate_json(message.model_dump_json())


def run_here(plan: Plan, channel: Channel) -> Outcome:
    """The job itself, as the one rank of its group."""
    import torch

    from knee_tune.jobs import run_job
    from knee_tune.workers.group import Group

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a rank does
    try:
        return over_the_line(run_job(over_the_line(plan), Group(), channel))
    finally:
        torch.set_num_threads(threads)


class FakeRunner(GroupRunner):
    """Has ``job`` answer every plan; ``faults`` are what happens to the 1st, 2nd, ... training run.

    What a job or a callback raises comes out as it is, but for :class:`Died`.
    """

    def __init__(self, *faults: What | None, job: Job = run_here) -> None:
        self.faults, self._job = iter(faults), job
        self.jobs: list[Plan] = []
        """Every plan, in the order in which they began."""
        self.reports: list[list[int]] = []
        """The steps that each training run reported."""
        self._beginning = threading.Lock()

    @property
    def plans(self) -> list[TrainPlan]:
        """Those of training runs."""
        return [plan for plan in self.jobs if isinstance(plan, TrainPlan)]

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        """What the ranks do."""
        return self._job(plan, channel)

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        reported: list[int] = []
        fault: What | None = None
        with self._beginning:
            self.jobs.append(plan)
            if isinstance(plan, TrainPlan):
                fault = next(self.faults, None)
                self.reports.append(reported)

        class Line(Channel):
            def report(self, report: Report) -> Decision:
                reported.append(report.step)
                return over_the_line(callbacks.on_report(over_the_line(report)))

            def progress(self, step: int) -> None:
                callbacks.on_progress(step)
                if fault is not None:
                    fault(step)

            def line(self, text: str) -> None:
                callbacks.on_line(text)

        try:
            return self.job(plan, Line())
        except Died as death:
            return death.failure

    def close(self) -> None:
        """There is nothing to end."""


@contextmanager
def ranks_here() -> Iterator[None]:
    """All workers that are opened meanwhile train in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: FakeRunner())
        yield
