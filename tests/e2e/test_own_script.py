"""A training script of one's own, from its folder to a model that is loaded elsewhere."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.command_line import complains, knee_tune
from tests.mlflow_stores import new_home, tracking_in

ASKED = (
    *("--nproc", "2", "--steps", "40", "--evaluate-every", "10"),
    *("--seed-lr", "0.02,0.05", "--explore", "0.2,0.8", "--sampler", "random"),
    *("--pruner", "none", "--trials", "3"),
)
"""Trials of four points: the script's own LR is one of them at half of the budget, too."""


@pytest.fixture
def script(repository: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(repository / "examples" / "pytorch", tmp_path / "my work")
    return Path(folder) / "train.py"


def test_a_script_of_ones_own(
    script: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = new_home(tmp_path_factory, tmp_path)
    said = knee_tune("run", script, *ASKED, "--home", home, "--", "--width", "8").stdout
    assert "study knee-train-40steps" in said
    assert "knee-train-40steps: 3 complete, 0 pruned, 0 failed" in said
    assert "registered knee-tune-train version 1 as candidate" in said
    assert "bit for bit" in knee_tune("replay", "--home", home).stdout

    moved = script.parent.rename(tmp_path / "elsewhere") / script.name
    again = knee_tune("run", moved, *ASKED, "--home", home, "--", "--width", "8").stdout
    assert "3 of 3 trials done" in again, "what it trains is the same, wherever it lies"

    with tracking_in(home):
        model = mlflow.pyfunc.load_model("models:/knee-tune-train@candidate")
    assert model.predict(np.zeros((2, 1, 8, 8), dtype=np.float32)).shape == (2, 10)


def test_what_is_no_study_of_a_script(script: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    complains("run", tmp_path / "none.py", *home, said=("no such script",))
    complains("run", script, "--task", "digits", *home, said=("of tasks alone",))
    complains("run", script, "--seed-lr", "0.1", *home, said=("a search needs LOW:HIGH or a list",))
    complains("run", script, "--explore", "low:high", *home, said=("expected LOW:HIGH",))
    complains("run", "--task", "digits", "--steps", "10", *home, said=("recipe.steps",))
    assert not (tmp_path / "home").exists()
