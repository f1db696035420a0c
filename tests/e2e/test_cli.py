"""The command line as people use it, on one study that real processes have trained."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest

from knee_tune.urls import sqlite_url
from tests.command_line import (
    QUICK,
    TINY,
    complains,
    drive_here,
    knee_tune,
    knee_tune_cold,
    knee_tune_here,
)
from tests.mlflow_stores import new_home, tracking_in

FINISHED = (
    *TINY,
    *("--study-name", "mine", "--set", "recipe.epochs=2"),
    *("--set", "space.seed_lr={values: [0.05, 1.0e+9]}"),
    *("--set", "space.explore_fraction={values: [0.0, 0.5]}"),
)
"""A study of four points, two of which are sure to diverge."""

NAME = "mine"


def runs(home: Path) -> dict[str, str]:
    """Status of every MLflow run by its name."""
    with sqlite3.connect(home / "mlflow.db") as database:
        return dict(database.execute("SELECT name, status FROM runs"))


def parents(home: Path) -> set[str]:
    """Names of the runs that have child runs."""
    with sqlite3.connect(home / "mlflow.db") as database:
        rows = database.execute(
            "SELECT DISTINCT runs.name FROM tags JOIN runs ON runs.run_uuid = tags.value "
            "WHERE tags.key = 'mlflow.parentRunId'"
        )
        return {name for (name,) in rows}


def status(home: Path) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(knee_tune_here("status", "--json", "--home", home).stdout)
    return printed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished study, trained by two real ranks.

    Its path would be another one wherever it became a URL without care.
    """
    made = new_home(tmp_path_factory, tmp_path_factory.mktemp("finished"))
    home = made.rename(made.with_name("a b?d#e'{ü} [bold]"))
    said = knee_tune_cold(*FINISHED, "--trials", "4", "--home", home).stdout
    assert "0 of 4 trials done" in said
    assert said.count("%, 100 steps") == 4
    assert said.count("seed LR 0.05, explore 50%, 100 steps") == 1
    for look in ("best: seed LR 0.05", "knee-tune dashboard", "mlflow ui", "knee-tune register"):
        assert look in said
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    assert {"optuna.db", "mlflow.db"} < {path.name for path in home.iterdir()}
    return home


def test_an_analysis_of_the_best_trial_joins_its_mlflow_run(home: Path) -> None:
    options = ("--iterations", "3", "--examples", "100", "--nproc", "2", "--json", "--home", home)
    printed = json.loads(drive_here("analyse", "sharpness", NAME, *options).stdout)
    (found,) = printed["results"]
    assert found["name"] == f"trial {status(home)['best']['trial']} of {NAME}"
    with sqlite3.connect(home / "mlflow.db") as database:
        rows = database.execute("SELECT run_uuid, value FROM metrics WHERE key = 'sharpness'")
        assert rows.fetchall() == [(found["run_id"], found["sharpness"])]


def test_status_says_how_the_study_stands(home: Path) -> None:
    printed = status(home)
    assert list(printed) == ["study", "counts", "best", "steps", "audit"]
    assert printed["study"] == NAME
    assert printed["counts"] == {"complete": 2, "pruned": 2, "failed": 0, "running": 0}
    parts = ["trial", "seed_lr", "explore_fraction", "value", "metric", "confirmed"]
    assert list(printed["best"]) == parts
    assert (printed["best"]["seed_lr"], printed["best"]["metric"]) == (0.05, "valid_accuracy")
    table = knee_tune("status", NAME, "--home", home).stdout
    assert table.count("pruned: diverged: non-finite") == 2


def test_status_says_what_was_saved_and_how(home: Path) -> None:
    """Two seed LRs with one trunk each; the runs at the larger one diverge."""
    steps = status(home)["steps"]
    assert list(steps) == ["trained", "independent", "reused", "pruned", "recorded"]
    assert steps["independent"] == 400
    assert steps["trained"] + steps["reused"] + steps["pruned"] == 400
    assert steps["pruned"] > 0
    assert steps["recorded"] == 0
    printed = knee_tune_here("status", "--home", home).stdout
    share = steps["trained"] / 400
    assert (
        f"steps trained: {steps['trained']} of 400 that independent trials would take ({share:.0%})"
        in printed
    )
    (saved,) = (line for line in printed.splitlines() if line.startswith("steps saved: "))
    assert f"{steps['pruned']} by pruning (trials that were ended early)" in saved


