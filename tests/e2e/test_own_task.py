"""A task in a file of one's own, a helper beside it: from the search to the model elsewhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting
from tests.command_line import REPOSITORY, environment, knee_tune
from tests.mlflow_stores import new_home

NET = """
from torch import nn

def net(width):
    return nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))
"""

LOAD = """
import json, sys
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/knee-tune-wine@candidate")
print(json.dumps(model.predict(numpy.zeros((3, 13), dtype="float32"))))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, its network in another file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    source = (REPOSITORY / "examples" / "own_task" / "my_task.py").read_text()
    inline = "nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))"
    assert inline in source
    source = source.replace(inline, "my_net.net(width)")
    source = source.replace("import knee_tune\n", "import knee_tune\nimport my_net\n")
    (folder / "my_task.py").write_text(source)
    (folder / "my_net.py").write_text(NET)
    return folder


def asked(folder: Path, *, ranks: int) -> tuple[str, ...]:
    settings = ("--set", "recipe.epochs=4", "--set", "recipe.width=8", "--sampler", "random")
    return ("run", "--task", f"{folder}/my_task.py:Wine", "--nproc", str(ranks), *settings)


@pytest.mark.timeout(400)
def test_its_model_answers_where_nobody_has_the_file(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = new_home(tmp_path_factory, tmp_path)
    done = knee_tune(*asked(folder, ranks=2), "--home", home, "--trials", "2")
    assert "knee-wine-4ep: 2 complete" in done.stdout
    assert "registered knee-tune-wine version 1 as candidate" in done.stdout
    knee_tune("report", "--home", home, "--format", "json", "--out", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["task"] == "wine"

    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, f"sqlite:///{home}/mlflow.db"],
        cwd=elsewhere,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=waiting.COMMAND,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    (answers,) = loaded.stdout.splitlines()
    assert len(json.loads(answers)) == 3


@pytest.mark.timeout(400)
def test_both_runners_find_it_and_train_the_same_bits(folder: Path, tmp_path: Path) -> None:
    options = ("--home", tmp_path / "home", "--tracking-uri", "none", "--no-register")
    knee_tune(*asked(folder, ranks=1), *options, "--trials", "1", "--runner", "torchrun")
    replayed = knee_tune("replay", "--home", tmp_path / "home")  # by the fork server
    assert "same, bit for bit" in replayed.stdout
