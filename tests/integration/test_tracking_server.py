"""A real ``mlflow server`` that answers, hangs, dies and comes back while a study runs."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from mlflow import MlflowClient

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
from knee_tune.tracking import MlflowTracker, send_leftovers, unsent_notice
from knee_tune.tracking.store import local_store
from tests.mlflow_stores import TrackingServer, new_home, tracking_server
from tests.waiting import awaited

STUDY = StudyStarted(uid="77", name="s", task="digits", experiment="knee-tune-digits")
STEPS = 40


@pytest.fixture
def server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    with tracking_server(new_home(tmp_path_factory, tmp_path)) as server:
        server.start()
        yield server


class Driver:
    """Records trials and notes how long every call took, in seconds."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self.tracker = tracker
        self.calls: list[float] = []

    def record(self, event: Event) -> None:
        started = time.perf_counter()
        self.tracker.record(event)
        self.calls.append(time.perf_counter() - started)

    def train(self, number: int) -> None:
        key = f"trial-{number}"
        self.record(TrialStarted(key=key, name=key, number=number))
        for step in range(STEPS):
            metrics = {"loss": 1 / (step + 1), "accuracy": float(step)}
            self.record(TrialReported(key=key, step=step, lr=0.1, metrics=metrics))
            time.sleep(0.01)
        self.record(Attached(key=key, name="log.txt", text="fine"))
        self.record(TrialFinished(key=key, state=RunEnd.COMPLETE))


def test_an_unreliable_server_costs_nothing_and_loses_nothing(
    server: TrackingServer, tmp_path: Path
) -> None:
    home = tmp_path / "driver"
    home.mkdir()
    driver = Driver(MlflowTracker(home=home, uri=server.uri, interval=0.1))
    driver.record(STUDY)
    driver.train(0)
    assert driver.tracker.flush(timeout=60) == 0

    server.signal(signal.SIGSTOP)
    driver.train(1)
    assert driver.tracker.flush(timeout=0.5) > 0
    server.signal(signal.SIGCONT)

    driver.train(2)
    driver.tracker.flush(timeout=0.1)  # killed with requests under way
    server.kill()
    driver.train(3)

    restarting = threading.Thread(target=server.start)
    restarting.start()
    driver.train(4)
    restarting.join()
    driver.train(5)
    driver.record(StudyFinished())
    awaited(lambda: driver.tracker.flush(timeout=10) == 0)
    assert driver.tracker.close() == 0
    # One call to a server that hangs would take 3 s; what is left is the machine's own load.
    assert median(driver.calls) < 0.005
    assert max(driver.calls) < 0.5

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("knee-tune-digits")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["s", *(f"trial-{number}" for number in range(6))]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    for number in range(6):
        run_id = found[f"trial-{number}"].info.run_id
        for metric in ("loss", "accuracy", "lr"):
            history = client.get_metric_history(run_id, metric)
            assert [point.step for point in history] == list(range(STEPS))
        assert [file.path for file in client.list_artifacts(run_id)] == ["log.txt"]


def test_a_dead_server_gets_everything_with_the_next_command(
    server: TrackingServer, tmp_path: Path
) -> None:
    server.kill()
    home = tmp_path / "driver"
    home.mkdir()
    driver = Driver(MlflowTracker(home=home, uri=server.uri))
    driver.record(STUDY)
    driver.train(0)
    started = time.monotonic()
    remaining = driver.tracker.close()
    assert time.monotonic() - started < 12
    assert remaining == STEPS + 4
    assert unsent_notice(remaining, server.uri) == (
        f"{remaining} tracking events could not be sent to {server.uri}; the next run sends them"
    )

    assert send_leftovers(home=home, uri=local_store(home)) == 0  # not meant for this store
    assert not (home / "mlflow.db").exists()
    server.start()
    assert send_leftovers(home=home, uri=server.uri, timeout=60) == 0
    assert not list(home.rglob("*.jsonl"))
    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("knee-tune-digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "run_name = 'trial-0'")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(STEPS))
    (study,) = client.search_runs([experiment.experiment_id], "run_name = 's'")
    assert study.info.status == "KILLED"  # its driver never said that it was done
