"""Optuna Dashboard and the MLflow UI of a real study, in a real browser: what people look for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from knee_tune.commands.home import Home, Places
from knee_tune.commands.look import look_at
from knee_tune.tracking.store import AS_TRAINING
from tests.browser import Browser, find_browser
from tests.command_line import knee_tune_here, running
from tests.mlflow_stores import TrackingServer, new_home, tracking_server
from tests.waiting import answers, awaited, reserved_port

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--study-name", "small"),
    *("--sampler", "grid", "--goal", "ridge", "--replicates", "2"),
    *("--set", "recipe.epochs=2", "--set", "space.seed_lr={values: [0.02, 0.1]}"),
    *("--set", "space.explore_fraction={values: [0.1, 0.5, 0.9]}"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def home(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished study; without a browser there is nothing to make it for."""
    home = new_home(tmp_path_factory, tmp_path_factory.mktemp("shown"))
    knee_tune_here(*STUDY, "--home", home)
    return home


@pytest.fixture(scope="module")
def best(home: Path) -> dict[str, Any]:
    places = Places.of(Home(home), storage=None, tracking_uri="none")
    found = look_at(places, "small").best_as_json()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    """The address of the study's page."""
    with reserved_port() as port:
        command = ("dashboard", "small", "--port", str(port), "--home", home)
        with running(*command, until="dashboard"):
            awaited(lambda: answers(f"http://127.0.0.1:{port}/api/studies/1"))
            yield f"http://127.0.0.1:{port}/dashboard/studies/1"


@pytest.fixture(scope="module")
def mlflow(home: Path) -> Iterator[TrackingServer]:
    with tracking_server(home) as server:
        server.start()
        yield server


def study_run(server: TrackingServer) -> Run:
    return next(run for run in all_runs(server) if "mlflow.parentRunId" not in run.data.tags)


def all_runs(server: TrackingServer) -> list[Run]:
    return list(MlflowClient(server.uri).search_runs(["1"]))


def test_the_dashboard_shows_heat_map_ridge_and_report(browser: Browser, dashboard: str) -> None:
    page = browser.page(dashboard)
    assert "Seed LR and explore fraction together" in page
    assert "The best explore fraction for each seed LR" in page
    assert 'class="hm"' in page  # plotly has drawn the heat map
    for artifact in ("report.html", "report.md"):
        assert artifact in page


def test_the_note_is_the_summary(browser: Browser, dashboard: str, best: dict[str, Any]) -> None:
    note = browser.page(f"{dashboard}/note")
    said = re.sub(r"<[^>]+>", "", note)
    point = f"seed LR {best['seed_lr']:g}, explore {best['explore_fraction']:.0%}"
    assert f"Best: {point}, validation accuracy {best['value']:.4g} (trial " in said
    assert "Expect " in said
    assert "best explore fraction" in said
    assert "steps trained: " in said
    assert "Its trials in MLflow" in said


def test_the_notes_link_lists_trials_with_their_numbers_in_columns(
    browser: Browser, dashboard: str, mlflow: TrackingServer, best: dict[str, Any]
) -> None:
    link = re.search(r'href="([^"]*viewStateShareKey[^"]*)"', browser.page(f"{dashboard}/note"))
    assert link is not None
    table = link[1].replace("&amp;", "&").replace("http://127.0.0.1:5000", mlflow.uri)
    page = browser.page(table)
    said = [text for text in re.split(r"(?:<[^>]+>)+", page) if text.strip()]
    assert "Error loading shared view state" not in page
    assert {"seed_lr", "explore_fraction", "final_valid_accuracy"} <= {*said}
    assert f"trial {best['trial']}" in said
    assert f"{best['seed_lr']:g}" in said


def test_a_trial_leads_to_its_mlflow_run(
    browser: Browser, dashboard: str, mlflow: TrackingServer, best: dict[str, Any]
) -> None:
    trial = browser.page(f"{dashboard}/trials?numbers={best['trial']}")
    (link,) = re.findall(r'href="([^"]+)"[^>]*>MLflow run<', trial)
    assert f"trial-{best['trial']:04d}-weights.safetensors" in trial

    # The link is to where "mlflow ui" listens; here another port is free.
    assert link.startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
    run = browser.page(link.replace("http://127.0.0.1:5000", mlflow.uri))
    said = re.sub(r"<[^>]+>", " ", run)
    assert f"trial {best['trial']}" in said
    for tag, value in (("seed_lr", best["seed_lr"]), ("fraction", best["explore_fraction"])):
        assert re.search(rf"knee\.\w*{tag}\s*:\s*{re.escape(f'{value:g}')}\b", said), tag


def test_mlflow_lists_the_study(browser: Browser, mlflow: TrackingServer) -> None:
    page = browser.page(f"{mlflow.uri}/#/experiments/1?{AS_TRAINING}")
    assert ">small<" in page
    assert "matching runs" in re.sub(r"<[^>]+>", "", page)


def test_the_run_of_the_study_holds_report_figures_and_tables(
    browser: Browser, mlflow: TrackingServer
) -> None:
    run = study_run(mlflow)
    page = browser.page(f"{mlflow.uri}/#/experiments/1/runs/{run.info.run_id}/artifacts")
    for name in ("report.html", "report.md", "plots", "tables"):
        assert f">{name}<" in page
    client = MlflowClient(mlflow.uri)
    tables = {file.path for file in client.list_artifacts(run.info.run_id, "tables")}
    assert {"tables/surface.csv", "tables/surface.json", "tables/trials.csv"} <= tables
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/surface.html", "plots/ridge.html"} <= plots


def test_child_runs_can_be_compared_by_seed_lr_and_explore_fraction(
    browser: Browser, mlflow: TrackingServer
) -> None:
    children = [run for run in all_runs(mlflow) if "knee.seed_lr" in run.data.tags]
    assert len(children) == 6
    for run in children:
        for name in ("seed_lr", "explore_fraction"):
            assert run.data.tags[f"knee.{name}"] == run.data.params[name]
    chosen = quote(json.dumps([run.info.run_id for run in children]))
    compared = quote(json.dumps(["1"]))
    page = browser.page(f"{mlflow.uri}/#/compare-runs?runs={chosen}&experiments={compared}")
    said = re.sub(r"<[^>]+>", " ", page)
    assert "Comparing 6 Runs" in said
    assert "Parallel Coordinates Plot" in said
    for name in ("seed_lr", "explore_fraction"):
        assert re.search(rf"\s{name}\s", said), name
