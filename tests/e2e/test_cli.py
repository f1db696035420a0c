"""The command line as people use it: real processes, ranks, databases and signals."""

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tests.command_line import knee_tune, running
from tests.mlflow_stores import new_home

QUICK = ("run", "--task", "digits", "--preset", "quick")
TINY = (*QUICK, "--nproc", "2", "--sampler", "random", "--set", "recipe.batch_size=16")

FINISHED = (
    *TINY,
    *("--study-name", "mine", "--set", "recipe.epochs=2"),
    *("--set", "space.seed_lr={values: [0.05, 1.0e+9]}"),
    *("--set", "space.explore_fraction={values: [0.0, 0.5]}"),
)
"""A study of four points, two of which are sure to diverge."""

LONG = (
    *TINY,
    *("--study-name", "long", "--set", "recipe.epochs=16"),
    *("--pruner", "none", "--trials", "2", "--no-register"),
)
"""Trials that are long enough to be killed half-way."""

NAME = "mine"


def trial_states(home: Path) -> list[TrialState]:
    loaded = optuna.load_study(study_name="long", storage=f"sqlite:///{home}/optuna.db")
    return [trial.state for trial in loaded.trials]


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


def status(home: Path, *arguments: str) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(
        knee_tune("status", "--json", "--home", home, *arguments).stdout
    )
    return printed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished study: made by one command, continued by a second."""
    home = new_home(tmp_path_factory, tmp_path_factory.mktemp("finished"))
    first = knee_tune(*FINISHED, "--trials", "2", "--no-register", "--home", home)
    assert "0 of 2 trials done" in first.stdout
    assert first.stdout.count("seed LR 0.05, explore 50%, 100 steps") == 1
    second = knee_tune(*FINISHED, "--trials", "4", "--home", home)
    assert "2 of 4 trials done" in second.stdout
    assert second.stdout.count("%, 100 steps") == 2  # two more were started
    for said in ("best: seed LR 0.05", "knee-tune dashboard", "mlflow ui", "knee-tune register"):
        assert said in second.stdout
    return home


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A home without a study."""
    return new_home(tmp_path_factory, tmp_path)


def test_an_analysis_of_the_best_trial_joins_its_mlflow_run(home: Path) -> None:
    options = ("--iterations", "3", "--examples", "100", "--nproc", "2", "--json", "--home", home)
    printed = json.loads(knee_tune("analyse", "sharpness", NAME, *options).stdout)
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
    assert list(printed["best"]) == ["trial", "seed_lr", "explore_fraction", "value", "metric"]
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
    printed = knee_tune("status", "--home", home).stdout
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
    printed = knee_tune(*twice).stdout
    assert "replicates train one by one: this study was begun with --no-fuse" in printed
    assert "50 steps x 2 replicates per trial" in printed
    assert "pruning is off: this study looks for the ridge" in printed
    assert printed.count("from step 10 of its trunk") == 2
    assert printed.count(" ± ") == 3  # two trials, and the best one again
    assert "steps trained: 180 of 200 that independent trials would take (90%)" in printed
    assert "steps saved: 20 from trunks (an explore phase that trials share" in printed

    again = knee_tune(*study, "--study-name", "once", "--no-fuse").stdout
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
    printed = knee_tune(*study, "--study-name", "fused").stdout
    assert "6 replicas train as one batched model" in printed
    assert printed.count(" ± ") == 3
    assert "steps trained: 270 of 300 that independent trials would take (90%)" in printed
    assert "steps saved: 30 from trunks" in printed
    again = knee_tune(*study, "--study-name", "again").stdout
    assert "steps trained: 0 of 300" in again
    first, second = (
        [line.split()[:6] for line in text.splitlines() if line.endswith("  complete")]
        for text in (printed, again)
    )
    assert first == second
    refused = knee_tune(*study, "--study-name", "fused", "--no-fuse", expect=2)
    assert "it was made with fuse=true, not false" in refused.stderr


def test_a_pruner_that_compares_at_equal_steps_comes_with_a_warning(tmp_path: Path) -> None:
    study = (*QUICK, "--home", tmp_path, "--tracking-uri", "none", "--set", "recipe.epochs=1")
    printed = knee_tune(*study, "--trials", "1", "--pruner", "median").stdout
    assert printed.count("pruner median compares trials at equal steps") == 1


