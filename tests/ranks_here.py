"""Worker groups of one rank that is this process: real training without the start-up of groups."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch

from knee_tune.config.recipe import Spec
from knee_tune.jobs import run_job
from knee_tune.plans.plan import Plan
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Decision, Outcome, Report

Message = TypeVar("Message", bound=Spec)


def over_the_line(message: Message) -> Message:
    """What arrives of a message between a driver and a rank, which read and write JSON."""
    return type(message).model_validate_json(message.model_dump_json())


class RanksHere:
    """A group runner; what a rank or a callback raises comes out as it is."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def run(
        self,
        plan: Plan,
        *,
        on_report: Callable[[Report], Decision],
        on_line: Callable[[str], None],
        on_progress: Callable[[int], None],
    ) -> Outcome:
        class Line(Channel):
            def report(self, report: Report) -> Decision:
                return over_the_line(on_report(over_the_line(report)))

            def progress(self, step: int) -> None:
                on_progress(step)

            def line(self, text: str) -> None:
                on_line(text)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as a rank does
        try:
            return over_the_line(run_job(over_the_line(plan), Group(), Line()))
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """There is nothing to end."""


@contextmanager
def ranks_here() -> Iterator[None]:
    """All workers that are opened meanwhile trains in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("knee_tune.commands.workers.ForkserverRunner", RanksHere)
        yield
