"""What a study shows in Optuna Dashboard and MLflow, asked of the dashboard's own server."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import wsgi

from knee_tune.commands import publish as publishing
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import OpenedStudy
from knee_tune.commands.publish import LivePages, publish, show_now
from knee_tune.commands.workers import Workers
from knee_tune.records.events import Attached, RunLink
from knee_tune.report.wording import ridge_words
from knee_tune.study.attributes import record_compared
from knee_tune.study.dashboard import attach_weights, show_figures
from knee_tune.study.study import open_study, study_record
from tests.comparisons import compared, series
from tests.integration.workbench import Workbench, training_as_a_rank_does
from tests.recording import Recording
from tests.waiting import awaited

SURFACE = (
    "space.seed_lr={values: [0.02, 0.1]}",
    "space.explore_fraction={values: [0.0, 0.5, 0.9]}",
)


THERE = cast(Workers, SimpleNamespace(held=SimpleNamespace(gone=False, raise_if_gone=lambda: None)))
"""Nothing is trained any more, but the home is there."""


class Tracked(Recording):
    """Finds a run only once it is flushed, as MLflow does that is slow to start."""

    started = False

    def run_of(self, key: str | None) -> RunLink | None:
        return super().run_of(key) if self.started else None

    def flush(self, timeout: float | None = None) -> int:
        self.started = True
        return 0

    def close(self, timeout: float | None = None) -> int:
        return self.flush(timeout)


class Shown:
    """A study with every point trained, and what people see of it."""

    def __init__(self, home: Path) -> None:
        self.home, self.lines = home, list[str]()
        self.bench, self.tracked = workbench(home), Tracked()
        self.places = Places(
            home=Home(home),
            storage_url="postgresql://ann:secret@host/db",  # only to be named
            tracking_uri=f"sqlite:///{home}/mlflow.db",
        )
        self.opened = OpenedStudy(
            places=self.places,
            workers=THERE,
            study=self.bench.study,
            tracker=self.tracked,
            axes=self.bench.axes,
        )

    def publish(self) -> publishing.Published:
        return publish(self.opened, on_line=self.lines.append)

    @property
    def page(self) -> dict[str, Any]:
        """What the page of the study is made from."""
        page: dict[str, Any] = json.loads(self.get("/api/studies/1"))
        return page

    def get(self, path: str) -> bytes:
        store = FileSystemArtifactStore(self.places.home.dashboard_artifacts)
        application = wsgi(self.bench.storage, artifact_store=store)
        environment: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environment)
        said: list[str] = []
        body = application(environment, lambda status, headers, *_: said.append(status))
        content = b"".join(body)
        assert said == ["200 OK"], (path, said, content)
        return content

    @property
    def figures(self) -> dict[str, Any]:
        graphs = self.page["plotly_graph_objects"]
        names = [graph["id"] for graph in graphs]
        assert len(names) == len(set(names))
        return {graph["id"]: json.loads(graph["graph_object"]) for graph in graphs}

    def artifacts(self, owner: dict[str, Any]) -> dict[str, str]:
        """Ids by file name."""
        return {each["filename"]: each["artifact_id"] for each in owner["artifacts"]}

    def note(self, trial: int) -> str:
        body: str = self.page["trials"][trial]["note"]["body"]
        return body


def workbench(home: Path) -> Workbench:
    return Workbench(home, epochs=1, sampler="grid", replicates=2, settings=SURFACE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ended before its tracking had started."""
    home = tmp_path_factory.mktemp("trained")
    bench = workbench(home)
    bench.recording = Tracked()
    with pytest.MonkeyPatch.context() as monkeypatch, training_as_a_rank_does(monkeypatch):
        bench.drive(trials=None)
    bench.storage.engine.dispose()
    return home


@pytest.fixture
def shown(trained: Path, tmp_path: Path) -> Shown:
    for file in trained.glob("optuna.db*"):
        shutil.copyfile(file, tmp_path / file.name)
    return Shown(tmp_path)


def test_figures_are_overwritten_and_the_note_is_the_summary(shown: Shown) -> None:
    show_now(shown.opened, on_line=shown.lines.append)
    before = shown.figures
    published = shown.publish()
    assert not shown.lines
    assert set(before) == set(shown.figures) == {"surface", "ridge"}
    surface = shown.figures["surface"]
    assert surface["layout"]["title"]["text"] == "Seed LR and explore fraction together"
    assert surface["data"][0]["type"] == "heatmap"
    assert surface["data"][0]["y"] == ["0.02", "0.1"]

    best = study_record(shown.bench.study).winner
    assert best is not None
    note = shown.page["note"]["body"]
    point = f"seed LR {best.seed_lr:g}, explore {100 * best.explore_fraction:g}%"
    assert f"Best: **{point}**, validation accuracy {best.value:.4g} (trial " in note
    assert published.ridge is not None
    assert ridge_words(published.ridge) in note
    assert "| seed LR | best explore fraction |" in note
    assert "steps trained: " in note
    assert "[Its trials in MLflow](http://127.0.0.1:5000/#/None) (while `" in note
    assert "secret" not in note


def test_the_report_is_attached_once_however_often_it_is_written(shown: Shown) -> None:
    shown.publish()
    first = shown.artifacts(shown.page)
    assert set(first) == {"report.html", "report.md", "report.json"}
    published = shown.publish()
    assert shown.artifacts(shown.page) == first
    assert published.report == shown.home / "reports" / "it.html"
    assert shown.get(f"/artifacts/1/{first['report.html']}") == published.report.read_bytes()


