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


STUDY = ("--", "--width", "8")


@pytest.fixture(scope="module")
def trained(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the example, and a home with a finished study of it."""
    place = tmp_path_factory.mktemp("own")
    script = Path(shutil.copytree(repository / "examples" / "pytorch", place / "my work"))
    home = new_home(tmp_path_factory, place)
    said = knee_tune("run", script / "train.py", *ASKED, "--home", home, *STUDY).stdout
    assert "study knee-train-40steps" in said
    assert "knee-train-40steps: 3 complete, 0 pruned, 0 failed" in said
    assert "registered knee-tune-train version 1 as candidate" in said
    return script / "train.py", home


def test_a_trial_of_a_script_replays_bit_for_bit(trained: tuple[Path, Path]) -> None:
    _, home = trained
    assert "bit for bit" in knee_tune("replay", "--home", home).stdout


def test_its_model_is_loaded_without_the_script(trained: tuple[Path, Path]) -> None:
    _, home = trained
    with tracking_in(home):
        model = mlflow.pyfunc.load_model("models:/knee-tune-train@candidate")
    assert model.predict(np.zeros((2, 1, 8, 8), dtype=np.float32)).shape == (2, 10)


def test_a_script_may_be_moved(trained: tuple[Path, Path], tmp_path: Path) -> None:
    script, home = trained
    moved = Path(shutil.copytree(script.parent, tmp_path / "elsewhere")) / script.name
    again = knee_tune("run", moved, *ASKED, "--no-register", "--home", home, *STUDY).stdout
    assert "3 of 3 trials done" in again, "what it trains is the same, wherever it lies"


def test_what_is_no_study_of_a_script(repository: Path, tmp_path: Path) -> None:
    script = repository / "examples" / "pytorch" / "train.py"
    home = ("--home", tmp_path / "home")
    complains("run", tmp_path / "none.py", *home, said=("no such script",))
    complains("run", script, "--task", "digits", *home, said=("of tasks alone",))
    complains("run", script, "--seed-lr", "0.1", *home, said=("a search needs LOW:HIGH",))
    complains("run", script, "--explore", "low:high", *home, said=("expected LOW:HIGH",))
    complains(
        "run", "--task", "digits", "--steps", "10", *home, said=("--steps", "of scripts alone")
    )
    assert not (tmp_path / "home").exists()