def test_replicates_share_trunks_and_another_study_is_answered_from_records(
    tmp_path: Path,
) -> None:
    study = (
        *(*QUICK, "--home", tmp_path, "--tracking-uri", "none"),
        *("--set", "recipe.epochs=1", "--sampler", "grid", "--goal", "ridge"),
        *("--set", "space.seed_lr={values: [0.05]}"),
        *("--set", "space.explore_fraction={values: [0.2, 0.8]}"),
    )
    twice = (*study, "--study-name", "twice", "--replicates", "2", "--no-fuse")
    printed = knee_tune_here(*twice).stdout
    assert "replicates train one by one: this study was begun with --no-fuse" in printed
    assert "50 steps x 2 replicates per trial" in printed
    assert "pruning is off: this study looks for the ridge" in printed
    assert printed.count("from step 10 of its trunk") == 2
    assert printed.count(" ± ") == 3  # two trials, and the best one again
    assert "steps trained: 180 of 200 that independent trials would take (90%)" in printed
    assert "steps saved: 20 from trunks (an explore phase that trials share" in printed

    again = knee_tune_here(*study, "--study-name", "once", "--no-fuse").stdout
    assert again.count("answered from its record") == 2
    assert "steps trained: 0 of 100 that independent trials would take (0%)" in again
    assert "steps saved: 100 from records (the same run was trained before)" in again


def test_a_grid_in_which_nothing_is_pruned_trains_as_one_batched_model(tmp_path: Path) -> None:
    study = (
        *(*QUICK, "--home", tmp_path, "--tracking-uri", "none", "--replicates", "3"),
        *("--set", "recipe.epochs=1", "--sampler", "grid", "--goal", "ridge"),
        *("--set", "space.seed_lr={values: [0.05]}"),
        *("--set", "space.explore_fraction={values: [0.2, 0.8]}"),
    )
    printed = knee_tune_here(*study, "--study-name", "fused").stdout
    assert "6 replicas train as one batched model" in printed
    assert printed.count(" ± ") == 3
    assert "steps trained: 270 of 300 that independent trials would take (90%)" in printed
    assert "steps saved: 30 from trunks" in printed
    again = knee_tune_here(*study, "--study-name", "again").stdout
    assert "steps trained: 0 of 300" in again
    first, second = (
        [line.split()[:6] for line in text.splitlines() if line.endswith("  complete")]
        for text in (printed, again)
    )
    assert first == second
    why = "it was made with fuse=true, not false"
    complains(*study, "--study-name", "fused", "--no-fuse", said=(why,))


def test_more_trials_go_on_with_the_study(tmp_path: Path) -> None:
    study = (*QUICK, "--home", tmp_path, "--tracking-uri", "none", "--set", "recipe.epochs=1")
    first = knee_tune_here(*study, "--trials", "1", "--pruner", "median").stdout
    assert "0 of 1 trials done" in first
    assert first.count("pruner median compares trials at equal steps") == 1  # a warning
    more = knee_tune_here(*study, "--trials", "2").stdout
    assert "1 of 2 trials done" in more
    assert more.count("%, 50 steps") == 1  # one more was started
    assert not (tmp_path / "mlflow.db").exists()  # nothing was to be tracked


def test_best_is_the_best_of_the_status(home: Path) -> None:
    printed = knee_tune_here("best", "--json", "--home", home).stdout
    assert json.loads(printed) == status(home)["best"]
    assert knee_tune("best", "--home", home).stdout.startswith("seed LR 0.05, explore ")