def test_best_is_the_best_of_the_status(home: Path) -> None:
    assert json.loads(knee_tune("best", "--json", "--home", home).stdout) == status(home)["best"]
    assert knee_tune("best", "--home", home).stdout.startswith("seed LR 0.05, explore ")


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
    import mlflow

    store = f"sqlite:///{home}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        model = mlflow.pyfunc.load_model("models:/knee-tune-digits@candidate")
    finally:
        mlflow.set_tracking_uri(before)
    images, labels = load_digits(return_X_y=True)
    right = [said == meant for said, meant in zip(model.predict(images), labels, strict=True)]
    assert sum(right) / len(right) > 0.3


def test_a_replay_gives_the_same_bits(home: Path) -> None:
    before = runs(home)
    assert "the same, bit for bit" in knee_tune("replay", NAME, "--home", home).stdout
    assert runs(home) == before


def test_a_baseline_stands_beside_the_study(home: Path) -> None:
    knee_tune(*FINISHED, "--schedule", "cosine", "--home", home, MLFLOW_EXPERIMENT_NAME="mine")
    assert (
        "baseline cosine, seed LR 0.05: valid_accuracy "
        in knee_tune("status", "--home", home).stdout
    )
    assert sum(status(home)["counts"].values()) == 4  # it is no trial
    with sqlite3.connect(home / "mlflow.db") as database:
        experiments = {name for (name,) in database.execute("SELECT name FROM experiments")}
    assert {"mine", "knee-tune-digits"} <= experiments


def test_registering_again_changes_nothing(home: Path) -> None:
    first, second = (knee_tune("register", "--as", "candidate", "--home", home) for _ in range(2))
    assert "version 1 is the candidate" in first.stdout
    assert first.stdout == second.stdout


def test_ctrl_c_leaves_nothing_running_and_the_same_command_continues(fresh: Path) -> None:
    with running(*LONG, "--home", fresh, until="trial 1: step") as (process, family):
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130, rest
        assert rest.strip().endswith("interrupted; the same command continues")
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert trial_states(fresh) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert "RUNNING" not in runs(fresh).values()
    assert status(fresh)["counts"] == {"complete": 1, "pruned": 0, "failed": 0, "running": 0}

    again = knee_tune(*LONG, "--home", fresh).stdout
    assert "1 of 2 trials done" in again
    assert status(fresh)["counts"] == {"complete": 2, "pruned": 0, "failed": 0, "running": 0}
    assert set(runs(fresh).values()) == {"FINISHED"}
    assert len(runs(fresh)) == 3  # the continued trial is still one run
    *_, last = optuna.load_study(study_name="long", storage=f"sqlite:///{fresh}/optuna.db").trials
    with sqlite3.connect(fresh / "mlflow.db") as database:
        (run,) = database.execute("SELECT run_uuid FROM runs WHERE name = 'trial 1'")
    assert last.user_attrs["mlflow_run_id"] == run[0]
    assert run[0] in last.user_attrs["mlflow_run_url"]


def test_a_killed_driver_takes_its_ranks_along_and_the_same_command_puts_all_right(
    fresh: Path,
) -> None:
    with running(*LONG, "--home", fresh, until="trial 0: step") as (process, family):
        assert len(family) >= 3  # a warm process and two ranks
        process.kill()
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert trial_states(fresh) == [TrialState.RUNNING]
    again = knee_tune(*LONG, "--home", fresh).stdout
    assert "trial 0: its driver was killed" in again
    assert trial_states(fresh) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert status(fresh)["counts"] == {"complete": 2, "pruned": 0, "failed": 0, "running": 0}
    assert set(runs(fresh).values()) == {"FINISHED"}


