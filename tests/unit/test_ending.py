"""However a command ends, its end is recorded and what could not be sent is said."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from knee_tune.commands.opened import told_end
from knee_tune.records.events import Event, StudyFinished, StudyState
from knee_tune.tracking.tracker import NullTracker


class Deaf(NullTracker):
    """A tracker whose server never answers."""

    def __init__(self) -> None:
        self.told: list[Event] = []

    def record(self, event: Event) -> None:
        self.told.append(event)

    def close(self, timeout: float | None = None) -> int:
        return len(self.told)


class OurMistake(Exception):
    """Whatever is not foreseen."""


def told(tracker: Deaf, on_line: Callable[[str], None]) -> AbstractContextManager[None]:
    return told_end(
        tracker,
        uri="http://mlflow",
        finished=lambda state: StudyFinished(state=state),
        on_line=on_line,
    )


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "COMPLETE"), (KeyboardInterrupt(), "INTERRUPTED"), (OurMistake(), "FAIL")],
)
def test_every_end_is_recorded(error: BaseException | None, state: StudyState) -> None:
    tracker = Deaf()
    raised = pytest.raises(type(error)) if error else nullcontext()
    with raised, told(tracker, on_line=lambda text: None):
        if error:
            raise error
    assert tracker.told == [StudyFinished(state=state)]


def test_sigterm_interrupts_and_says_what_could_not_be_sent() -> None:
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), told(Deaf(), on_line=lines.append):
        os.kill(os.getpid(), signal.SIGTERM)
    assert lines == [
        "1 tracking events could not be sent to http://mlflow; the next run sends them"
    ]