def test_the_winner_alone_has_its_weights_attached_and_they_are_not_copied(shown: Shown) -> None:
    shown.publish()
    record, store = study_record(shown.bench.study), shown.places.home.dashboard_artifacts
    assert record.winner is not None
    assert record.winner.trial is not None
    number = record.winner.trial.number
    (name, identity), *others = shown.artifacts(shown.page["trials"][number]).items()
    assert (name, others) == (f"trial-{number:04d}-weights.safetensors", [])
    weights = Path(shown.bench.study.trials[number].user_attrs["weights"])
    assert weights.samefile(store / identity)
    assert shown.get(f"/artifacts/1/{number + 1}/{identity}") == weights.read_bytes()

    another = (number + 1) % len(record.trials)  # a search that went on found a better one
    other_weights = Path(shown.bench.study.trials[another].user_attrs["weights"])
    attach_weights(shown.bench.study, winner=another, weights=other_weights, store=store)
    assert not shown.artifacts(shown.page["trials"][number])
    assert not (store / identity).exists()
    assert weights.exists()
    assert len(shown.artifacts(shown.page["trials"][another])) == 1


def test_trials_that_ended_before_mlflow_had_started_are_linked_afterwards(shown: Shown) -> None:
    assert all("MLflow run" not in shown.note(number) for number in range(6))
    shown.publish()
    shown.publish()
    for number in range(6):
        link = f"[MLflow run](http://127.0.0.1:5000/#/trial-{number:04d})"
        assert shown.note(number).count(link) == 1
        assert shown.note(number).startswith("**Seed LR")


def test_mlflow_gets_report_figures_tables_and_findings(shown: Shown) -> None:
    published = shown.publish()
    attached = {each.name: each for each in shown.tracked.of_kind(Attached)}
    assert {"report.html", "report.md", "plots/surface.html", "plots/ridge.html"} <= set(attached)
    file = attached["report.html"].file
    assert file is not None
    assert file.read_text().startswith("<!DOCTYPE html>")
    surface = attached["tables/surface.csv"].text or ""
    assert surface.splitlines()[0] == "seed_lr,explore_fraction,valid_accuracy,standard_error"
    assert len(surface.splitlines()) == 7
    replicates = attached["tables/replicates.csv"].text or ""
    assert len(replicates.splitlines()) == 13
    ridge = published.ridge
    assert ridge is not None
    assert ridge.recommended is not None
    assert published.metrics["recommended_seed_lr"] == ridge.recommended.seed_lr
    assert published.tags["knee.verdict"] == ridge.verdict


def test_what_cannot_be_written_becomes_a_line(shown: Shown) -> None:
    """A file lies where the report's folder should be, another where the artifacts should."""
    (shown.home / "reports").write_text("")
    (shown.home / "artifacts").write_text("")
    published = shown.publish()
    assert [line.partition(":")[0] for line in shown.lines] == ["report", "Optuna Dashboard"]
    assert published.report is None
    assert set(shown.figures) == {"surface", "ridge"}

    shown.lines.clear()
    (shown.home / "reports").unlink()
    (shown.home / "artifacts").unlink()
    published = shown.publish()
    assert not shown.lines
    assert published.report is not None


def test_a_running_study_is_shown_in_a_thread_and_trouble_is_told_once(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "SHARE", 0)
    tried = threading.Semaphore(0)

    def failing(*_: object) -> None:
        tried.release()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "show_figures", failing)
    with LivePages(shown.opened, on_line=shown.lines.append, interval=0.01) as pages:
        for _ in range(2):
            pages.changed()
            assert tried.acquire(timeout=30)
        assert not shown.figures
        monkeypatch.setattr(publishing, "show_figures", show_figures)
        pages.changed()
        awaited(lambda: _shows_a_figure(shown), seconds=30)
    assert set(shown.figures) == {"surface", "ridge"}
    (line,) = shown.lines
    assert "No space left on device" in line


def _shows_a_figure(shown: Shown) -> bool:
    try:
        return bool(shown.figures)
    except json.JSONDecodeError:  # the dashboard's package writes a figure in parts
        return False


def test_a_study_without_a_complete_trial_has_a_note_and_nothing_else(tmp_path: Path) -> None:
    bench, lines = Workbench(tmp_path), list[str]()
    opened = OpenedStudy(
        places=Places(home=Home(tmp_path), storage_url="sqlite://", tracking_uri=None),
        workers=THERE,
        study=bench.study,
        tracker=Tracked(),
        axes=bench.axes,
    )
    published = publish(opened, on_line=lines.append)
    assert published.ridge is None
    assert published.report is None
    assert not lines
    assert not (tmp_path / "reports").exists()


def test_a_comparison_is_shown_beside_the_papers_table(tmp_path: Path) -> None:
    bench, lines = Workbench(tmp_path), list[str]()
    spec = bench.spec.model_copy(update={"name": "rows", "compare": series(), "replicates": 2})
    study = open_study(bench.storage, spec, data_fingerprint="data")
    places = Places(home=Home(tmp_path), storage_url="sqlite://", tracking_uri=None)
    tracked = Tracked()
    opened = OpenedStudy(
        places=places,
        workers=THERE,
        study=study,
        tracker=tracked,
        axes=bench.axes,
    )
    assert publish(opened, on_line=lines.append).report is None  # nothing is trained yet
    made = compared(series(), lambda row, seed: {"test_accuracy": 90.0 + row + seed}, seeds=2)
    for run in made.compared:
        record_compared(study, run)
    published = publish(opened, on_line=lines.append)
    assert not lines
    assert published.report == tmp_path / "reports" / "rows.html"
    assert published.metrics == {"slope_test_accuracy": pytest.approx(0.2)}
    assert "| LR 0.1 for 50 epochs | 94.50 | 92." in published.tags["mlflow.note.content"]
    attached = {each.name for each in tracked.of_kind(Attached)}
    assert {"report.html", "plots/beside.html", "tables/compared.csv"} <= attached
