"""What every tracker promises to the driver."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knee_tune.records.events import (
    Attached,
    Event,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from knee_tune.records.values import RunEnd
from knee_tune.tracking import Tracker, open_tracker
from knee_tune.tracking.store import local_store
from tests.mlflow_stores import new_home

STUDY = StudyStarted(uid="u", name="s", task="digits", experiment="e")
NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""

WAITED = 2.5
"""Seconds. A call that waits for a server that never answers takes three at least (and a machine
that is busy with something else half a second at most)."""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["none", "sqlite", "server that is down", "server that never answers"])
def tracker(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    silent_server: str,
) -> Tracker:
    match request.param:
        case "none":
            return open_tracker(home=tmp_path, uri=None)
        case "sqlite":
            home = new_home(tmp_path_factory, tmp_path)
            return open_tracker(home=home, uri=local_store(home))
        case "server that is down":
            return open_tracker(home=tmp_path, uri=NOWHERE)
        case _:
            return open_tracker(home=tmp_path, uri=silent_server)


def test_a_whole_study_is_recorded_without_waiting(tracker: Tracker) -> None:
    events: list[Event] = [
        STUDY,
        TrialStarted(key="trial-0", name="trial 0", number=0),
        *(TrialReported(key="trial-0", step=step, lr=0.1) for step in range(100)),
        Attached(key="trial-0", name="notes.txt", text="none"),
        TrialFinished(key="trial-0", state=RunEnd.COMPLETE),
        StudyFinished(),
    ]
    slowest = 0.0
    for event in events:
        started = time.perf_counter()
        tracker.record(event)
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < WAITED
    assert tracker.close(timeout=0) >= 0


def test_a_run_that_is_not_known_is_none_without_waiting(tracker: Tracker) -> None:
    started = time.perf_counter()
    assert tracker.run_of("trial-0") is None
    tracker.record(STUDY)
    assert tracker.run_of("trial-7") is None
    assert time.perf_counter() - started < WAITED
    tracker.close(timeout=0)


def test_closing_is_bounded_and_may_be_repeated(tracker: Tracker) -> None:
    assert tracker.flush(timeout=0) == 0
    tracker.record(STUDY)
    started = time.perf_counter()
    remaining = tracker.close(timeout=0.5)
    assert tracker.close(timeout=0.5) == remaining
    assert time.perf_counter() - started < 2 * WAITED
