"""The Slurm script of ``examples/slurm``, in a real cluster of two nodes on this machine."""

import os
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

from benchmarks.slurm import SCRIPT, is_installed, slurm
from tests.command_line import environment
from tests.waiting import COMMAND, awaited

pytestmark = pytest.mark.skipif(not is_installed(), reason="Slurm is not installed")


def test_an_array_of_drivers_shares_a_study_and_comes_again_after_its_time_limit(
    tmp_path: Path,
) -> None:
    study = (
        *("--task", "digits", "--preset", "quick", "--nproc", "1", "--set", "recipe.epochs=40"),
        *("--set", "space.seed_lr.values=[0.02, 0.05]", "--sampler", "grid", "--pruner", "none"),
        *("--set", "space.explore_fraction.values=[0.4, 0.5]", "--study-name", "slurm"),
        *("--home", str(tmp_path / "home"), "--tracking-uri", "none"),
    )
    log = tmp_path / "1.log"  # of the array's second task
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with slurm(tmp_path / "cluster", environment(PATH=programs)) as cluster:
        submit = ("sbatch", "--parsable", "--array=0-1", "--output=%a.log")
        array = cluster(*submit, str(SCRIPT), *study, folder=tmp_path).strip()
        tasks = f"{array}_0", f"{array}_1"
        awaited(lambda: log.exists() and "step" in log.read_text(), seconds=COMMAND / 2, pause=0.5)
        # What Slurm does by itself a minute before the time limit.
        cluster("scancel", "--signal=USR1", "--batch", tasks[1])
        awaited(lambda: cluster.job(tasks[1])["Restarts"] == "1", pause=0.5)
        assert "interrupted; the same command continues" in log.read_text()
        # A task that comes again waits for two minutes. It must wait for one second: what let it
        # run before is void up to then.
        cluster("scontrol", "update", f"JobId={tasks[1]}", "StartTime=now+2")
        awaited(
            lambda: all(cluster.job(task)["JobState"] == "COMPLETED" for task in tasks),
            seconds=COMMAND / 2,
            pause=0.5,
        )
    found = optuna.load_study(study_name="slurm", storage=f"sqlite:///{tmp_path}/home/optuna.db")
    done = [trial for trial in found.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert Counter(tuple(trial.params.values()) for trial in done) == Counter(
        (lr, fraction) for lr in (0.02, 0.05) for fraction in (0.4, 0.5)
    )