def test_a_killed_rank_costs_a_trial_nothing_but_time(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = (*LONG, "--home", home, "--tracking-uri", "none")
    with running(*command, until="trial 0: step") as (process, _):
        ranks = [
            rank for child in psutil.Process(process.pid).children() for rank in child.children()
        ]
        assert len(ranks) == 2
        ranks[1].kill()
        rest, _ = process.communicate(timeout=170)
        assert process.returncode == 0, rest
    assert "SIGKILL" in rest
    assert "starting again from its newest checkpoint (1 of 2)" in rest
    assert status(home)["counts"] == {"complete": 2, "pruned": 0, "failed": 0, "running": 0}
    assert not (home / "mlflow.db").exists()  # nothing was to be tracked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--task", "digit"), ("--task digit:", "did you mean 'digits'?", "breast-cancer")),
        ((*QUICK, "--nnodes", "2"), ("--nnodes", "--runner torchrun")),
        (("run", "--task", "digits", "--preset", "quik"), ("quik", "did you mean 'quick'")),
        (
            (*QUICK, "--set", "recipe.epoch=2"),
            ("--set recipe.epoch=2", "did you mean 'epochs'"),
        ),
        ((*QUICK, "--set", "recipe.epochs=0"), ("--set recipe.epochs=0", "greater than 0")),
        ((*QUICK, "--set", "recipe.epochs"), ("--set recipe.epochs", "expected FIELD=VALUE")),
        (("run", "--study", "digits-defualt"), ("digits-defualt", "'digits-default'")),
        (("run", "--study", "no/such.yaml"), ("no/such.yaml", "no such file")),
        ((*QUICK, "--sampler", "best"), ("sampler", "best", "gp")),
        ((*QUICK, "--storage", "postgresql+nosuch://u:secret@h/d"), ("--storage", "u:***@h")),
        ((*QUICK, "--storage", "optuna.db"), ("--storage optuna.db", "sqlite:///")),
        ((*QUICK, "--tracking-uri", "ftp://x"), ("--tracking-uri ftp://x", "none")),
        (("run",), ("--task", "--study")),
        (("status",), ("there is no study in it",)),
        (("best",), ("there is no study in it",)),
        (("replay", "mine"), ("there is no study in it",)),
        (("register", "mine"), ("there is no study in it",)),
        (("dashboard",), ("there is no study in it",)),
    ],
    ids=lambda value: "-".join(value)[-40:] if isinstance(value, tuple) else None,
)
def test_a_mistake_gets_one_line_and_makes_nothing(
    arguments: tuple[str, ...], said: tuple[str, ...], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    complains(*arguments, "--home", str(home), said=said)
    assert not list(tmp_path.iterdir())


def complains(*arguments: str, said: tuple[str, ...], **extra: str) -> None:
    """Exit code 2 and one line on standard error, without a traceback."""
    done = knee_tune(*arguments, expect=2, **extra)
    (line,) = done.stderr.splitlines()
    assert line.startswith("knee-tune: ")
    for word in said:
        assert word in line


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    complains(*QUICK, "--home", f"{tmp_path}/file/home", said=(f"--home {tmp_path}/file/home",))


def test_what_the_study_does_not_have_is_named(home: Path) -> None:
    complains("status", "yours", "--home", str(home), said=("study yours", NAME))
    complains("replay", "--trial", "9", "--home", str(home), said=(NAME, "no trial 9"))
    complains("dashboard", "yours", "--home", str(home), said=("study yours", NAME))


def test_the_environment_names_places_and_flags_win(home: Path, tmp_path: Path) -> None:
    tracked_nowhere = {"KNEE_TUNE_HOME": str(home), "MLFLOW_TRACKING_URI": "none"}
    elsewhere, storage = str(tmp_path / "none"), f"sqlite:///{home}/optuna.db"
    assert NAME in knee_tune("status", KNEE_TUNE_HOME=str(home)).stdout
    assert NAME in knee_tune("status", "--home", elsewhere, OPTUNA_STORAGE=storage).stdout
    complains("status", "--home", elsewhere, said=(elsewhere,), KNEE_TUNE_HOME=str(home))
    assert (
        NAME
        in knee_tune("status", "--storage", storage, OPTUNA_STORAGE="sqlite:////no/such.db").stdout
    )
    complains("register", said=("--tracking-uri none",), **tracked_nowhere)
    mlflow = f"sqlite:///{home}/mlflow.db"
    assert knee_tune("register", "--tracking-uri", mlflow, expect=0, **tracked_nowhere).stdout


COMMANDS = (
    "run",
    "status",
    "best",
    "register",
    "replay",
    "dashboard",
    "tasks",
    "doctor",
    "reproduce",
)


@pytest.mark.parametrize("command", ["", *COMMANDS, "data", "data prepare"])
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage: " in knee_tune(*command.split(), "--help").stdout


def test_tasks_are_listed_with_their_presets() -> None:
    printed = json.loads(knee_tune("tasks", "--json", "--home", "nowhere").stdout)
    presets = {task["name"]: set(task["presets"]) for task in printed["tasks"]}
    assert presets["digits"] >= {"default", "quick"}
    assert presets["iwslt"] >= {"paper", "short", "demo"}
    assert "quick: 6 epochs and 8 trials" in knee_tune("tasks").stdout
