"""A study in a real MLflow store: the runs people will look at."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, PERMISSION_DENIED
from sqlalchemy import create_engine

from knee_tune import __version__
from knee_tune.errors import UserError
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
from knee_tune.tracking import (
    MlflowTracker,
    open_tracker,
    provenance,
    resolve_tracking_uri,
    send_leftovers,
    ui_command,
)
from knee_tune.tracking.outbox import Outbox, outbox_root
from knee_tune.tracking.runs import RUN_KEY, RunWriter
from knee_tune.tracking.sender import ForbiddenError
from knee_tune.tracking.store import connect, follow_home, local_store
from tests.mlflow_stores import new_home
from tests.waiting import awaited

STUDY = StudyStarted(
    uid="4f1c",
    name="knee-digits-30",
    task="digits",
    experiment="knee-tune-digits",
    params={"recipe": {"epochs": 30, "model": {"hidden": [64, 64]}, "clip_norm": None}},
    tags={"mlflow.source.git.commit": "abc", "mlflow.user": "ann", "knee.data_fingerprint": "f0"},
    description="# A study",
)


def trial(number: int, **changes: object) -> TrialStarted:
    start = TrialStarted(
        key=f"trial-{number}",
        name=f"trial {number}",
        number=number,
        seed_lr=0.05,
        explore_fraction=0.5,
        params={"recipe": {"epochs": 30}},
    )
    return start.model_copy(update=changes)


def report(step: int, number: int = 0) -> TrialReported:
    return TrialReported(
        key=f"trial-{number}", step=step, lr=0.1 / step, metrics={"loss": 1 / step}
    )


KILLED = (trial(0), report(1))
"""The last words of a driver that was killed in the middle of a trial."""

INTERRUPTED = (
    *KILLED,
    TrialFinished(key="trial-0", state=RunEnd.FAILED, reason="interrupted"),
    StudyFinished(state="INTERRUPTED", tags={"knee.best_trial": "none"}),
)
"""Those of one that could still say how it ended, but not deliver it."""


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_home(tmp_path_factory, tmp_path)


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return connect(local_store(home))


def track(home: Path, *events: Event) -> None:
    tracker = open_tracker(home=home, uri=local_store(home))
    for event in events:
        tracker.record(event)
    assert tracker.close(timeout=60) == 0


def leave(home: Path, uri: str, *events: Event) -> None:
    """The outbox of a driver that died before it could deliver anything."""
    dead = Outbox.create(outbox_root(home, uri), STUDY)
    for event in events:
        time.sleep(0.002)  # events of one millisecond have no order
        dead.append(event)
    dead.close()
    time.sleep(0.002)


class Driver:
    """One of several drivers of a study. What it records is delivered at once."""

    def __init__(self, home: Path, uri: str) -> None:
        self._tracker = open_tracker(home=home, uri=uri)
        self.record(STUDY)

    def record(self, *events: Event) -> None:
        for event in events:
            time.sleep(0.002)
            self._tracker.record(event)
        assert self._tracker.flush(timeout=60) == 0

    def close(self) -> None:
        assert self._tracker.close(timeout=60) == 0


def runs(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("knee-tune-digits")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_study_is_a_parent_run_with_a_child_per_trial(home: Path, client: MlflowClient) -> None:
    log = home / "rank-0.log"
    log.write_text("hello")
    track(
        home,
        STUDY,
        trial(0),
        *map(report, range(1, 5)),
        Attached(key="trial-0", name="logs/rank-0.log", file=log),
        Attached(key="trial-0", name="curves.html", figure={"data": [{"y": [3, 2]}]}),
        TrialFinished(
            key="trial-0", state=RunEnd.COMPLETE, step=4, metrics={"test/accuracy": 93.0}
        ),
        trial(1),
        report(1, number=1),
        TrialFinished(key="trial-1", state=RunEnd.PRUNED, reason="worse than the median"),
        trial(2),
        TrialFinished(key="trial-2", state=RunEnd.FAILED, reason="rank 1: out of memory"),
        TrialStarted(key="cosine/0", name="cosine", schedule="cosine", seed_lr=0.05),
        TrialFinished(key="cosine/0", state=RunEnd.COMPLETE),
        Attached(name="report.md", text="# Report"),
        StudyFinished(metrics={"best/accuracy": 93.0}),
    )
    found = runs(client)
    parent = found.pop("knee-digits-30")
    assert {name: run.info.status for name, run in found.items()} == {
        "trial 0": "FINISHED",
        "trial 1": "KILLED",
        "trial 2": "FAILED",
        "cosine": "FINISHED",
    }
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"recipe.epochs": "30", "recipe.model.hidden": "[64, 64]"}
    assert parent.data.tags["mlflow.note.content"] == "# A study"
    assert parent.data.tags["knee.data_fingerprint"] == "f0"
    assert parent.data.metrics == {"best/accuracy": 93.0}

    first = found["trial 0"]
    expected = {
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.source.git.commit": "abc",
        "mlflow.user": "ann",
        "optuna.study_name": "knee-digits-30",
        "optuna.trial_number": "0",
        "optuna.state": "COMPLETE",
        "knee.seed_lr": "0.05",
        "knee.explore_fraction": "0.5",
        "knee.schedule": "knee",
    }
    assert expected.items() <= first.data.tags.items()
    assert first.data.params["recipe.epochs"] == "30"
    assert first.data.metrics["test/accuracy"] == 93.0
    curve = client.get_metric_history(first.info.run_id, "lr")
    assert [(point.step, point.value) for point in curve] == [(n, 0.1 / n) for n in range(1, 5)]
    assert found["trial 1"].data.tags["knee.reason"] == "worse than the median"
    assert found["cosine"].data.tags["knee.schedule"] == "cosine"
    assert "optuna.trial_number" not in found["cosine"].data.tags

    artifacts = home / "artifacts" / "knee-tune-digits" / first.info.run_id / "artifacts"
    assert (artifacts / "logs" / "rank-0.log").read_text() == "hello"
    assert "Plotly.newPlot" in (artifacts / "curves.html").read_text()
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.md"]
    assert not list((home / "outbox").rglob("*.jsonl"))


def test_a_continued_study_and_a_retried_trial_keep_their_runs(
    home: Path, client: MlflowClient
) -> None:
    track(home, STUDY, trial(0), report(1), report(2), StudyFinished(state="INTERRUPTED"))
    before = {name: run.info.run_id for name, run in runs(client).items()}
    assert runs(client)["knee-digits-30"].info.status == "KILLED"

    other = STUDY.model_copy(update={"params": {"recipe": {"epochs": 99}, "trials": 5}})
    retry = trial(7, key="trial-0", params={"recipe": {"epochs": 99}})
    done = TrialFinished(key="trial-0", state=RunEnd.COMPLETE)
    track(home, other, retry, report(2), report(3), done, StudyFinished())

    found = runs(client)
    assert {name: run.info.run_id for name, run in found.items()} == before
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["trial 0"].data.tags["optuna.trial_number"] == "7"
    assert found["trial 0"].data.params["recipe.epochs"] == "30"  # immutable
    assert found["knee-digits-30"].data.params["trials"] == "5"
    curve = client.get_metric_history(found["trial 0"].info.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3]


def test_a_trial_that_ends_twice_has_its_final_metrics_once(
    home: Path, client: MlflowClient
) -> None:
    done = TrialFinished(key="trial-0", state=RunEnd.COMPLETE, metrics={"final_loss": 0.25})
    track(home, STUDY, trial(0), report(1), done)  # killed before it could tell Optuna
    time.sleep(0.002)
    track(home, STUDY, trial(0), report(1), done, StudyFinished())

    found = runs(client)["trial 0"]
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "final_loss")
    assert [point.value for point in history] == [0.25]


def test_replicates_of_a_trial_are_curves_beside_the_first_one(
    home: Path, client: MlflowClient
) -> None:
    second = [report(step).model_copy(update={"replicate": 1}) for step in (1, 2, 3)]
    track(home, STUDY, trial(0), report(1), report(2), *second[:2])
    track(home, STUDY, trial(0), report(2), *second)  # a retry tells its history again
    run = runs(client)["trial 0"]
    for name, steps in {"loss": [1, 2], "replicate_2/loss": [1, 2, 3]}.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == [
            (step, 1 / step) for step in steps
        ]


def test_links_lead_to_the_run(home: Path, client: MlflowClient) -> None:
    tracker = open_tracker(home=home, uri=local_store(home))
    tracker.record(STUDY)
    tracker.record(trial(0))
    awaited(lambda: tracker.run_of("trial-0"), seconds=60)
    link, parent = tracker.run_of("trial-0"), tracker.run_of(None)
    assert link is not None
    assert parent is not None
    run = client.get_run(link.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert f"/#/experiments/{run.info.experiment_id}/runs/{link.run_id}?" in link.url
    tracker.close()


def test_a_link_does_not_wait_for_the_next_batch(home: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(home=home, uri=local_store(home), interval=600)
    tracker.record(STUDY)
    assert tracker.flush(timeout=60) == 0
    tracker.record(trial(0))
    awaited(lambda: tracker.run_of("trial-0"), seconds=30)
    tracker.close()


def test_the_next_run_sends_what_other_studies_left(home: Path, client: MlflowClient) -> None:
    left = Outbox.create(outbox_root(home, local_store(home)), STUDY)
    left.append(trial(0))
    left.close()

    other = STUDY.model_copy(update={"uid": "2", "name": "other"})
    track(home, other, StudyFinished())
    assert {name: run.info.status for name, run in runs(client).items()} == {
        "knee-digits-30": "KILLED",
        "trial 0": "FAILED",
        "other": "FINISHED",
    }


def test_a_killed_driver_leaves_nothing_running(home: Path, client: MlflowClient) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from knee_tune.records.events import StudyStarted, TrialStarted, TrialReported
from knee_tune.tracking import open_tracker
from knee_tune.tracking.store import local_store
from tests.waiting import awaited
home = Path(sys.argv[1])
tracker = open_tracker(home=home, uri=local_store(home))
tracker.record(StudyStarted(uid="4f1c", name="knee-digits-30", task="digits",
                            experiment="knee-tune-digits"))
tracker.record(TrialStarted(key="trial-0", name="trial 0", number=0))
awaited(lambda: tracker.run_of("trial-0"), seconds=60)
tracker.record(TrialReported(key="trial-0", step=1, lr=0.1, metrics={"loss": 1.0}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(home)], check=False)
    assert {run.info.status for run in runs(client).values()} == {"RUNNING"}

    assert send_leftovers(home=home, uri=local_store(home), timeout=60) == 0
    found = runs(client)
    assert found["trial 0"].info.status == "FAILED"
    assert found["trial 0"].data.tags["knee.reason"] == "the driver was killed"
    assert found["trial 0"].data.metrics["loss"] == 1.0
    assert found["knee-digits-30"].info.status == "KILLED"


@pytest.mark.parametrize("left", [KILLED, INTERRUPTED], ids=["killed", "interrupted"])
def test_what_a_dead_driver_left_does_not_undo_what_another_one_finished(
    home: Path, client: MlflowClient, left: tuple[Event, ...]
) -> None:
    uri = local_store(home)
    living = Driver(home, uri)
    leave(home, uri, *left)
    living.record(
        trial(7, key="trial-0", name="trial 0"),
        report(2),
        TrialFinished(key="trial-0", state=RunEnd.COMPLETE),
        StudyFinished(tags={"knee.best_trial": "7"}),
    )
    living.close()
    before = runs(client)
    assert {run.info.status for run in before.values()} == {"FINISHED"}

    assert send_leftovers(home=home, uri=uri, timeout=60) == 0
    after = runs(client)
    for name, run in before.items():
        assert after[name].info.status == "FINISHED"
        assert after[name].info.end_time == run.info.end_time
        assert after[name].data.tags == run.data.tags
    curve = client.get_metric_history(after["trial 0"].info.run_id, "loss")
    assert sorted(point.step for point in curve) == [1, 2]  # its reports are news all the same


@pytest.mark.parametrize("left", [KILLED, INTERRUPTED], ids=["killed", "interrupted"])
@pytest.mark.parametrize("place", ["same home", "another home"])
def test_what_a_dead_driver_left_does_not_end_what_another_one_trains(
    home: Path, client: MlflowClient, left: tuple[Event, ...], place: str
) -> None:
    uri = local_store(home)
    (home / "another").mkdir()
    living = Driver(home if place == "same home" else home / "another", uri)
    leave(home, uri, *left)
    living.record(trial(7, key="trial-0", name="trial 0"))

    assert send_leftovers(home=home, uri=uri, timeout=60) == 0
    taken_over = runs(client)["trial 0"]
    assert taken_over.info.status == "RUNNING"
    assert taken_over.data.tags["optuna.state"] == "RUNNING"
    assert taken_over.data.tags["optuna.trial_number"] == "7"
    living.close()


def test_a_killed_study_that_is_continued_is_open_again(home: Path, client: MlflowClient) -> None:
    uri = local_store(home)
    leave(home, uri, *KILLED)
    next_one = Driver(home, uri)  # had begun when it delivered what was left
    assert runs(client)["knee-digits-30"].info.status == "RUNNING"
    assert runs(client)["trial 0"].info.status == "FAILED"

    next_one.record(trial(7, key="trial-0"))
    assert {run.info.status for run in runs(client).values()} == {"RUNNING"}
    next_one.record(TrialFinished(key="trial-0", state=RunEnd.COMPLETE), StudyFinished())
    next_one.close()
    assert {run.info.status for run in runs(client).values()} == {"FINISHED"}


def test_a_run_that_was_killed_ends_when_its_driver_was_last_heard_of(
    home: Path, client: MlflowClient
) -> None:
    uri = local_store(home)
    leave(home, uri, *KILLED)
    time.sleep(0.2)
    adopted = time.time() * 1000
    assert send_leftovers(home=home, uri=uri, timeout=60) == 0
    for run in runs(client).values():
        assert run.info.end_time < adopted - 200


def test_nothing_loads_mlflow_before_it_is_needed(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from knee_tune.tracking import open_tracker, send_leftovers, registry
home = Path(sys.argv[1])
open_tracker(home=home, uri="http://127.0.0.1:9")
assert send_leftovers(home=home, uri="http://127.0.0.1:9") == 0
print("mlflow" in sys.modules, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_tracking_goes_where_it_is_told_or_into_the_home(tmp_path: Path) -> None:
    assert resolve_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert ui_command(f"sqlite:///{tmp_path}/mlflow.db") == (
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    )
    assert resolve_tracking_uri(tmp_path, "http://server:5000") == "http://server:5000"
    assert resolve_tracking_uri(tmp_path, "none") is None
    with pytest.raises(UserError, match=r"`tracking_uri` \./mlruns"):
        resolve_tracking_uri(tmp_path, "./mlruns")


def test_drivers_that_start_together_create_one_store(tmp_path: Path) -> None:
    """The schema takes seconds and must not be created twice, nor be seen half done."""
    with ThreadPoolExecutor() as pool:
        clients = list(pool.map(connect, [local_store(tmp_path)] * 2))
    assert [len(client.search_experiments()) for client in clients] == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_provenance_names_commit_and_versions(repository: Path) -> None:
    tags = provenance()
    assert tags["version.knee-tune"] == __version__
    assert tags["version.mlflow"] == mlflow.__version__
    if (repository / ".git").exists():
        assert len(tags["mlflow.source.git.commit"]) == 40


@pytest.mark.parametrize("kind", ["experiment", "run"])
def test_what_people_deleted_is_named_and_waits_until_they_restore_it(
    home: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    track(home, STUDY, trial(0), report(1))
    (first,) = (run for name, run in runs(client).items() if name == "trial 0")
    if kind == "experiment":
        client.delete_experiment(first.info.experiment_id)
        command = f"mlflow experiments restore --experiment-id {first.info.experiment_id}"
    else:
        client.delete_run(first.info.run_id)
        command = f"mlflow runs restore --run-id {first.info.run_id}"
    done, other_done = (TrialFinished(key=f"trial-{n}", state=RunEnd.COMPLETE) for n in (0, 1))
    track(home, STUDY, trial(0), report(2), done, trial(1), other_done, StudyFinished())
    assert f"MLFLOW_TRACKING_URI={local_store(home)} {command}" in caplog.text
    assert "does not answer" not in caplog.text

    other = STUDY.model_copy(update={"uid": "2", "name": "other", "experiment": "others"})
    track(home, other, StudyFinished())
    elsewhere = client.get_experiment_by_name("others")
    assert elsewhere is not None
    assert len(client.search_runs([elsewhere.experiment_id])) == 1

    if kind == "experiment":
        client.restore_experiment(first.info.experiment_id)
    else:
        assert "trial 1" in runs(client)  # the others went on
        assert "trial 0" not in runs(client)
        client.restore_run(first.info.run_id)
    assert send_leftovers(home=home, uri=local_store(home)) == 0
    found = runs(client)
    assert sorted(found) == ["knee-digits-30", "trial 0", "trial 1"]
    assert found["trial 0"].info.run_id == first.info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    curve = client.get_metric_history(first.info.run_id, "loss")
    assert [point.step for point in curve] == [1, 2]
    assert not list((home / "outbox").rglob("*.jsonl"))


def answered(said: dict[str, str]) -> MlflowException:
    return RestException(said)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("answer", "is_of_the_study"),
    [
        # MLflow's own accounts answer in plain text.
        (MlflowException("Permission denied", error_code=PERMISSION_DENIED), True),
        (answered({"error_code": "PERMISSION_DENIED", "message": "no"}), True),
        (answered({"error_code": "UNAUTHENTICATED", "message": "who?"}), False),
        (answered({"error_code": "INTERNAL_ERROR", "message": "oh"}), False),
        (MlflowException("a proxy's page", error_code=ENDPOINT_NOT_FOUND), False),
    ],
)
def test_a_study_that_is_refused_is_told_from_a_server_that_is_in_trouble(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: MlflowException,
    is_of_the_study: bool,
) -> None:
    def refuse(*_: object) -> None:
        raise answer

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", refuse)
    client = MlflowClient(tracking_uri="http://127.0.0.1:9")
    writer = RunWriter(client, uri="http://127.0.0.1:9", home=tmp_path)
    with pytest.raises((ForbiddenError, MlflowException)) as caught:
        writer.apply(STUDY, [])
    assert isinstance(caught.value, ForbiddenError) == is_of_the_study


@pytest.mark.parametrize("name", ["a b%20c?d#e'{ü}", "%3F", "100%", "file:memory&x=1", "[bold]"])
def test_a_home_of_any_name_keeps_its_own_store_and_artifacts(
    home: Path, tmp_path: Path, name: str
) -> None:
    odd = home.rename(tmp_path / name)
    experiment = STUDY.model_copy(update={"experiment": "50% #1?"})
    track(odd, experiment, trial(0), Attached(name="notes.txt", text="grüße"), StudyFinished())
    (parent,) = (odd / "artifacts").rglob("notes.txt")
    assert parent.read_text(encoding="utf-8") == "grüße"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in odd.iterdir()) == ["artifacts", "mlflow.db", "outbox"]

    client = connect(local_store(odd))
    found = client.get_experiment_by_name("50% #1?")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id], f"tags.`{RUN_KEY}` = '{STUDY.uid}'")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["notes.txt"]

    moved = odd.rename(tmp_path / f"moved {name}")
    follow_home(moved, local_store(moved))
    client = connect(local_store(moved))
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["notes.txt"]


def test_a_schema_whose_maker_was_killed_is_removed_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Maker:
        """Of a schema, as MLflow's own, which takes seconds."""

        def __init__(self, url: str, _: str) -> None:
            self.engine = create_engine(url)
            with self.engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS experiments (x INT)")

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Maker)
    for name in (".mlflow.db.0123", ".mlflow.db.0123-journal"):
        (tmp_path / name).touch()
    connect(local_store(tmp_path))
    assert {path.name for path in tmp_path.glob(".*")} == set()
    assert (tmp_path / "mlflow.db").stat().st_size
