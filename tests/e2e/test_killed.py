"""Commands that are interrupted or killed while real ranks train: nothing runs on or is lost."""

import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from benchmarks import faults
from tests.command_line import TINY, drive_here, knee_tune_here, running
from tests.mlflow_stores import new_home
from tests.waiting import awaited

LONG = (
    *TINY,
    *("--study-name", "long", "--set", "recipe.epochs=16"),
    *("--pruner", "none", "--no-register"),
)
"""Trials that are long enough to be killed half-way."""


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A home without a study."""
    return new_home(tmp_path_factory, tmp_path)


def trial_states(home: Path) -> list[TrialState]:
    loaded = optuna.load_study(study_name="long", storage=f"sqlite:///{home}/optuna.db")
    return [trial.state for trial in loaded.trials]


def trained(home: Path) -> list[int]:
    """Steps that every trial trained, over all attempts."""
    loaded = optuna.load_study(study_name="long", storage=f"sqlite:///{home}/optuna.db")
    return [trial.user_attrs["steps_trained"] for trial in loaded.trials]


def runs(home: Path) -> dict[str, str]:
    """Status of every MLflow run by its name."""
    with sqlite3.connect(home / "mlflow.db") as database:
        return dict(database.execute("SELECT name, status FROM runs"))


def counts(home: Path) -> dict[str, int]:
    """How many trials of the study there are of every kind."""
    printed: dict[str, Any] = json.loads(knee_tune_here("status", "--json", "--home", home).stdout)
    of_kind: dict[str, int] = printed["counts"]
    return of_kind


def test_ctrl_c_leaves_nothing_running_and_the_same_command_continues(fresh: Path) -> None:
    command = (*LONG, "--trials", "2", "--home", fresh)
    with running(*command, until="trial 1: step") as (process, family):
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130, rest
        assert rest.strip().endswith("interrupted; the same command continues")
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert trial_states(fresh) == [TrialState.COMPLETE, TrialState.WAITING]
    assert "RUNNING" not in runs(fresh).values()
    assert counts(fresh) == {"complete": 1, "pruned": 0, "failed": 0, "running": 0}

    again = drive_here(*command).stdout
    assert "1 of 2 trials done" in again
    assert counts(fresh) == {"complete": 2, "pruned": 0, "failed": 0, "running": 0}
    assert set(runs(fresh).values()) == {"FINISHED"}
    assert len(runs(fresh)) == 3  # the continued trial is still one run
    undisturbed, interrupted = trained(fresh)
    assert interrupted == undisturbed  # no step was lost
    *_, last = optuna.load_study(study_name="long", storage=f"sqlite:///{fresh}/optuna.db").trials
    with sqlite3.connect(fresh / "mlflow.db") as database:
        (run,) = database.execute("SELECT run_uuid FROM runs WHERE name = 'trial 1'")
    assert last.user_attrs["mlflow_run_id"] == run[0]
    assert run[0] in last.user_attrs["mlflow_run_url"]


def test_a_home_that_is_deleted_ends_the_command_and_is_not_made_anew(fresh: Path) -> None:
    command = (*LONG, "--set", "recipe.epochs=400", "--trials", "2", "--home", fresh)
    with running(*command, until="trial 0: step") as (process, family):

        def deleted() -> bool:
            """Of files that are being made the first try may miss some."""
            shutil.rmtree(fresh, ignore_errors=True)
            return not fresh.exists()

        awaited(deleted)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 1, rest
        lines = [line for line in rest.splitlines() if not line.startswith("trial 0: ")]
        assert lines == [
            f"knee-tune: --home {fresh}: it was deleted or moved while the command ran; put it "
            "back to go on, or give the command again to begin anew"
        ]
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert not fresh.exists()


def test_a_killed_driver_takes_its_ranks_along_and_the_same_command_puts_all_right(
    fresh: Path,
) -> None:
    command = (*LONG, "--trials", "1", "--home", fresh)
    with running(*command, until="trial 0: step") as (process, family):
        assert len(family) >= 3  # a warm process and two ranks
        process.kill()
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert trial_states(fresh) == [TrialState.RUNNING]
    (note,) = fresh.rglob("*.steps")
    first, trained = map(int, note.read_text().split()[:2])
    saved = [int(path.name.removeprefix("step-")) for path in fresh.rglob("step-*")]
    again = drive_here(*command).stdout
    assert "trial 0: its driver was killed" in again
    assert trial_states(fresh) == [TrialState.FAIL, TrialState.COMPLETE]
    assert counts(fresh) == {"complete": 1, "pruned": 0, "failed": 0, "running": 0}
    printed = knee_tune_here("status", "--json", "--home", fresh).stdout
    steps = json.loads(printed)["steps"]
    assert first == 0
    assert 0 < trained < steps["independent"]
    assert steps["trained"] == trained + steps["independent"] - max(saved, default=0)
    assert steps["reused"] == 0, "what it trained itself before the kill is no saving"
    assert not list(fresh.rglob("*.steps"))
    assert set(runs(fresh).values()) == {"FINISHED"}
    assert len(runs(fresh)) == 2


def test_whatever_process_is_killed_the_study_becomes_the_same(tmp_path: Path) -> None:
    """A handful of the kills of ``python -m benchmarks.faults``."""
    knee_tune_here(*faults.command("replicates", tmp_path / "peace")[3:])
    peace, home = faults.outcome(tmp_path / "peace"), tmp_path / "home"
    tally = faults.torment("replicates", home, seed=3, kills=3, mean=0.5, pause=30)
    assert tally.wrong == []
    assert faults.differences(home, peace) == []
    steps = faults.account(home)
    assert steps.wrong == []
    assert steps.trained >= 4 * 150
    assert list(faults.left_behind(home)) == []

    witness = tmp_path / "home-witness"
    unseen, *seen = witness.read_text().splitlines(keepends=True)
    witness.write_text("".join(seen))
    assert faults.account(home).wrong, f"nobody trained {unseen}, but it is accounted for"
