"""Several drivers, each a process of its own with two slots, on one study in SQLite."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.command_line import knee_tune

LRS, FRACTIONS = (0.01, 0.02, 0.05), (0.2, 0.4, 0.8)
GRID = {(lr, fraction) for lr in LRS for fraction in FRACTIONS}

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--pruner", "none", "--concurrency", "2"),
    *("--set", f"space.seed_lr={{values: {list(LRS)}}}"),
    *("--set", f"space.explore_fraction={{values: {list(FRACTIONS)}}}"),
    *("--set", "recipe.epochs=10", "--set", "recipe.batch_size=100"),
    *("--study-name", "shared", "--tracking-uri", "none"),
)
"""Ten epochs, so that every knee is at the end of one."""


def drive_together(home: Path, *options: str) -> list[str]:
    """Two drivers that start at the same time; what they printed."""
    with ThreadPoolExecutor() as pool:
        drivers = [pool.submit(knee_tune, *STUDY, *options, "--home", str(home)) for _ in range(2)]
        return [driver.result().stdout for driver in drivers]


TABLE = """\
name: compared
task: digits
replicates: 3
recipe: {batch_size: 100}
analyses: [{name: sharpness, iterations: 2, examples: 64}]
compare:
  table: Table 1
  section: "3"
  rows:
    - {schedule: step, epochs: 50, seed_lr: 0.05, boundaries: [20, 40], metrics: {}}
    - {schedule: step, epochs: 50, seed_lr: 0.05, boundaries: [30, 40], metrics: {}}
    - {schedule: linear, epochs: 50, seed_lr: 0.05, metrics: {}}
"""
"""Nine runs, of three trunks and three alone."""


def trials(home: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="shared", storage=f"sqlite:///{home}/optuna.db").trials


def points(of: Sequence[FrozenTrial]) -> list[tuple[float, float]]:
    return [(trial.params["seed_lr"], trial.params["explore_fraction"]) for trial in of]


def assert_trained_once_and_by_both(done: list[FrozenTrial], *, trials: int) -> None:
    assert Counter(trial.state for trial in done) == {TrialState.COMPLETE: trials}
    assert len(set(points(done))) == trials
    assert len({trial.user_attrs["driver"]["pid"] for trial in done}) == 2


def test_a_grid_is_trained_once_by_all_drivers_together(tmp_path: Path) -> None:
    # Fused, the first driver would take the whole grid as one batch.
    outputs = drive_together(tmp_path, "--sampler", "grid", "--no-fuse")
    done = trials(tmp_path)
    assert_trained_once_and_by_both(done, trials=len(GRID))
    assert set(points(done)) == GRID
    for output in outputs:
        assert "9 trials are every point of the search space" in output
        assert "every point of the search space was tried" in output

    steps = json.loads(knee_tune("status", "shared", "--home", tmp_path, "--json").stdout)["steps"]
    mean = sum(FRACTIONS) / len(FRACTIONS)
    expected = (1 - mean + max(FRACTIONS) / len(FRACTIONS)) * steps["independent"]
    assert steps["trained"] == pytest.approx(expected)


def test_the_number_of_trials_is_exact(tmp_path: Path) -> None:
    drive_together(tmp_path, "--sampler", "gp", "--trials", "8")
    done = trials(tmp_path)
    assert_trained_once_and_by_both(done, trials=8)
    assert points(done)[0] == (0.05, 0.5)  # the paper's default, once


def test_a_comparison_is_trained_once_by_drivers_with_homes_of_their_own(tmp_path: Path) -> None:
    file, storage = tmp_path / "compared.yaml", f"sqlite:///{tmp_path}/shared.db"
    file.write_text(TABLE)
    command = ("run", "--study", file, "--concurrency", "2", "--tracking-uri", "none")
    with ThreadPoolExecutor() as pool:
        drivers = [
            pool.submit(knee_tune, *command, "--storage", storage, "--home", tmp_path / home)
            for home in ("one", "other")
        ]
        outputs = [driver.result().stdout for driver in drivers]
    tested = [re.findall(r"^(.*, seed \d): test_", output, re.MULTILINE) for output in outputs]
    assert all(tested)
    assert len(set(tested[0] + tested[1])) == len(tested[0] + tested[1]) == 9

    status = ("status", "compared", "--storage", storage, "--json")
    found = json.loads(knee_tune(*status, "--home", tmp_path / "one").stdout)
    assert found["runs"]["complete"] == 9
    steps = found["steps"]
    assert steps["trained"] + steps["reused"] == steps["independent"]
