"""``run --confirm`` as people use it: interrupted, continued, and with a champion at the end."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.command_line import drive_here, knee_tune_here, running
from tests.mlflow_stores import new_home

COMMAND = (
    *("run", "--task", "digits", "--preset", "quick", "--study-name", "sure"),
    *("--sampler", "random", "--trials", "2", "--confirm", "1:3"),
    *("--set", "recipe.epochs=4", "--set", "recipe.seed_lr=0.002"),
    *("--set", "space.seed_lr={values: [0.05]}", "--set", "space.explore_fraction={values: [0.5]}"),
)
"""Two points; the default's seed LR is far too small, so the other one is sure to be better."""


def runs(home: Path) -> dict[str, str]:
    """Status of every MLflow run by its name."""
    with sqlite3.connect(home / "mlflow.db") as database:
        return dict(database.execute("SELECT name, status FROM runs"))


@pytest.mark.timeout(400)
def test_a_confirmed_winner_becomes_champion(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    home = new_home(tmp_path_factory, tmp_path)
    with running(*COMMAND, "--home", home, until="(3 of 6): step 200/200") as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130, rest
    assert "RUNNING" not in runs(home).values()

    again = drive_here(*COMMAND, "--home", home).stdout
    assert "2 of 2 trials done" in again
    ends = [line for line in again.splitlines() if " of 6): done" in line]
    assert len(ends) == 6
    assert all("(trained before)" in line for line in ends[:2])
    assert not any("(trained before)" in line for line in ends[3:])
    assert "\nconfirmed: better than the default; 3 seeds make wide intervals" in again
    assert "registered knee-tune-digits version 1 as champion" in again
    assert "on the edge of the search space (largest seed LR)" in again
    assert "--set 'space.seed_lr.values=[0.002, 0.05, 1.25]'" in again
    assert set(runs(home).values()) == {"FINISHED"}
    assert sum(name.startswith("confirm ") for name in runs(home)) == 6

    status = knee_tune_here("status", "--home", home).stdout
    assert "sure: 2 complete, 0 pruned" in status  # fresh runs are no trials
    assert "confirmation with 3 fresh seeds (1000001 to 1000003)" in status
    assert "version 1 is the champion" in knee_tune_here("register", "--home", home).stdout
