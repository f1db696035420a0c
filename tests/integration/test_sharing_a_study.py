"""Several drivers, each a process of its own with two slots, on one study in SQLite."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests import waiting, warm
from tests.command_line import environment, knee_tune, knee_tune_here

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


def test_a_grid_is_trained_once_by_all_drivers_together(tmp_path: Path) -> None:
    # Fused, the first driver would take the whole grid as one batch.
    command = (*STUDY, "--sampler", "grid", "--no-fuse", "--home", tmp_path)
    with ThreadPoolExecutor() as pool:
        outputs = [driver.stdout for driver in pool.map(lambda _: knee_tune(*command), range(2))]
    for output in outputs:
        assert "9 trials are every point of the search space" in output
        assert "every point of the search space was tried" in output
    trials = trials_of("shared", tmp_path)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert Counter(map(point, trials)) == dict.fromkeys(GRID, 1)
    assert len({trial.user_attrs["driver"]["pid"] for trial in trials}) == 2

    said = knee_tune_here("status", "shared", "--home", tmp_path, "--json").stdout
    steps = json.loads(said)["steps"]
    mean = sum(FRACTIONS) / len(FRACTIONS)
    expected = (1 - mean + max(FRACTIONS) / len(FRACTIONS)) * steps["independent"]
    assert steps["trained"] == pytest.approx(expected)


DRIVER = """
import sys, threading, time, torch
from pathlib import Path
from knee_tune.study import driver
from tests.fake_runner import FakeRunner
from tests.integration.workbench import Workbench

home, mine = Path(sys.argv[1]), sys.argv[2]
wanted = driver.wanted

def slowly_wanted(*args, **options):
    left = wanted(*args, **options)
    time.sleep(0.5)
    return left

def meet(step):
    if step == 50:
        (home / f"met-{mine}-{threading.get_ident()}").touch()
        while len(list(home.glob("met-*"))) < 4:
            time.sleep(0.01)

torch.set_num_threads(1)
driver.wanted = slowly_wanted
Workbench(home, sampler="gp", epochs=1).drive(FakeRunner(meet, meet), trials=5, slots=2)
"""
"""Its slots end their first trials together with those of the other, and look before they ask."""


def test_the_number_of_trials_is_exact(tmp_path: Path) -> None:
    """Two drivers want the last trial at the same time."""

    def driven(name: str) -> int:
        entry = ("tests.warm:program", DRIVER, str(tmp_path), name)
        return warm.run(*entry, env=environment(), timeout=waiting.COMMAND).returncode

    with ThreadPoolExecutor() as pool:
        assert [*pool.map(driven, ("one", "other"))] == [0, 0]
    trials = trials_of("it", tmp_path)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(trials) == len(set(map(point, trials))) == 5
    assert point(trials[0]) == (0.05, 0.5)  # the paper's default, once
    assert len({trial.user_attrs["driver"]["pid"] for trial in trials}) == 2


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


def trials_of(study: str, home: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=study, storage=f"sqlite:///{home}/optuna.db").trials


def point(trial: FrozenTrial) -> tuple[float, float]:
    return trial.params["seed_lr"], trial.params["explore_fraction"]