def test_models_that_no_other_program_reads_are_not_saved(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    refused = knee_tune_here("best", "--save", folder, "--home", home, expect=2)
    assert "models of DigitsTask have no form that others read" in refused.stderr
    assert not folder.exists()


def test_every_trial_is_a_run_below_the_run_of_its_study(home: Path) -> None:
    states = runs(home)
    study, *others = parents(home)
    assert not others
    assert states.pop(study) == "FINISHED"
    trials = [states[f"trial {number}"] for number in range(4)]
    assert sorted(trials) == ["FINISHED", "FINISHED", "KILLED", "KILLED"]
    assert trials[0] == "FINISHED"


def test_the_registered_model_classifies_without_pickle(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with tracking_in(home):
        model = mlflow.pyfunc.load_model("models:/knee-tune-digits@candidate")
    images, labels = load_digits(return_X_y=True)
    right = [said == meant for said, meant in zip(model.predict(images), labels, strict=True)]
    assert sum(right) / len(right) > 0.3


def test_a_replay_gives_the_same_bits(home: Path) -> None:
    before = runs(home)
    assert "the same, bit for bit" in drive_here("replay", NAME, "--home", home).stdout
    assert runs(home) == before


def test_a_baseline_stands_beside_the_study(home: Path) -> None:
    cosine = (*FINISHED, "--schedule", "cosine", "--home", home)
    knee_tune_here(*cosine, MLFLOW_EXPERIMENT_NAME="mine")
    said = knee_tune_here("status", "--home", home).stdout
    assert "baseline cosine, seed LR 0.05: valid_accuracy " in said
    assert sum(status(home)["counts"].values()) == 4  # it is no trial
    with sqlite3.connect(home / "mlflow.db") as database:
        experiments = {name for (name,) in database.execute("SELECT name FROM experiments")}
    assert {"mine", "knee-tune-digits"} <= experiments


def test_registering_again_changes_nothing(home: Path) -> None:
    register = ("register", "--as", "candidate", "--home", home)
    first, second = (knee_tune_here(*register).stdout for _ in range(2))
    assert "version 1 is the candidate" in first
    assert first == second


def test_what_the_study_does_not_have_is_named(home: Path) -> None:
    complains("status", "yours", "--home", home, said=("study yours", NAME))
    complains("replay", "--trial", "9", "--home", home, said=(NAME, "no trial 9"))
    complains("dashboard", "yours", "--home", home, said=("study yours", NAME))


def test_a_damaged_registry_is_named_before_anything_is_tested(home: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "mlflow.db"
    damaged.write_text("no database" * 100)
    register = ("register", "--home", home, "--tracking-uri", f"sqlite:///{damaged}")
    complains(*register, said=(f"--tracking-uri sqlite:///{damaged}", "cannot be opened"))
    assert list(tmp_path.iterdir()) == [damaged]


def test_the_environment_names_places_and_flags_win(home: Path, tmp_path: Path) -> None:
    def shown(*options: str, **variables: str) -> str:
        return knee_tune_here("status", *options, expect=0, **variables).stdout

    elsewhere, storage = str(tmp_path / "none"), sqlite_url(home / "optuna.db")
    assert NAME in shown(KNEE_TUNE_HOME=str(home))
    assert NAME in shown("--home", elsewhere, OPTUNA_STORAGE=storage)
    assert NAME in shown("--storage", storage, OPTUNA_STORAGE="sqlite:////no/such.db")
    complains("status", "--home", elsewhere, said=(elsewhere,), KNEE_TUNE_HOME=str(home))

    tracked_nowhere = {"KNEE_TUNE_HOME": str(home), "MLFLOW_TRACKING_URI": "none"}
    complains("register", said=("--tracking-uri none",), **tracked_nowhere)
    mlflow = sqlite_url(home / "mlflow.db")
    register = ("register", "--as", "candidate", "--tracking-uri", mlflow)
    assert (
        "version 1 is the candidate"
        in knee_tune_here(*register, expect=0, **tracked_nowhere).stdout
    )


def test_tasks_are_listed_with_their_presets() -> None:
    printed = json.loads(knee_tune_here("tasks", "--json", "--home", "nowhere").stdout)
    presets = {task["name"]: set(task["presets"]) for task in printed["tasks"]}
    assert presets["digits"] >= {"default", "quick"}
    assert presets["iwslt"] >= {"paper", "short", "demo"}
    shown = " ".join(knee_tune("tasks").stdout.split())
    assert "quick 6 epochs and 8 trials, to see everything work" in shown
