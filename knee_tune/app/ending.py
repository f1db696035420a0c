"""How a command that trains comes to its end: cleanly, and told to MLflow and to people."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from knee_tune.specs.tracking import StudyFinished, StudyState
from knee_tune.tracking import EXIT_PATIENCE, Tracker, unsent_notice


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM (from a scheduler that preempts) ends a command as cleanly as Ctrl-C."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def told_end(
    tracker: Tracker,
    *,
    uri: str | None,
    finished: Callable[[StudyState], StudyFinished],
    on_line: Callable[[str], None],
) -> Iterator[None]:
    """Whatever happens inside, ``tracker`` records what ``finished`` makes of it and is closed.

    Ctrl-C and SIGTERM raise KeyboardInterrupt inside. ``on_line`` gets the line about what could
    not be sent to ``uri`` (None: nothing is tracked), also where an exception ends it all.
    """
    state: StudyState = "FAIL"
    try:
        with interruptible():
            yield
        state = "COMPLETE"
    except KeyboardInterrupt:
        state = "INTERRUPTED"
        raise
    finally:
        try:
            tracker.record(finished(state))
        finally:
            # who interrupts does not wait for a slow store: what remains is in the outbox
            remaining = tracker.close(None if state == "COMPLETE" else EXIT_PATIENCE)
            if notice := unsent_notice(remaining, uri or ""):
                on_line(notice)
