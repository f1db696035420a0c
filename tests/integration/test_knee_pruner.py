"""KneePruner in a study of one's own, as docs/concepts/pruner.md shows it, and on a storage."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from knee_tune.pruners import KneePruner
from knee_tune.schedules import Knee
from knee_tune.study.storage import open_storage, quiet_optuna


def test_the_documented_study_runs_and_is_pruned(repository: Path) -> None:
    text = (repository / "docs" / "concepts" / "pruner.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space: dict[str, Any] = {}
    with quiet_optuna():
        exec(example, space)
    study: optuna.Study = space["study"]
    assert len(study.trials) == 60
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(pruned) > 10
    for trial in pruned:
        assert trial.last_step is not None
        assert 15 <= trial.last_step < 100  # at its third evaluation at the earliest
    assert study.best_value < 0.1  # of 1, which is what a high LR without decay leaves


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_what_it_needs_to_know_survives_a_database(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=open_storage(f"sqlite:///{tmp_path}/study.db"), pruner=KneePruner(max_seed_lr=0.1)
    )

    def at_190(value: float) -> optuna.Trial:
        schedule = Knee(seed_lr=0.1, total_steps=100, explore_steps=50)
        trial = study.ask()
        KneePruner.describe(trial, schedule, replicates=2)
        for step in (170, 180, 190):
            trial.report(value, step)
        return trial

    with quiet_optuna():
        for value in (1.0, 1.0, 1.0, 1.0, math.nan, math.inf):
            study.tell(at_190(value), 1.0)
        assert not at_190(0.5).should_prune()
        assert at_190(1.5).should_prune()
        assert at_190(math.nan).should_prune()


def test_it_needs_neither_torch_nor_mlflow_and_the_package_needs_nothing() -> None:
    program = (
        "import sys, knee_tune; "
        "assert 'optuna' not in sys.modules; "
        "import knee_tune.pruners; "
        "assert 'optuna' in sys.modules; "
        "print({'torch', 'mlflow', 'pydantic', 'optuna_dashboard'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr
